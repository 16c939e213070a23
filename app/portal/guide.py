"""/guide: how to call the API with one's own key, what its errors mean, what is billed, what has changed.

Everybody may read it. Whoever is signed in finds their own key in the examples, as far as
it is known: its last four characters.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt

from app import keys as api_keys
from app.accounts.permissions import allows
from app.billing.catalog import LISTED
from app.keys import KeyListing
from app.portal.examples import base_url, example_of, published
from app.portal.page import PageRoute, render
from app.portal.session import database_of, find_user, settings_of

_CHANGELOG = "CHANGELOG.md"

router = APIRouter(include_in_schema=False, route_class=PageRoute)


def _(message: str) -> str:
    """Marks a text for the catalogues."""
    return message


@dataclass(frozen=True, slots=True)
class Explained:
    """An error of the API and what its caller can do.

    Attributes:
        is_retried: Whether the official client sends the request again by itself.
    """

    status: int
    code: str
    meaning: str
    is_retried: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A way in which a request ends, and what of it is billed."""

    what: str
    input: str
    output: str
    finish: str


ERRORS = (
    Explained(400, "invalid_request_error", _("A parameter is wrong, unknown or missing; the answer names it.")),
    Explained(400, "invalid_json", _("The body is not JSON.")),
    Explained(400, "missing_required_parameter", _("A parameter that is needed is missing; the answer names it.")),
    Explained(400, "unknown_parameter", _("The route knows no such parameter; it may be misspelt.")),
    Explained(400, "wrong_model_kind", _("The model does another kind of work than this route asks for.")),
    Explained(400, "context_length_exceeded", _("The prompt, with the asked output, is longer than the model reads.")),
    Explained(401, "invalid_api_key", _("There is no key, or it is malformed, unknown, expired or revoked.")),
    Explained(402, "insufficient_quota", _("Prepaid credit does not pay for the request. Add credit.")),
    Explained(403, "permission_denied", _("The key may not do this: its scopes do not allow it.")),
    Explained(403, "model_not_allowed", _("The key is limited to other models.")),
    Explained(403, "ip_not_allowed", _("The key may not be used from this address.")),
    Explained(403, "organization_suspended", _("The organisation is suspended.")),
    Explained(404, "model_not_found", _("There is no such model, or no such thing of yours.")),
    Explained(404, "request_not_found", _("No request of this id was billed.")),
    Explained(404, "key_not_found", _("There is no such key.")),
    Explained(404, "unknown_url", _("There is no such route.")),
    Explained(405, "method_not_allowed", _("The route knows no such method.")),
    Explained(409, "conflict", _("The request contradicts what is there.")),
    Explained(409, "idempotency_key_reused", _("The Idempotency-Key was used with another request.")),
    Explained(409, "shown_once", _("The request was carried out before; its answer held a key, which is not kept.")),
    Explained(409, "key_revoked", _("A revoked key cannot be changed.")),
    Explained(409, "key_not_active", _("Only an active key can be rotated.")),
    Explained(409, "key_not_shown", _("The key of the playground cannot be rotated.")),
    Explained(409, "key_replaced", _("The key has a successor already.")),
    Explained(409, "too_many_keys", _("The organisation has as many keys as it may have.")),
    Explained(413, "request_too_large", _("The body is larger than 4 MiB.")),
    Explained(429, "rate_limit_exceeded", _("Too much in this minute, or at once. Wait for Retry-After."), True),
    Explained(
        429, "insufficient_quota", _("Tokens of the month, a cap, or the plan do not allow it. Waiting is no help.")
    ),
    Explained(500, "internal_error", _("A fault of ours. Nothing is billed; tell us the request id."), True),
    Explained(503, "overloaded", _("The queue is full. Wait for Retry-After."), True),
    Explained(503, "engine_unavailable", _("The model is being started. Wait for Retry-After."), True),
    Explained(
        503, "database_unavailable", _("Nobody can say what you may spend just now. Wait for Retry-After."), True
    ),
    Explained(504, "deadline_exceeded", _("The answer was not complete in the time that you or we allow."), True),
)
"""What a caller of /v1 may meet."""

