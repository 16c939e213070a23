"""May this request run now? One guarded statement decides and reserves, or draws nothing.

The statement locks the budget of the organisation, then the row of the key, and looks
at everything that limits the request: its key and organisation are valid, the plan
entitles it, so many run at once, requests and tokens per minute, the tokens of the
month, the organisation's spend cap (an operator's or its own, whichever is lower), its
prepaid credit, the key's own cap. If all allow it, both rates are drawn and the most it
can cost is held until it is settled.
A key that was rotated shares its rates and its cap with its successor (``bucket_id``).
The row locks make it exact across requests and processes; the clock is the database's,
which all of them share. Admissions of a process that come together share a round trip
(``app.lane``).

Where money or the month's tokens do not pay for all of the output that was asked for,
as much is granted as they do pay for; the engine stops there.

A rate is a token bucket as large as its limit per minute and refilled continuously.
Tokens are drawn from it for the prompt and the largest possible output, and not given
back: a rate is about what was asked for at once. What was used is billed elsewhere.

An admission is committed without waiting for the disk: a settlement that is on it has
its admission there before it, and a crash of the database that loses the one loses the
request as well.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from app.auth import Key
from app.db import Database
from app.errors import AppError, AuthenticationFailed, PaymentRequired, PermissionDenied, QuotaExceeded, RateLimited
from app.lane import BrokenOff, Lane
from app.metering import Ledger
from app.settlements import Price
from app.telemetry import REFUSALS

_MINUTE_S = 60.0
# How long after its deadline a request's reservation is freed by others.
_EXPIRY_MARGIN_S = 60.0
_CONCURRENCY_RETRY_S = 1.0

# now() is one instant for the whole transaction, so refill and date agree.
_NOW = "COALESCE($9::timestamptz, now())"
# GREATEST: whoever waited for the row lock may carry an older clock than its last writer.
_ELAPSED = f"GREATEST(0, EXTRACT(EPOCH FROM {_NOW} - b.updated_at))::float8"
_MONTH = f"(date_trunc('month', {_NOW} AT TIME ZONE 'UTC'))::date"

_ADMIT = f"""
WITH org AS MATERIALIZED (
    SELECT o.status AS org_status, b.status, b.restriction, COALESCE(b.max_concurrent, $6::int) AS max_concurrent,
        b.num_running,
        GREATEST(b.month, {_MONTH}) AS month,
        COALESCE(b.monthly_token_limit, $17::bigint) - b.tokens_held
            - CASE WHEN b.month >= {_MONTH} THEN b.tokens_used ELSE 0 END AS tokens,
        LEAST(b.spend_cap, b.own_spend_cap) - b.cost_held
            - CASE WHEN b.month >= {_MONTH} THEN b.cost_used ELSE 0 END AS cap,
        b.credit - b.cost_held AS credit
    FROM org_budgets b JOIN orgs o ON o.id = b.org_id WHERE b.org_id = $2::uuid FOR UPDATE OF b
), key AS MATERIALIZED (
    SELECT org.*, b.key_id AS bucket_id,
        k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > {_NOW}) AS is_valid,
        LEAST($4::float8, b.requests_level + {_ELAPSED} * $4::float8 / 60) AS requests_level,
        LEAST($5::float8, b.tokens_level + {_ELAPSED} * $5::float8 / 60) AS tokens_level,
        GREATEST(b.month, {_MONTH}) AS key_month,
        k.monthly_cap - b.cost_held - CASE WHEN b.month >= {_MONTH} THEN b.cost_used ELSE 0 END AS key_cap
    FROM api_keys k JOIN rate_buckets b ON b.key_id = COALESCE(k.bucket_id, k.id), org
    WHERE k.id = $3::uuid AND k.org_id = $2::uuid FOR UPDATE OF b
), judged AS MATERIALIZED (
    SELECT key.*,
        LEAST($12::bigint, tokens - $10::bigint,
            (LEAST(cap, credit, key_cap) - $11::bigint) / NULLIF($14::bigint, 0)) AS granted,
        CASE
            WHEN NOT is_valid THEN 'key'
            WHEN org_status <> 'active' THEN 'org'
            WHEN requests_level < 1 THEN 'requests'
            WHEN tokens_level < $7::float8 THEN 'tokens'
            WHEN NOT $8::boolean THEN 'ok'
            WHEN status <> 'active' THEN 'restricted'
            WHEN num_running >= max_concurrent THEN 'concurrency'
            WHEN tokens < $10::bigint + $13::bigint THEN 'month'
            WHEN cap < $11::bigint + $13::bigint * $14::bigint THEN 'cap'
            WHEN credit < $11::bigint + $13::bigint * $14::bigint THEN 'credit'
            WHEN key_cap < $11::bigint + $13::bigint * $14::bigint THEN 'key_cap'
            ELSE 'ok'
        END AS verdict
    FROM key
), held AS MATERIALIZED (
    SELECT *, $11::bigint + granted * $14::bigint AS cost, $10::bigint + granted AS num_tokens
    FROM judged WHERE verdict = 'ok'
), org_changed AS (
    UPDATE org_budgets b SET
        cost_held = b.cost_held + held.cost, tokens_held = b.tokens_held + held.num_tokens,
        num_running = b.num_running + 1, month = held.month,
        cost_used = CASE WHEN b.month = held.month THEN b.cost_used ELSE 0 END,
        tokens_used = CASE WHEN b.month = held.month THEN b.tokens_used ELSE 0 END
    FROM held WHERE b.org_id = $2::uuid AND $8::boolean
), key_changed AS (
    UPDATE rate_buckets b SET
        requests_level = held.requests_level - 1, tokens_level = held.tokens_level - $7::float8,
        updated_at = GREATEST(b.updated_at, {_NOW}), month = held.key_month,
        cost_used = CASE WHEN b.month = held.key_month THEN b.cost_used ELSE 0 END,
        cost_held = b.cost_held + CASE WHEN $8::boolean THEN held.cost ELSE 0 END
    FROM held WHERE b.key_id = held.bucket_id
), key_touched AS (
    UPDATE rate_buckets b SET updated_at = GREATEST(b.updated_at, {_NOW})
    FROM held WHERE b.key_id = $3::uuid AND held.bucket_id <> $3::uuid
), reserved AS (
    INSERT INTO reservations (request_id, org_id, key_id, holder, cost, tokens, expires_at)
    SELECT $1::uuid, $2::uuid, $3::uuid, $15::uuid, cost, num_tokens, {_NOW} + make_interval(secs => $16::float8)
    FROM held WHERE $8::boolean
)
SELECT judged.verdict, judged.granted, judged.requests_level, judged.tokens_level, judged.max_concurrent, judged.month,
    judged.restriction
