"""Answers one call of the API: who asks, what for, whether it was asked before, and what goes wrong on the way.

Handlers do not await, so each runs alone. Idempotency keys are kept for 24 hours by the account's clock, with the
answer of every call that was carried out, whatever its status; a call that was refused before that (a parameter, a
409, a 429) may be repeated under the same key.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulators.stripe import schema
from simulators.stripe.answers import MismatchError, complete
from simulators.stripe.errors import StripeError
from simulators.stripe.expansion import expanded
from simulators.stripe.forms import decode
from simulators.stripe.ids import new_id
from simulators.stripe.meter_events import customer_of
from simulators.stripe.operations import OPERATIONS, Operation, Params
from simulators.stripe.paging import page_of
from simulators.stripe.parameters import convert
from simulators.stripe.unsupported import refuse_unsupported
from simulators.stripe.world import API_VERSION, Object, World

log = structlog.get_logger()

_KEPT_S = 24 * 3600
KEYS = "_idempotency_key"
_METER_EVENTS = "/v1/billing/meter_events"


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that was understood.

    Attributes:
        params: Converted.
        sent: As they came, to be compared with those of an earlier call under the same key.
        path: Ids in the path by name.
    """

    operation: Operation
    url: str
    path: Mapping[str, str]
    params: Params
    sent: Mapping[str, Any]
    request_id: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer before it is sent."""

    status: int
    body: Object
    headers: Mapping[str, str]


class Disconnect(Response):
    """Closes the connection in the middle of an answer, which a client cannot tell from one that was lost."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Promise a byte and never send it; the server then closes the connection."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


class Calls:
    """Everything under `/v1` and `/v2`.

    Args:
        world: The account.
        settle: Called after each call that may have changed something.
    """

    def __init__(self, world: World, settle: Callable[[], None]) -> None:
        self._world = world
        self._hazards = world.hazards
        self._settle = settle
        self._busy: set[tuple[str, ...]] = set()

    async def answer(self, request: Request) -> Response:
        """The answer to a call; a `Disconnect` where a hazard wants none."""
        if self._hazards.strike("outage", request.url.path):
            return Disconnect()
        request_id = new_id("req", 14)
        try:
            outcome = await self._outcome(await _understood(request, request_id))
        except StripeError as error:
            outcome = _refusal(error)
        if self._hazards.strike("response_lost", request.url.path):
            return Disconnect()
        headers = {"Request-Id": request_id, "Stripe-Version": API_VERSION, **outcome.headers}
        return Response(json.dumps(outcome.body), outcome.status, headers, media_type="application/json")

    async def _outcome(self, asked: Asked) -> Outcome:
        kept = self._kept(asked)
        if kept is not None:
            return Outcome(kept["status"], kept["body"], {**kept["headers"], "Idempotent-Replayed": "true"})
        with self._alone(asked):
            await self._hold(asked)
            self._refuse(asked)
            outcome = self._carried_out(asked)
            if asked.operation.verb != "GET":
                self._keep(asked, outcome)
                self._settle()
            return outcome

    def _carried_out(self, asked: Asked) -> Outcome:
        if self._hazards.strike("error_500", asked.url):
            return _failure()
        outcome = self._done(asked)
        return _failure() if self._hazards.strike("error_500_after_commit", asked.url) else outcome

    def _done(self, asked: Asked) -> Outcome:
        try:
            with self._world.answering(asked.request_id, asked.key):
                answered = asked.operation.handler(self._world, dict(asked.params), **asked.path)
            return Outcome(200, self._shown(asked, answered), {})
        except StripeError as error:
            return _refusal(_blamed(error, asked))
        except MismatchError as error:
            log.exception("simulator.answer_mismatched", url=asked.url)
            return _failure(f"The simulator's answer is not what Stripe's types promise: {error}")
        except Exception as error:
            log.exception("simulator.handler_failed", url=asked.url)
            return _failure(f"The simulator failed: {error!r}")

    def _shown(self, asked: Asked, answered: Object | list[Object]) -> Object:
        call = schema.call(asked.operation.verb, asked.operation.path)
        expand = asked.params.get("expand", [])
        if isinstance(answered, list):
            is_oldest_first = asked.operation.is_oldest_first
            answered = page_of(answered, asked.params, asked.url, is_oldest_first=is_oldest_first)
        shown = expanded(self._world, answered, expand)
        if call.is_list:
            return {**shown, "data": [self._checked(call, item) for item in shown["data"]]}
        return self._checked(call, shown)

    def _checked(self, call: schema.Call, shown: Object) -> Object:
        kind = shown.get("object")
        if call.returns is not None and kind != call.returns:
            raise MismatchError(f"object must be {call.returns}, and is {kind}")
        return complete(shown) if kind is not None else shown

    # Whether it was asked before.

    def _kept(self, asked: Asked) -> Object | None:
        kept = self._world.find(KEYS, asked.key)
        if kept is None:
            return None
        if kept["_made"] + _KEPT_S <= self._world.now():
            self._world.delete(KEYS, kept["id"])
            return None
        if kept["asked"] != _fingerprint(asked):
            raise StripeError(
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{asked.key}' if you meant to execute a different request.",
                type="idempotency_error",
            )
        return kept

    def _keep(self, asked: Asked, outcome: Outcome) -> None:
        if asked.key is None:
            return
        self._world.put(
            {
                "id": asked.key,
                "object": KEYS,
                "_made": self._world.now(),
                "asked": _fingerprint(asked),
                "status": outcome.status,
                "body": outcome.body,
                "headers": dict(outcome.headers),
            }
        )

    # What goes wrong.

    @contextmanager
    def _alone(self, asked: Asked) -> Iterator[None]:
        """Hold an idempotency key, and a customer's meter, for one call at a time."""
        held: set[tuple[str, ...]] = set()
        if asked.key is not None:
            held.add(("key", asked.key))
            if held & self._busy:
                raise _key_in_use()
        if asked.url == _METER_EVENTS:
            meter = ("meter", asked.params["event_name"], customer_of(self._world, asked.params) or "")
            if meter in self._busy:
                raise _rate_limited()
            held.add(meter)
        self._busy |= held
        try:
            yield
        finally:
            self._busy -= held

    async def _hold(self, asked: Asked) -> None:
        names = ["slow", "one_call_at_a_time"] if asked.url == _METER_EVENTS else ["slow"]
        for name in names:
            if hazard := self._hazards.strike(name, asked.url):
                await asyncio.sleep(hazard.seconds)

    def _refuse(self, asked: Asked) -> None:
        if self._hazards.strike("conflict_409", asked.url):
            raise _key_in_use()
        if self._hazards.strike("rate_limit_429", asked.url):
            raise _rate_limited()


