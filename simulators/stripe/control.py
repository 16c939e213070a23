"""The simulator's own controls as JSON, under `/_control`: hazards, the clock, deliveries, and what customers do.

For tests and scripts; the control page offers the same to people. Errors have the shape of the API's.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulators.stripe import customers, disputes, hazards, payment_methods, refunds, standing
from simulators.stripe.account import Account
from simulators.stripe.deliveries import DELIVERY
from simulators.stripe.errors import StripeError, invalid, missing
from simulators.stripe.events import EVENT
from simulators.stripe.operations import matching
from simulators.stripe.v2 import THIN
from simulators.stripe.world import Object

_MAX_FORWARD_S = 366 * 24 * 3600

Body = dict[str, Any]
Act = Callable[[Account, Body, dict[str, str]], Awaitable[Object]]


def routes(account: Account) -> list[Route]:
    """The routes of the JSON controls."""
    acts: list[tuple[str, str, Act]] = [
        ("GET", "", show_state),
        ("GET", "/hazards", show_hazards),
        ("POST", "/hazards", switch_on),
        ("DELETE", "/hazards", switch_off),
        ("DELETE", "/hazards/{name}", switch_off),
        ("POST", "/clock", move_clock),
        ("POST", "/dunning", set_dunning),
        ("POST", "/flush", flush),
        ("POST", "/reset", reset),
        ("POST", "/events/{id}/resend", resend),
        ("POST", "/customers/{id}/decline", decline),
        ("POST", "/charges/{id}/dispute", dispute),
        ("POST", "/charges/{id}/refund", refund),
        ("POST", "/disputes/{id}/decide", decide),
    ]
    return [Route(f"/_control/api{path}", _json(account, act), methods=[verb]) for verb, path, act in acts]


async def show_state(account: Account, body: Body, path: dict[str, str]) -> Object:
    """What time it is, what is under way, and what goes wrong."""
    return {
        "now": account.world.now(),
        "offset_s": account.world.offset_s,
        "hazards": [hazard.shown() for hazard in account.world.hazards.all()],
        "deliveries": account.world.all(DELIVERY),
    }


async def show_hazards(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Every hazard that there is, and those that are on with their strikes."""
    return {"known": hazards.NAMES, "on": [hazard.shown() for hazard in account.world.hazards.all()]}


async def switch_on(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Switch the hazard `name` on, with the settings beside it."""
    settings = {setting: value for setting, value in body.items() if setting != "name"}
    return account.world.hazards.switch_on(body.get("name", ""), **settings).shown()


async def switch_off(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Switch one hazard off, or all of them."""
    account.world.hazards.switch_off(path.get("name"))
    return await show_hazards(account, body, path)


async def move_clock(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Move the account's clock forward by `seconds`; never back, and by a year at most, which is a lot to work off."""
    seconds = body.get("seconds")
    if not isinstance(seconds, int) or not 0 <= seconds <= _MAX_FORWARD_S:
        raise invalid("seconds", "The clock moves forward by whole seconds only, and by a year at most.")
    account.forward(seconds)
    return await show_state(account, body, path)


async def set_dunning(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Say how failed payments are retried: `retry_days` after each attempt, and the `end` when all have failed."""
    days, end = body.get("retry_days", [3, 5, 7]), body.get("end", "canceled")
    if not all(isinstance(day, int) and day > 0 for day in days) or end not in ("canceled", "past_due", "unpaid"):
        raise invalid("end", "Days are whole numbers, and the end is canceled, past_due or unpaid.")
    standing.set_dunning(account.world, days, end)
    return {"retry_days": days, "end": end}


async def flush(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Try every delivery that waits, whenever it was due; answers once each was tried."""
    taken, refused = await account.courier.deliver(is_everything_due=True)
    return {"delivered": taken, "failed": refused}


async def reset(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Forget everything but the endpoint that the simulator was started with."""
    account.reset()
    return await show_state(account, body, path)


async def resend(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Deliver an event again, to every endpoint that wants it."""
    event = account.world.find(EVENT, path["id"]) or account.world.find(THIN, path["id"])
    if event is None:
        raise missing("event", path["id"])
    account.courier.send_again(event)
    return account.world.snapshot(event)


async def decline(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Let every card of a customer decline, or with `"on": false` pay again."""
    customer = account.world.get(customers.CUSTOMER, path["id"])
    is_on = bool(body.get("on", True))
    for method in matching(account.world.all(payment_methods.METHOD), {"customer": customer["id"]}, "customer"):
        method["_refuses"] = is_on
    return {"customer": customer["id"], "declines": is_on}


async def dispute(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Let the cardholder dispute a charge."""
    charge = account.world.get("charge", path["id"])
    return account.world.present(disputes.open_dispute(account.world, charge, body.get("reason", "fraudulent")))


async def decide(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Let the bank decide a dispute: its `status` becomes `won` or `lost`."""
    found = account.world.get(disputes.KIND, path["id"])
    if body.get("status") not in disputes.DECIDED or found["status"] in disputes.DECIDED:
        raise invalid("status", "An open dispute is decided: it is won or lost.")
    disputes.decide(account.world, found, body["status"])
    return account.world.present(found)


async def refund(account: Account, body: Body, path: dict[str, str]) -> Object:
    """Refund a charge, all that is left of it unless an `amount` is named."""
    params = {"charge": path["id"], **({"amount": body["amount"]} if "amount" in body else {})}
    return account.world.present(refunds.create(account.world, params))


def _json(account: Account, act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await act(account, await _body(request), dict(request.path_params)))
        except StripeError as error:
            return JSONResponse(error.body(), error.status)
        finally:
            account.settle()

    return answer


async def _body(request: Request) -> Body:
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        raise StripeError("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise StripeError("The body must be a JSON object.")
    return body
