"""The application: the API, pages for browsers, the control page, and what goes on beside them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from simulators.stripe import control, control_page, handlers
from simulators.stripe.account import Account
from simulators.stripe.calls import Calls
from simulators.stripe.errors import StripeError
from simulators.stripe.operations import PAGES
from simulators.stripe.pages import render
from simulators.stripe.world import World

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_app(world: World, state_file: Path | None = None) -> Starlette:
    """The application over an account.

    Args:
        world: The account's objects.
        state_file: Where the account is kept; None keeps it in memory only.
    """
    handlers.load()
    # Endpoints are on this machine, whatever proxy leads from it to the world.
    account = Account(world, httpx.AsyncClient(trust_env=False), state_file)
    calls = Calls(world, account.settle)
    pages = [Route(path, _browser(account, handler), methods=[verb]) for verb, path, handler in PAGES]
    routes = [
        Route("/", _to_control),
        *control.routes(account),
        *control_page.routes(account),
        *pages,
        Route("/v1/{rest:path}", calls.answer, methods=_METHODS),
        Route("/v2/{rest:path}", calls.answer, methods=_METHODS),
    ]
    return Starlette(routes=routes, lifespan=_lifespan(account))


def _lifespan(account: Account) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(account.courier.run()), asyncio.create_task(account.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await account.courier.close()
            account.save()

    return lifespan


def _browser(account: Account, handler: Callable[..., Response]) -> Callable[[Request], Awaitable[Response]]:
    """What a page's handler is called through: forms come as dictionaries, and errors become pages."""

    async def answer(request: Request) -> Response:
        form = dict(request.query_params)
        if request.method == "POST":
            async with request.form() as sent:
                form |= {name: value for name, value in sent.items() if isinstance(value, str)}
        try:
            return handler(account.world, form, **request.path_params)
        except StripeError as error:
            return render("error.html", status=error.status, message=error.message)
        finally:
            account.settle()

    return answer


async def _to_control(_: Request) -> Response:
    return RedirectResponse("/_control", status_code=303)
