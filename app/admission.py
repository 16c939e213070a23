"""May this request run now? One guarded statement draws from the key's rate buckets.

Each key has a bucket of requests and one of tokens, each as large as its limit per
minute and refilled continuously. The ``UPDATE`` refills and draws only where both
hold enough, the key is still valid and its organisation active; no row means no. The
row lock makes it exact across requests and processes, and the clock is the
database's, which all of them share.

Tokens are drawn for the prompt and the largest possible output, and not given back:
a rate is about what was asked for at once, what was used is billed elsewhere.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from app.auth import Key
from app.db import Database
from app.errors import AppError, AuthenticationFailed, RateLimited
from app.telemetry import REFUSALS

_MINUTE_S = 60.0

# now() is one instant for the whole transaction, so refill and date agree.
_NOW = "COALESCE(CAST(:now AS timestamptz), now())"
# GREATEST: whoever waited for the row lock may carry an older clock than its last writer.
_ELAPSED = f"GREATEST(0, EXTRACT(EPOCH FROM {_NOW} - b.updated_at))::float8"
_REQUESTS = f"LEAST(CAST(:rpm AS float8), b.requests_level + {_ELAPSED} * CAST(:rpm AS float8) / 60)"
_TOKENS = f"LEAST(CAST(:tpm AS float8), b.tokens_level + {_ELAPSED} * CAST(:tpm AS float8) / 60)"

_DRAW = text(
    f"UPDATE rate_buckets b SET requests_level = {_REQUESTS} - 1, tokens_level = {_TOKENS} - :tokens,"  # noqa: S608
    f" updated_at = GREATEST(b.updated_at, {_NOW})"
    " FROM api_keys k JOIN orgs o ON o.id = k.org_id"
    " WHERE b.key_id = :key_id AND k.id = b.key_id AND k.revoked_at IS NULL AND o.status = 'active'"
    f" AND (k.expires_at IS NULL OR k.expires_at > {_NOW})"
    f" AND {_REQUESTS} >= 1 AND {_TOKENS} >= :tokens"
    " RETURNING b.requests_level, b.tokens_level"
)
_EXPLAIN = text(
    f"SELECT {_REQUESTS} AS requests_level, {_TOKENS} AS tokens_level,"  # noqa: S608
    f" k.revoked_at IS NULL AND o.status = 'active' AND (k.expires_at IS NULL OR k.expires_at > {_NOW}) AS is_valid"
    " FROM rate_buckets b JOIN api_keys k ON k.id = b.key_id JOIN orgs o ON o.id = k.org_id WHERE b.key_id = :key_id"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may do in a minute; also the size of its buckets."""

    requests_per_minute: int
    tokens_per_minute: int


@dataclass(frozen=True, slots=True)
class Permit:
    """An admitted request, and what its key has left."""

    limits: Limits
    requests_left: float
    tokens_left: float

    @property
    def headers(self) -> dict[str, str]:
        """The ``x-ratelimit-*`` headers; ``reset`` is the time until the bucket is full again."""
        return {
            **_bucket_headers("requests", self.limits.requests_per_minute, self.requests_left),
            **_bucket_headers("tokens", self.limits.tokens_per_minute, self.tokens_left),
        }


async def admit(
    database: Database, key: Key, limits: Limits, tokens: int, *, requested: str = "", now: datetime | None = None
) -> Permit:
    """Draws one request and ``tokens`` from the key's buckets, or refuses and draws nothing.

    Args:
        database: Used for one short transaction.
        key: Who asks.
        limits: Of this key: its own or its plan's.
        tokens: Prompt and largest possible output, >= 0.
        requested: Model name, for the message of a refusal.
        now: Clock for tests; None: the database's.

    Raises:
        RateLimited: A bucket holds too little; says when it will hold enough.
        AuthenticationFailed: The key was revoked or expired a moment ago.
    """
    bind = {
        "key_id": key.id,
        "rpm": limits.requests_per_minute,
        "tpm": limits.tokens_per_minute,
        "tokens": float(tokens),
        "now": now,
    }
    async with database.begin() as connection:
        row = (await connection.execute(_DRAW, bind)).one_or_none()
        if row is not None:
            return Permit(limits, row.requests_level, row.tokens_level)
        explanation = {name: value for name, value in bind.items() if name != "tokens"}
        state = (await connection.execute(_EXPLAIN, explanation)).mappings().one_or_none()
    refusal = _refusal(state, limits, tokens, requested)
    REFUSALS.labels(refusal.code).inc()
    raise refusal


def peek(key: Key, limits: Limits, now: datetime | None = None) -> Permit:
    """What the key had left when it was looked up: for answers that draw nothing."""
    elapsed_s = max(0.0, ((now or datetime.now(UTC)) - key.bucket_updated_at).total_seconds())
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    requests_left = min(rpm, key.requests_level + elapsed_s * rpm / _MINUTE_S)
    return Permit(limits, requests_left, min(tpm, key.tokens_level + elapsed_s * tpm / _MINUTE_S))


def _refusal(state: Mapping[Any, Any] | None, limits: Limits, tokens: int, requested: str) -> AppError:
    if state is None or not state["is_valid"]:
        return AuthenticationFailed("Incorrect API key provided.")
    place = f" for {requested}" if requested else ""
    if tokens > limits.tokens_per_minute:
        # No wait makes this fit, so the client must not try again by itself.
        error = RateLimited(
            f"Request too large{place}: {tokens} tokens (prompt and largest output) of"
            f" {limits.tokens_per_minute} tokens per minute.",
            retry_after_s=_MINUTE_S,
        )
        error.headers["x-should-retry"] = "false"
        return error
    permit = Permit(limits, state["requests_level"], state["tokens_level"])
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