def route(verb: str, url: str) -> tuple[Operation, Mapping[str, str]]:
    """The operation of a path, and the ids in it by name.

    Raises:
        StripeError: 404 for a path that the simulator does not know.
    """
    best: tuple[Operation, Mapping[str, str]] | None = None
    for (registered, path), operation in OPERATIONS.items():
        matched = _pattern(path).fullmatch(url) if registered == verb else None
        # `/v1/invoices/create_preview` is a path of its own, not an invoice called so; neither is one that we lack.
        if matched and (best is None or len(matched.groupdict()) < len(best[1])):
            best = operation, matched.groupdict()
    is_another = (verb, url) not in OPERATIONS and schema.has(verb, url)
    if best is None or is_another:
        raise StripeError(f"Unrecognized request URL ({verb}: {url}); the simulator does not know it.", status=404)
    return best


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path)))


async def _understood(request: Request, request_id: str) -> Asked:
    """The operation that a request asks for, and its converted parameters.

    Raises:
        StripeError: 401 for the key, 400 for the version or a parameter, 404 for the path.
    """
    _authenticate(request.headers.get("authorization", ""))
    version = request.headers.get("stripe-version", API_VERSION)
    if version != API_VERSION:
        raise StripeError(f"Invalid Stripe API version: {version}; the simulator knows {API_VERSION} only")
    operation, path = route(request.method, request.url.path)
    sent = await _sent(request)
    params = convert(schema.call(operation.verb, operation.path).parameters, sent)
    refuse_unsupported(operation.verb, operation.path, params)
    key = request.headers.get("idempotency-key") if request.method != "GET" else None
    return Asked(operation, request.url.path, path, params, sent, request_id, key)


def _authenticate(header: str) -> None:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise StripeError("You did not provide an API key.", status=401)
    if not re.match(r"(sk|rk)_test_\w", key):
        raise StripeError(f"Invalid API Key provided: {key[:8]}***", status=401)


async def _sent(request: Request) -> dict[str, Any]:
    if request.method != "POST":
        return decode(request.url.query)
    body = await request.body()
    if not request.url.path.startswith("/v2/"):
        try:
            return decode(body.decode())
        except UnicodeDecodeError:
            raise StripeError("The request body is not valid UTF-8.") from None
    try:
        sent = json.loads(body or b"{}")
    except ValueError:
        raise StripeError("The request body is not valid JSON.") from None
    if not isinstance(sent, dict):
        raise StripeError("The request body must be a JSON object.")
    return sent


def _fingerprint(asked: Asked) -> str:
    return json.dumps([asked.operation.verb, asked.url, asked.sent], sort_keys=True)


def _refusal(error: StripeError) -> Outcome:
    # As the API does, tell the client library what it cannot know: a key in use will be free again.
    headers = {"Stripe-Should-Retry": "true"} if error.status == 409 else {}
    return Outcome(error.status, error.body(), headers)


def _blamed(error: StripeError, asked: Asked) -> StripeError:
    """A 404 is about what the path names; a parameter that names nothing is a 400, with the same code."""
    if error.code == "resource_missing" and error.param is not None and error.param not in ("id", *asked.path):
        error.status = 400
    return error


def _failure(message: str = "An unknown error occurred") -> Outcome:
    # A repetition under the same key would get the same 500.
    body = StripeError(message, status=500, type="api_error").body()
    return Outcome(500, body, {"Stripe-Should-Retry": "false"})


def _key_in_use() -> StripeError:
    return StripeError(
        "There is currently another in-progress request using this Stripe-Idempotency-Key. Please try again later.",
        status=409,
        type="idempotency_error",
        code="idempotency_key_in_use",
    )


def _rate_limited() -> StripeError:
    return StripeError("Request rate limit exceeded.", status=429, code="rate_limit")
