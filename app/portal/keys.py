"""/keys: an organisation's API keys, made, changed, rotated and ended by its members.

A key is shown in full by the answer of the form that made it, and never again.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app import keys as api_keys
from app.accounts.sessions import PortalUser
from app.auth import SCOPES
from app.billing.statement import Query, read_lines
from app.errors import AppError, BadRequest, Conflict, NotFound
from app.key_terms import Terms
from app.keys import KeyListing, NewKey
from app.portal.examples import base_url, example_of, published
from app.portal.forms import read_form, text_of
from app.portal.i18n import language_of
from app.portal.key_form import DEFAULTS, KeyFields, fields_of, read_terms
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user, settings_of

OVERLAPS_H = (0, 1, 24, 168)
"""Hours for which a rotated key may go on working."""
PAGE_KEYS = 50

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/keys")
async def list_keys(request: Request) -> Response:
    """The organisation's keys, newest first, and what each has cost this month."""
    user = await require_user(request, "keys.read")
    now, after = datetime.now(UTC), request.query_params.get("after")
    async with database_of(request).begin() as connection:
        found = await api_keys.list_keys(
            connection, user.org_id, limit=PAGE_KEYS + 1, after=None if after is None else _key_id(after)
        )
        shown = found[:PAGE_KEYS]
        lines, _ = await read_lines(connection, _month_of(user, now, [key.id for key in shown]))
    costs = {line.key_id: line.cost for line in lines}
    next_page = f"/keys?after={shown[-1].id}" if len(found) > PAGE_KEYS else ""
    return render(
        request, "keys.html", keys=shown, costs=costs, now=now, first_page="/keys" if after else "", next_page=next_page
    )


@router.get("/keys/new")
async def show_new_key(request: Request) -> Response:
    """The form for a new key."""
    await require_user(request, "keys.write")
    return await _form_page(request, None, DEFAULTS)


@router.post("/keys")
async def create_key(request: Request) -> Response:
    """Makes a key and shows it."""
    user = await require_user(request, "keys.write")
    form = await read_form(request)
    try:
        terms = read_terms(form, Terms(""))
        async with database_of(request).begin() as connection:
            new = await api_keys.mint_key(connection, settings_of(request), user.org_id, terms, created_by=user.user_id)
            created = await api_keys.get_key(connection, new.id, user.org_id)
            await note(request, connection, user, "key.create", f"key:{new.id}", after=created.terms.told)
    except (BadRequest, Conflict) as error:
        return await _form_page(request, None, fields_of(form), error)
    return await _shown_once(request, created, new)


@router.get("/keys/{key_id}")
async def show_key(request: Request, key_id: str) -> Response:
    """One key: what it may do, what it has cost, and what can be done with it."""
    user = await require_user(request, "keys.read")
    key = await _read_key(request, user, key_id)
    return await _form_page(request, key, KeyFields.of(key.terms))


@router.post("/keys/{key_id}")
async def change_key(request: Request, key_id: str) -> Response:
    """Changes what a key may do, within a second everywhere."""
    user = await require_user(request, "keys.write")
    form = await read_form(request)
    key = await _read_key(request, user, key_id)
    try:
        terms = read_terms(form, key.terms)
        changes = {name: getattr(terms, name) for name in Terms.__slots__}
        async with database_of(request).begin() as connection:
            changed = await api_keys.update_key(connection, key.id, changes, user.org_id)
            before, after = key.terms.told, changed.terms.told
            await note(request, connection, user, "key.change", f"key:{key.id}", before=before, after=after)
    except (BadRequest, Conflict) as error:
        return await _form_page(request, key, fields_of(form), error)
    return RedirectResponse(f"/keys/{key.id}?done=saved", SEE_OTHER)


@router.post("/keys/{key_id}/rotate")
async def rotate_key(request: Request, key_id: str) -> Response:
    """A successor on the same terms, shown once; the old key goes on working for a while.

    Raises:
        BadRequest: For as long as nobody may.
        NotFound: The organisation has no such key.
        Conflict: The key has ended, or was rotated before.
    """
    user = await require_user(request, "keys.write")
    form = await read_form(request)
    overlap = text_of(form, "overlap")
    if overlap not in map(str, OVERLAPS_H):
        raise BadRequest("Choose for how long the old key goes on working.", param="overlap")
    old_id, ends_at = _key_id(key_id), datetime.now(UTC) + timedelta(hours=int(overlap))
    async with database_of(request).begin() as connection:
        new = await api_keys.rotate_key(
            connection,
            settings_of(request),
            old_id,
            old_ends_at=ends_at,
            org_id=user.org_id,
            created_by=user.user_id,
        )
        created = await api_keys.get_key(connection, new.id, user.org_id)
        after = {"replaced_by": new.id, "old_ends_at": ends_at}
        await note(request, connection, user, "key.rotate", f"key:{old_id}", after=after)
    return await _shown_once(request, created, new)


@router.post("/keys/{key_id}/revoke")
async def revoke_key(request: Request, key_id: str) -> Response:
    """Ends a key for good.

    Raises:
        NotFound: The organisation has no such key.
    """
    user = await require_user(request, "keys.write")
    await read_form(request)
    id = _key_id(key_id)
    async with database_of(request).begin() as connection:
        await api_keys.revoke_key(connection, id, user.org_id)
        await note(request, connection, user, "key.revoke", f"key:{id}")
    return RedirectResponse(f"/keys/{id}?done=revoked", SEE_OTHER)


async def _form_page(
    request: Request, key: KeyListing | None, fields: KeyFields, error: AppError | None = None
) -> Response:
    """The form of a key, or of a new one; with what is wrong with it."""
    user: PortalUser = request.state.user
    now = datetime.now(UTC)
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    cost, successor = Decimal(0), None
    if key is not None:
        async with database_of(request).begin() as connection:
            lines, _ = await read_lines(connection, _month_of(user, now, [key.id]))
            if key.replaced_by is not None:
                successor = await api_keys.get_key(connection, key.replaced_by, user.org_id)
        cost = sum((line.cost for line in lines), Decimal(0))
    problems = {} if error is None else {error.param or "": language_of(request).told(error)}
    return render(
        request,
        "key.html" if key else "key_new.html",
        200 if error is None else error.status,
        key=key,
        fields=fields,
        problems=problems,
        models=_models(fields, [card.name for card in cards]),
        scopes=SCOPES,
        overlaps=OVERLAPS_H,
        now=now,
        cost=cost,
        successor=successor,
        done=request.query_params.get("done"),
    )


async def _shown_once(request: Request, key: KeyListing, new: NewKey) -> Response:
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    return render(
        request, "key_created.html", 201, key=key, secret=new.key, base_url=base_url(request), example=example_of(cards)
    )


async def _read_key(request: Request, user: PortalUser, key_id: str) -> KeyListing:
    async with database_of(request).begin() as connection:
        return await api_keys.get_key(connection, _key_id(key_id), user.org_id)


def _month_of(user: PortalUser, now: datetime, key_ids: Sequence[UUID]) -> Query:
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Query(user.org_id, month, now, "month", ("key",), PAGE_KEYS, key_ids=key_ids)


def _models(fields: KeyFields, published_names: Sequence[str]) -> list[str]:
    """Those that can be ticked: what is served, and what the key names beside it."""
    return sorted({*published_names, *fields.allowed_models})


def _key_id(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise NotFound("There is no such key.", code="key_not_found") from None
