"""/v1/keys: an organisation's keys, managed with a key of the scope ``keys``; and reports of leaked ones."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit, keys, throttle
from app.api.answers import json_response
from app.api.call import Call, RequiredCall, Services, parse_body
from app.api.key_schemas import (
    ApiKeyAnswer,
    CreatedKey,
    CreateKeyBody,
    KeyList,
    KeyTerms,
    LeakBody,
    LeakReceipt,
    RotateKeyBody,
    UpdateKeyBody,
)
from app.api.middleware import record_of
from app.api.openapi import body_of, public_responses, read_responses, write_responses
from app.api.usage_schemas import Money
from app.auth import caller_ip, is_well_formed
from app.billing.amounts import money, parse_usd
from app.db import Database
from app.errors import BadRequest, NotFound, RateLimited
from app.key_terms import Terms, parse_networks
from app.keys import KeyListing, NewKey
from app.telemetry import get_logger
from app.throttle import Attempt, Limit

log = get_logger(__name__)

OVERLAP = timedelta(hours=24)
"""How long a rotated key goes on working where nobody says otherwise."""
LEAK_REPORTS = Limit(60, timedelta(minutes=1))
"""From one address; scanners report what they find in one go."""
_MINUTE_S = 60.0

_EXAMPLE = {
    "id": "019ab4b0-0000-7000-8000-000000000001",
    "object": "key",
    "name": "production",
    "prefix": "tg_live_",
    "last4": "x7Qa",
    "state": "active",
    "scopes": ["generation"],
    "allowed_models": ["shakespeare"],
    "ip_allow": ["192.0.2.0/24"],
    "requests_per_minute": 600,
    "tokens_per_minute": None,
    "monthly_cap": {"value": "25.000000", "currency": "usd"},
    "created_at": "2026-11-24T09:30:00Z",
    "expires_at": None,
    "revoked_at": None,
    "revoke_reason": None,
    "replaced_by": None,
    "last_used_at": "2026-11-24T11:02:17Z",
}

router = APIRouter(tags=["keys"])
public_router = APIRouter(tags=["keys"])

KeyId = Annotated[str, Path(max_length=64, description="As in the list.")]


class KeyParameters(BaseModel):
    """The query string."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100, description="Keys on a page.")] = 20
    after: Annotated[UUID | None, Field(description="`next` of the page before.")] = None


@router.get(
    "/v1/keys", **read_responses(KeyList, {"object": "list", "data": [_EXAMPLE], "has_more": False, "next": None})
)
async def list_keys(call: RequiredCall, parameters: Annotated[KeyParameters, Query()]) -> Response:
    """The organisation's keys, newest first, those that have ended included."""
    await _enter(call)
    limit = parameters.limit
    async with call.services.database.begin() as connection:
        found = await keys.list_keys(connection, call.key.org_id, limit=limit + 1, after=parameters.after)
    page, has_more = found[:limit], len(found) > limit
    next_page = str(page[-1].id) if has_more else None
    data = [ApiKeyAnswer(**_shown(key)) for key in page]
    return json_response(KeyList(object="list", data=data, has_more=has_more, next=next_page))


@router.post("/v1/keys", **write_responses(CreatedKey), **body_of(CreateKeyBody))
async def create_key(call: RequiredCall) -> Response:
    """A new key. It is shown in this answer and never again: only a hash of it is kept."""
    call.key.require("keys")
    body = await call.body(CreateKeyBody)
    await call.admit()
    async with call.services.database.begin() as connection:
        terms = Terms(**{"name": body.name, **_changes(body)})
        new = await keys.mint_key(connection, call.services.settings, call.key.org_id, terms)
        created = await keys.get_key(connection, new.id, call.key.org_id)
        await _note(call, connection, "key.create", new.id, after=created.terms.told)
    return _created(call, created, new)


@router.get("/v1/keys/{key_id}", **read_responses(ApiKeyAnswer, _EXAMPLE))
async def get_key(call: RequiredCall, key_id: KeyId) -> Response:
    """One key."""
    await _enter(call)
    async with call.services.database.begin() as connection:
        found = await keys.get_key(connection, _key_id(key_id), call.key.org_id)
    return json_response(ApiKeyAnswer(**_shown(found)))


@router.patch("/v1/keys/{key_id}", **write_responses(ApiKeyAnswer, _EXAMPLE), **body_of(UpdateKeyBody))
async def update_key(call: RequiredCall, key_id: KeyId) -> Response:
    """Changes what a key may do, within a second everywhere. What is left out stays; `null` takes a limit away."""
    call.key.require("keys")
    body = await call.body(UpdateKeyBody)
    await call.admit()
    changes = _changes(body)
    for required in ("name", "scopes"):
        if changes.get(required, "") is None:
            raise BadRequest(f"'{required}' cannot be null.", param=required)
    async with call.services.database.begin() as connection:
        before = await keys.get_key(connection, _key_id(key_id), call.key.org_id)
        changed = await keys.update_key(connection, before.id, changes, call.key.org_id)
        await _note(call, connection, "key.change", before.id, before=before.terms.told, after=changed.terms.told)
    return json_response(ApiKeyAnswer(**_shown(changed)))


@router.delete("/v1/keys/{key_id}", **read_responses(ApiKeyAnswer, {**_EXAMPLE, "state": "revoked"}))
async def revoke_key(call: RequiredCall, key_id: KeyId) -> Response:
    """Ends a key for good, within a second everywhere. Its usage stays; revoking it again changes nothing."""
    await _enter(call)
    async with call.services.database.begin() as connection:
        revoked = await keys.revoke_key(connection, _key_id(key_id), call.key.org_id)
        await _note(call, connection, "key.revoke", revoked.id)
    return json_response(ApiKeyAnswer(**_shown(revoked)))


