"""The control page, `/_control`: what a person does to the simulator, and sees of it.

Each button posts a form and leads back to the page, so that nothing happens twice on a reload.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from simulators.stripe import control, disputes, hazards
from simulators.stripe.account import Account
from simulators.stripe.deliveries import DELIVERY
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.events import EVENT
from simulators.stripe.pages import render

Form = dict[str, str]
Act = Callable[[Account, Form], Awaitable[object]]

_SHOWN = 50
_DAY_S = 24 * 3600
_MAX_DIGITS = 9


def routes(account: Account) -> list[Route]:
    """The page, and what its buttons post to."""
    acts: dict[str, Act] = {
        "hazard": _set_hazard,
        "clock": _move_clock,
        "flush": lambda account, _: control.flush(account, {}, {}),
        "resend": lambda account, form: control.resend(account, {}, {"id": form["id"]}),
        "decline": lambda account, form: control.decline(account, {"on": form["on"] == "1"}, {"id": form["id"]}),
        "dispute": lambda account, form: control.dispute(account, {}, {"id": form["id"]}),
        "decide": lambda account, form: control.decide(account, {"status": form["status"]}, {"id": form["id"]}),
        "refund": lambda account, form: control.refund(account, {}, {"id": form["id"]}),
    }
    posts = [Route(f"/_control/{name}", _posted(account, act), methods=["POST"]) for name, act in acts.items()]
    return [Route("/_control", _page(account)), *posts]


async def _set_hazard(account: Account, form: Form) -> None:
    if form.get("on") != "1":
        account.world.hazards.switch_off(form["name"])
        return
    given = {name: _number(form, name) for name in ("times", "seconds") if form.get(name)}
    account.world.hazards.switch_on(form["name"], **given)


async def _move_clock(account: Account, form: Form) -> None:
    seconds = _number(form, "days") * _DAY_S + _number(form, "hours") * 3600
    await control.move_clock(account, {"seconds": seconds}, {})


def _number(form: Form, name: str) -> int:
    text = form.get(name) or "0"
    # A number of so many digits is none that a person means, and none that there is time for.
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise invalid(name, f"This is no number: {text:.20}")
    return int(text)


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
            hazards=[(name, text, on.get(name), hazards.LASTING_S.get(name)) for name, text in hazards.NAMES.items()],
            events=world.all(EVENT)[: -_SHOWN - 1 : -1],
            waiting=waiting,
            customers=world.all("customer")[: -_SHOWN - 1 : -1],
            refusing=refusing,
            disputes={found["charge"]: found for found in world.all(disputes.KIND)},
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
        except KeyError as error:
            return render("error.html", status=400, message=f"The form lacks {error}.")
        finally:
            account.settle()
        return RedirectResponse("/_control", status_code=303)

    return answer