RULES = (
    Rule(_("It was completed"), _("all of it"), _("all of it"), "stop, length"),
    Rule(_("The budget paid for a part of the output"), _("all of it"), _("up to there"), "length"),
    Rule(_("You left a stream, or stopped reading it"), _("all of it"), _("what was sent"), "aborted"),
    Rule(_("You left before a whole answer was there"), _("all of it"), _("nothing"), "aborted"),
    Rule(_("It failed or timed out before the first token"), _("nothing"), _("nothing"), ""),
    Rule(_("It failed or timed out in a stream"), _("all of it"), _("what was sent"), "error"),
    Rule(_("Our server broke down in a stream"), _("all of it"), _("what was sent, or one part less"), "error"),
    Rule(_("It was refused"), _("nothing"), _("nothing"), ""),
    Rule(_("It was sent again with the same Idempotency-Key"), _("nothing more"), _("nothing more"), ""),
    Rule(
        _("You left a request that had an Idempotency-Key"),
        _("all of it"),
        _("all of it: the answer is finished and kept for you"),
        "stop, length",
    ),
    Rule(_("It asked for several answers to one prompt"), _("once"), _("of those that are returned"), "stop, length"),
    Rule(
        _("A part of the prompt was in the cache"), _("that part at the cached price"), _("all of it"), "stop, length"
    ),
    Rule(_("It was a classification or an embedding"), _("all texts"), _("nothing"), "stop"),
    Rule(_("One text of several was wrong"), _("nothing: all are refused"), _("nothing"), ""),
)
"""The published rule, as docs/billing.md has it in full."""


@router.get("/guide")
async def quick_start(request: Request) -> Response:
    """The first call, with one's own key."""
    key = await _own_key(request)
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    return render(
        request,
        "guide.html",
        key="tg_live_…" if key is None else f"{key.prefix}…{key.last4}",
        has_key=key is not None,
        base_url=base_url(request),
        example=example_of(cards),
        classifier=next((card for card in cards if card.kind == "classification"), None),
    )


@router.get("/guide/errors")
async def errors(request: Request) -> Response:
    """What errors mean and what to do."""
    await find_user(request)
    return render(request, "guide_errors.html", errors=ERRORS)


@router.get("/guide/limits")
async def limits(request: Request) -> Response:
    """What each plan allows, and how a client sees it coming."""
    await find_user(request)
    return render(request, "guide_limits.html", plans=LISTED)


@router.get("/guide/billing")
async def billing_rule(request: Request) -> Response:
    """What is billed, and when."""
    await find_user(request)
    return render(request, "guide_billing.html", rules=RULES)


@router.get("/guide/changes")
async def changes(request: Request) -> Response:
    """The changelog."""
    await find_user(request)
    return render(request, "guide_changes.html", changes=await asyncio.to_thread(_changes))


async def _own_key(request: Request) -> KeyListing | None:
    """The newest key of the visitor's organisation that can send the examples and that they may see."""
    user = await find_user(request)
    if user is None or not allows(user.role, "keys.read"):
        return None
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        found = await api_keys.list_keys(connection, user.org_id, limit=50)
    return next((key for key in found if key.last4 and key.is_active(now) and "generation" in key.scopes), None)


@cache
def _changes() -> str:
    """The changelog as HTML; markup in it is shown, not obeyed."""
    # Beside the package in a checkout, inside it once installed.
    beside = Path(str(files("app"))).parent / _CHANGELOG
    path = beside if beside.exists() else Path(str(files("app"))) / _CHANGELOG
    text = path.read_text(encoding="utf-8").partition("\n## ")[2]
    return str(MarkdownIt("commonmark", {"html": False}).render(f"## {text}"))