@router.post("/v1/keys/{key_id}/rotate", **write_responses(CreatedKey), **body_of(RotateKeyBody))
async def rotate_key(call: RequiredCall, key_id: KeyId) -> Response:
    """A successor on the same terms, shown in this answer only. The old key goes on working for a while.

    If the answer got lost: revoke the successor (`replaced_by` of the old key) and rotate again.
    """
    call.key.require("keys")
    body = await call.body(RotateKeyBody)
    await call.admit()
    overlap = OVERLAP if body.overlap_s is None else timedelta(seconds=body.overlap_s)
    old_ends_at = datetime.now(UTC) + overlap
    async with call.services.database.begin() as connection:
        new = await keys.rotate_key(
            connection, call.services.settings, _key_id(key_id), old_ends_at=old_ends_at, org_id=call.key.org_id
        )
        created = await keys.get_key(connection, new.id, call.key.org_id)
        after = {"replaced_by": new.id, "old_ends_at": old_ends_at}
        await _note(call, connection, "key.rotate", _key_id(key_id), after=after)
    return _created(call, created, new)


@public_router.post("/v1/leaked-keys", **public_responses(LeakReceipt), **body_of(LeakBody, is_public=True))
async def report_leaked_key(request: Request) -> Response:
    """Report a key that you found where it should not be: it ends at once. Needs no key of your own.

    The answer is the same whether the key exists or not; what is not a key at all, by its form and checksum, is
    refused.
    """
    services = Services.of(request.app.state)
    body = await parse_body(request, LeakBody)
    key = body.key.strip()
    if not is_well_formed(key):
        raise BadRequest("This is not one of our keys: its form or its checksum is wrong.", param="key")
    await _slow_down(services.database, request)
    async with services.database.begin() as connection:
        key_id = await keys.report_leak(connection, services.settings, key)
        if key_id is not None:
            await _note_leak(request, connection, key_id)
    log.warning("key.reported_as_leaked", key_id=None if key_id is None else str(key_id))
    return json_response(LeakReceipt(object="leak_report", status="received"))


async def _note(
    call: Call,
    connection: AsyncConnection,
    action: str,
    key_id: UUID,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Writes into the audit log what was done by a key; the last step of its transaction."""
    await audit.record(
        connection,
        org_id=call.key.org_id,
        actor=f"key:{call.key.id}",
        action=action,
        target=f"key:{key_id}",
        before=before,
        after=after,
        ip=caller_ip(call.request),
        request_id=call.id,
    )


async def _note_leak(request: Request, connection: AsyncConnection, key_id: UUID) -> None:
    leaked = await keys.get_key(connection, key_id)
    await audit.record(
        connection,
        org_id=leaked.org_id,
        actor=audit.SOMEBODY,
        action="key.leak",
        target=f"key:{key_id}",
        ip=caller_ip(request),
        request_id=record_of(request.scope).id,
    )


async def _enter(call: Call) -> None:
    call.key.require("keys")
    await call.admit()


async def _slow_down(database: Database, request: Request) -> None:
    attempt = Attempt(f"leak report from {request.client.host if request.client else ''}", LEAK_REPORTS)
    async with database.begin() as connection:
        is_allowed = await throttle.take(connection, [attempt], datetime.now(UTC))
    if not is_allowed:
        raise RateLimited("Too many reports from this address; try again in a minute.", retry_after_s=_MINUTE_S)


def _changes(body: KeyTerms) -> dict[str, Any]:
    """The fields of ``Terms`` that the body sets; for a new key, null is the same as nothing."""
    is_new = isinstance(body, CreateKeyBody)
    changes: dict[str, Any] = {}
    for name in body.model_fields_set:
        value = getattr(body, name)
        if value is None and is_new:
            continue
        changes[name] = value if value is None else _term(name, value)
    return changes


def _term(name: str, value: Any) -> Any:  # noqa: ANN401 - of each field its own
    if name == "ip_allow":
        return parse_networks(value)
    if name == "monthly_cap":
        return parse_usd(value.value, name)
    return tuple(value) if isinstance(value, list) else value


def _key_id(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise NotFound("There is no such key.", code="key_not_found", param="key_id") from None


def _created(call: Call, key: KeyListing, new: NewKey) -> Response:
    record_of(call.request.scope).is_secret = True
    return json_response(CreatedKey(**_shown(key), key=new.key))


def _shown(key: KeyListing) -> dict[str, Any]:
    terms = key.terms
    return {
        "id": str(key.id),
        "object": "key",
        "name": terms.name,
        "prefix": key.prefix,
        "last4": key.last4,
        "state": key.state(datetime.now(UTC)),
        "scopes": list(terms.scopes),
        "allowed_models": None if terms.allowed_models is None else list(terms.allowed_models),
        "ip_allow": None if terms.ip_allow is None else [str(network) for network in terms.ip_allow],
        "requests_per_minute": terms.requests_per_minute,
        "tokens_per_minute": terms.tokens_per_minute,
        "monthly_cap": None if terms.monthly_cap is None else Money.model_validate(money(terms.monthly_cap)),
        "created_at": key.created_at,
        "expires_at": terms.expires_at,
        "revoked_at": key.revoked_at,
        "revoke_reason": key.revoke_reason,
        "replaced_by": None if key.replaced_by is None else str(key.replaced_by),
        "last_used_at": key.last_used_at,
    }
