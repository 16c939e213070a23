"""/audit: who changed what in the organisation, newest first."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app import audit
from app.accounts.users import emails_of
from app.audit import Entry
from app.errors import BadRequest
from app.keys import find_keys
from app.portal.i18n import Language, language_of
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user

PAGE_ENTRIES = 50
PERSON = "user:"
KEY = "key:"
_MAX_ID_DIGITS = 18
_AMOUNTS = frozenset({"spend_cap", "monthly_cap", "credit_added"})
"""What the log has in 10^-12 USD."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/audit")
async def show_audit_log(request: Request) -> Response:
    """The organisation's entries, with those that tell of logins or without.

    Raises:
        BadRequest: ``before`` is no place in the log.
    """
    user = await require_user(request, "audit.read")
    before, with_sessions = request.query_params.get("before", ""), request.query_params.get("sessions") != "no"
    async with database_of(request).begin() as connection:
        entries = await audit.list_entries(
            connection, user.org_id, before=_place(before), limit=PAGE_ENTRIES + 1, with_sessions=with_sessions
        )
        shown = entries[:PAGE_ENTRIES]
        emails = await emails_of(connection, _ids(shown, PERSON))
        keys = await find_keys(connection, user.org_id, _ids(shown, KEY))
    language = language_of(request)
    return render(
        request,
        "audit.html",
        entries=shown,
        people={f"{PERSON}{id}": email for id, email in emails.items()},
        keys={f"{KEY}{key.id}": key.label for key in keys},
        changes={entry.id: _changes(entry.before, entry.after, language) for entry in shown},
        with_sessions=with_sessions,
        is_first=not before,
        next_before=shown[-1].id if len(entries) > PAGE_ENTRIES else None,
    )


def _place(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS):
        raise BadRequest("There is no such place in the audit log.", param="before")
    return int(text)


def _ids(entries: Sequence[Entry], kind: str) -> set[UUID]:
    """Those of this kind that the entries name."""
    named = {name for entry in entries for name in (entry.actor, entry.target)}
    return {UUID(name.removeprefix(kind)) for name in named if name.startswith(kind)}


def _changes(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, language: Language
) -> list[tuple[str, str, str]]:
    """Name, old value and new value of each part that differs; empty where there was or is none."""
    old, new = before or {}, after or {}
    return [
        (name, _text(name, old.get(name), language), _text(name, new.get(name), language))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _text(name: str, value: object, language: Language) -> str:
    if value is None:
        return ""
    if name in _AMOUNTS and isinstance(value, int):
        return language.dollars(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
