"""The control page, `/_control`: what a person does to the simulator, and sees of it.

Each button posts a form and leads back to the page, so that nothing happens twice on a reload.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from simulators.stripe import control, hazards
from simulators.stripe.account import Account
from simulators.stripe.deliveries import DELIVERY
from simulators.stripe.errors import StripeError
from simulators.stripe.events import EVENT
from simulators.stripe.pages import render

Form = dict[str, str]
Act = Callable[[Account, Form], Awaitable[object]]

_SHOWN = 50
_DAY_S = 24 * 3600


def routes(account: Account) -> list[Route]:
    """The page, and what its buttons post to."""
    acts: dict[str, Act] = {
        "hazard": _set_hazard,
        "clock": _move_clock,
        "flush": lambda account, _: control.flush(account, {}, {}),
        "resend": lambda account, form: control.resend(account, {}, {"id": form["id"]}),
        "decline": lambda account, form: control.decline(account, {"on": form["on"] == "1"}, {"id": form["id"]}),
        "dispute": lambda account, form: control.dispute(account, {}, {"id": form["id"]}),
        "refund": lambda account, form: control.refund(account, {}, {"id": form["id"]}),
    }
    posts = [Route(f"/_control/{name}", _posted(account, act), methods=["POST"]) for name, act in acts.items()]
    return [Route("/_control", _page(account)), *posts]


async def _set_hazard(account: Account, form: Form) -> None:
    if form.get("on") != "1":
        account.world.hazards.switch_off(form["name"])
        return
    times = int(form["times"]) if form.get("times", "").isdecimal() else None
    account.world.hazards.switch_on(form["name"], times=times, path=form.get("path", ""))


async def _move_clock(account: Account, form: Form) -> None:
    days = int(form["days"]) if form.get("days", "").isdecimal() else 0
    hours = int(form["hours"]) if form.get("hours", "").isdecimal() else 0
    account.forward(days * _DAY_S + hours * 3600)


def _page(account: Account) -> Callable[[Request], Awaitable[Response]]:
    async def show(_: Request) -> Response:
        world = account.world
        on = {hazard.name: hazard for hazard in world.hazards.all()}
        waiting = {delivery["event"]: delivery for delivery in world.all(DELIVERY)}
        refusing = {method["customer"] for method in world.all("payment_method") if method.get("_refuses")}
        return render(
            "control.html",
            now=world.now(),
            offset_s=world.offset_s,
            hazards=[(name, text, on.get(name)) for name, text in hazards.NAMES.items()],
            events=world.all(EVENT)[: -_SHOWN - 1 : -1],
            waiting=waiting,
            customers=world.all("customer")[: -_SHOWN - 1 : -1],
            refusing=refusing,
            charges=world.all("charge")[: -_SHOWN - 1 : -1],
        )

    return show


def _posted(account: Account, act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        async with request.form() as sent:
            form = {name: value for name, value in sent.items() if isinstance(value, str)}
        try:
            await act(account, form)
        except StripeError as error:
            return render("error.html", status=error.status, message=error.message)
        finally:
            account.settle()
        return RedirectResponse("/_control", status_code=303)

    return answer