FROM (SELECT 1) AS always LEFT JOIN judged ON true
"""  # noqa: S608 - made of constants


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may do in a minute, which is also the size of its buckets, and its organisation at once.

    Attributes:
        max_concurrent: Requests, unless the organisation has a number of its own.
        monthly_token_limit: Likewise of input and output of a month; None: no limit.
    """

    requests_per_minute: int
    tokens_per_minute: int
    max_concurrent: int = 1_000
    monthly_token_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a request would use.

    Attributes:
        input_tokens: To be billed.
        output_tokens: At most.
        least_output: A smaller output than this is worth nothing; at most ``output_tokens``.
        price: Of its kind.
        timeout_s: It will have ended by then.
    """

    input_tokens: int
    output_tokens: int
    least_output: int
    price: Price
    timeout_s: float

    @property
    def input_cost(self) -> int:
        """10^-12 USD, were nothing of it cached."""
        return self.price.cost(self.input_tokens, 0, 0)


@dataclass(frozen=True, slots=True)
class Permit:
    """An admitted request, and what its key has left.

    Attributes:
        output_tokens: What is paid for, of the output that was asked for.
    """

    limits: Limits
    requests_left: float
    tokens_left: float
    output_tokens: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """The ``x-ratelimit-*`` headers; ``reset`` is the time until the bucket is full again."""
        return {
            **_bucket_headers("requests", self.limits.requests_per_minute, self.requests_left),
            **_bucket_headers("tokens", self.limits.tokens_per_minute, self.tokens_left),
        }


class Admission:
    """The door of one API process; create it inside the event loop that uses it.

    Args:
        database: Holds the budgets.
        ledger: Settles what is admitted here.
        timeout_s: Longest wait for PostgreSQL before the answer is 503.
        billing_url: Page on which an organisation without entitlement can get one.
    """

    def __init__(
        self, database: Database, ledger: Ledger, *, timeout_s: float = 5.0, billing_url: str = "/billing"
    ) -> None:
        settings = {"application_name": "tollgate admission", "synchronous_commit": "off"}
        self._lane = Lane(database.url, _ADMIT, timeout_s=timeout_s, server_settings=settings, runs_abandoned=False)
        self._ledger = ledger
        self._billing_url = billing_url

    async def draw(self, request_id: UUID, key: Key, limits: Limits, *, now: datetime | None = None) -> Permit:
        """Draws one request from the key's rate, for an answer that costs nothing.

        Args:
            request_id: Of the request.
            key: Who asks.
            limits: Of this key: its own or its plan's.
            now: Clock for tests; None: the database's.

        Raises:
            RateLimited: The bucket holds too little; says when it will hold enough.
            AuthenticationFailed: The key was revoked or expired a moment ago.
            PermissionDenied: Its organisation is suspended.
            DatabaseUnavailable: Nobody can say.
        """
        row = await self._ask(request_id, key, limits, 0, None, now)
        return Permit(limits, row["requests_level"] - 1, row["tokens_level"])

    async def reserve(
        self,
        request_id: UUID,
        key: Key,
        limits: Limits,
        tokens: int,
        work: Work,
        *,
        requested: str = "",
        now: datetime | None = None,
    ) -> Permit:
        """Draws one request and ``tokens`` from the key's rates and holds what ``work`` may cost.

        Whoever is admitted settles or releases the request in the ledger.

        Args:
            request_id: Names the reservation.
            key: Who asks.
            limits: Of this key: its own or its plan's.
            tokens: Prompt and largest output of all that will run, >= 0.
            work: What can be billed of it.
            requested: Model name, for the message of a refusal.
            now: Clock for tests; None: the database's.

        Raises:
            RateLimited: A bucket holds too little, or too many requests run.
            QuotaExceeded: The month's tokens or a spending cap are used up, or there is no entitlement.
            PaymentRequired: The prepaid credit is used up.
            AuthenticationFailed: The key was revoked or expired a moment ago.
            PermissionDenied: Its organisation is suspended.
            DatabaseUnavailable: Nobody can say.
        """
        try:
            row = await self._ask(request_id, key, limits, tokens, work, now, requested)
        except (BrokenOff, asyncio.CancelledError):
            # The reservation may be there all the same.
            self._ledger.release_later(request_id, key)
            raise
        return Permit(limits, row["requests_level"] - 1, row["tokens_level"] - tokens, row["granted"])

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._lane.aclose()

    async def _ask(
        self,
        request_id: UUID,
        key: Key,
        limits: Limits,
        tokens: int,
        work: Work | None,
        now: datetime | None,
        requested: str = "",
    ) -> asyncpg.Record:
        arguments = (
            request_id,
            key.org_id,
            key.id,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.max_concurrent,
            tokens,
            work is not None,
            now,
            *_amounts(work),
            self._ledger.journal.holder,
            0.0 if work is None else work.timeout_s + _EXPIRY_MARGIN_S,
            limits.monthly_token_limit,
        )
        row = await self._lane.ask((key.org_id.bytes, key.id.bytes), arguments)
        if row["verdict"] == "ok":
            return row
        refusal = _refusal(row, limits, tokens, requested, self._billing_url)
        REFUSALS.labels(refusal.code).inc()
        raise refusal


def peek(key: Key, limits: Limits, now: datetime | None = None) -> Permit:
    """What the key had left when it was looked up: for answers that draw nothing."""
    elapsed_s = max(0.0, ((now or datetime.now(UTC)) - key.bucket_updated_at).total_seconds())
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    requests_left = min(rpm, key.requests_level + elapsed_s * rpm / _MINUTE_S)
    return Permit(limits, requests_left, min(tpm, key.tokens_level + elapsed_s * tpm / _MINUTE_S))


def _amounts(work: Work | None) -> tuple[int, int, int, int, int]:
    if work is None:
        return (0, 0, 0, 0, 0)
    return (work.input_tokens, work.input_cost, work.output_tokens, work.least_output, work.price.output)


def _refusal(row: asyncpg.Record, limits: Limits, tokens: int, requested: str, billing_url: str) -> AppError:
    place = f" for {requested}" if requested else ""
    match row["verdict"]:
        case None | "key":
            return AuthenticationFailed("Incorrect API key provided.")
        case "org":
            return PermissionDenied("The organisation of this API key is suspended.", code="organization_suspended")
        case "restricted":
            return QuotaExceeded(f"{_RESTRICTED[row['restriction']]} See {billing_url}.")
        case "concurrency":
            most = row["max_concurrent"]
            return RateLimited(
                f"Rate limit reached{place}: {most} requests at once. Please try again when one has ended.",
                retry_after_s=_CONCURRENCY_RETRY_S,
            )
        case "requests" | "tokens":
            return _over_rate(row, limits, tokens, place)
        case "credit":
            return PaymentRequired(
                f"Your organisation's prepaid credit does not pay for this request{place}."
                f" Please add credit: {billing_url}.",
                headers={"x-should-retry": "false"},
            )
        case verdict:
            what = _USED_UP[verdict]
            following = (row["month"] + timedelta(days=32)).replace(day=1)
            return QuotaExceeded(
                f"{what} does not allow this request{place}; a new month begins at {following:%Y-%m-%d} 00:00 UTC."
            )


_RESTRICTED: Mapping[str | None, str] = {
    None: "Your organisation has no plan in force.",
    "past_due": "A payment of your organisation has failed and was not made good in time.",
    "disputed": "A payment of your organisation is disputed.",
}
_USED_UP: Mapping[str, str] = {
    "month": "What is left of your organisation's tokens of this month",
    "cap": "What is left below your organisation's spend cap of this month",
    "key_cap": "What is left below this API key's spend cap of this month",
}


def _over_rate(row: asyncpg.Record, limits: Limits, tokens: int, place: str) -> RateLimited:
    if tokens > limits.tokens_per_minute:
        # No wait makes this fit, so the client must not try again by itself.
        error = RateLimited(
            f"Request too large{place}: {tokens} tokens (prompt and largest output) of"
            f" {limits.tokens_per_minute} tokens per minute.",
            retry_after_s=_MINUTE_S,
        )
        error.headers["x-should-retry"] = "false"
        return error
    permit = Permit(limits, row["requests_level"], row["tokens_level"])
    requests_wait_s = max(0.0, 1 - permit.requests_left) * _MINUTE_S / limits.requests_per_minute
    tokens_wait_s = max(0.0, tokens - permit.tokens_left) * _MINUTE_S / limits.tokens_per_minute
    what, limit = "requests", limits.requests_per_minute
    if tokens_wait_s > requests_wait_s:
        what, limit = "tokens", limits.tokens_per_minute
    wait_s = max(requests_wait_s, tokens_wait_s, 0.001)
    error = RateLimited(
        f"Rate limit reached{place}: {limit} {what} per minute. Please try again in {_duration(wait_s)}.",
        retry_after_s=wait_s,
    )
    error.headers.update(permit.headers)
    return error


def _bucket_headers(what: str, limit: int, left: float) -> dict[str, str]:
    until_full_s = max(0.0, limit - left) * _MINUTE_S / limit
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, math.floor(left))),
        f"x-ratelimit-reset-{what}": _duration(until_full_s),
    }


def _duration(seconds: float) -> str:
    """OpenAI's spelling: ``20ms``, ``1.5s``, ``1m0s``."""
    if seconds < 1:
        return f"{_ceil(seconds * 1000)}ms"
    if seconds < _MINUTE_S:
        return f"{_ceil(seconds * 1000) / 1000:g}s"
    minutes, rest = divmod(_ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _ceil(value: float) -> int:
    """Rounded up, but not for the last bits of a float: 20.000000000003 is 20."""
    return math.ceil(round(value, 6))
