"""One authenticated request on its way through a handler.

``RequiredCall`` gives a handler what it needs, in the order it needs it: the parsed
body, the model, the admission and the meter. The key is checked before the body is
read, so a stranger learns nothing from it.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.datastructures import State

from app.admission import Admission, Limits, Permit, Work, peek
from app.api.failures import body_error
from app.api.middleware import record_of
from app.api.schemas import Body
from app.api.served import ServedModel, ServedModels
from app.auth import Key, RequiredKey
from app.billing.catalog import PLANS
from app.billing.prices import PRICES, price_version
from app.config import Settings
from app.db import Database
from app.errors import BadRequest
from app.metering import Ledger, Meter
from app.rpc.client import EngineClient
from app.settlements import Kind

BodyT = TypeVar("BodyT", bound=Body)
TIMEOUT_HEADER = "x-request-timeout-ms"
# Made once: most keys have no rates of their own.
_LIMITS: Mapping[str, Limits] = {
    name: Limits(plan.requests_per_minute, plan.tokens_per_minute, plan.max_concurrent, plan.monthly_token_limit)
    for name, plan in PLANS.items()
}
# Of a plan that only a newer version of the program knows.
_UNKNOWN_PLAN = _LIMITS["free"]


@dataclass(frozen=True, slots=True)
class Services:
    """What an API process keeps for its lifetime; lies in the application's state."""

    settings: Settings
    database: Database
    engine: EngineClient
    models: ServedModels
    admission: Admission
    ledger: Ledger

    @classmethod
    def of(cls, state: State) -> "Services":
        """The services of an application."""
        return cls(state.settings, state.database, state.engine, state.models, state.admission, state.ledger)


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated request.

    Attributes:
        request: The framework's view of it.
        key: Who calls.
        services: What the process works with.
        timeout_s: The answer must be complete after this time.
    """

    request: Request
    key: Key
    services: Services
    timeout_s: float

    @property
    def id(self) -> UUID:
        """The request id, shown in ``x-request-id``."""
        return record_of(self.request.scope).id

    @property
    def started_at(self) -> datetime:
        """When it came in."""
        return record_of(self.request.scope).started_at

    @property
    def limits(self) -> Limits:
        """The key's own limits, or the plan's."""
        limits, key = _LIMITS.get(self.key.plan, _UNKNOWN_PLAN), self.key
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return limits
        return replace(
            limits,
            requests_per_minute=key.requests_per_minute or limits.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute or limits.tokens_per_minute,
        )

    @property
    def cache_salt(self) -> str:
        """Which prompts may share their beginnings in the engine: those of one organisation, which it cannot name."""
        pepper = self.services.settings.key_pepper.get_secret_value()
        return hmac.digest(pepper.encode(), b"cache salt of " + self.key.org_id.bytes, "sha256").hex()

    async def body(self, schema: type[BodyT]) -> BodyT:
        """As ``parse_body``."""
        return await parse_body(self.request, schema)

    async def model(self, name: str, kind: Kind) -> ServedModel:
        """The model that the caller names.

        Raises:
            PermissionDenied: The key may not use it.
            NotFound: There is none of this name.
            BadRequest: It does other work.
        """
        self.key.require_model(name)
        return await self.services.models.get(name, kind)

    async def admit(self) -> None:
        """Draws one request from the key's rate, for an answer that costs nothing.

        Raises:
            RateLimited: It does not allow it now.
        """
        permit = await self.services.admission.draw(self.id, self.key, self.limits)
        record_of(self.request.scope).rates = permit

    async def reserve(
        self, served: ServedModel, kind: Kind, input_tokens: int, output_tokens: int = 0, least_output: int = 0
    ) -> Permit:
        """Draws one request and its tokens from the key's rates, and holds what it may cost until it is settled.

        Args:
            served: What runs.
            kind: Of work.
            input_tokens: That are billed.
            output_tokens: At most.
            least_output: Less is worth nothing.

        Raises:
            AppError: As ``Admission.reserve``.
        """
        price = PRICES[price_version(served.card.name, kind), kind]
        work = Work(input_tokens, output_tokens, least_output, price, self.timeout_s)
        permit = await self.services.admission.reserve(
            self.id, self.key, self.limits, input_tokens + output_tokens, work, requested=served.card.name
        )
        record_of(self.request.scope).rates = permit
        return permit

    def meter(
        self, served: ServedModel, kind: Kind, input_tokens: int, parameters: Mapping[str, object] | None = None
    ) -> Meter:
        """Counts what this request will be billed for; ``parameters`` as ``app.api.parameters`` makes them."""
        version = price_version(served.card.name, kind)
        return Meter(
            self.services.ledger,
            self.id,
            self.key,
            kind=kind,
            model=served.card.name,
            model_digest=served.card.digest,
            input_tokens=input_tokens,
            price=PRICES[version, kind],
            price_version=version,
            started_at=self.started_at,
            parameters=parameters,
        )


async def require_call(request: Request, key: RequiredKey) -> Call:
    """The call behind a request with a valid key.

    Raises:
        BadRequest: Its ``x-request-timeout-ms`` is not a positive number.
    """
    return call_of(request, key)


def call_of(request: Request, key: Key) -> Call:
    """The call of whoever was found to have ``key``.

    Raises:
        BadRequest: Its ``x-request-timeout-ms`` is not a positive number.
    """
    services = Services.of(request.app.state)
    timeout_s = _timeout_s(request.headers.get(TIMEOUT_HEADER), services.settings.request_timeout_s)
    call = Call(request, key, services, timeout_s)
    # Answers that are refused before admission show the rates as well.
    record_of(request.scope).rates = peek(key, call.limits)
    return call


async def parse_body(request: Request, schema: type[BodyT]) -> BodyT:
    """The request's body as ``schema``.

    Raises:
        BadRequest: It is not JSON, not UTF-8, or does not fit.
        PayloadTooLarge: It is larger than stated.
    """
    raw = await request.body()
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise body_error(error, raw) from None


RequiredCall = Annotated[Call, Depends(require_call)]


def _timeout_s(header: str | None, longest_s: float) -> float:
    if header is None:
        return longest_s
    if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) > 0):
        raise BadRequest(
            f"The header {TIMEOUT_HEADER} must be a positive number of milliseconds.", param=TIMEOUT_HEADER
        )
    return min(int(header) / 1000, longest_s)
