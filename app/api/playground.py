"""What members try in the portal: the same answers as under /v1, for whoever is signed in there.

No key is sent: the request runs on the organisation's playground key, which nobody has in
full, and is admitted, metered and billed like any other. The cookie that stands for the
member is never enough by itself: a request that another site caused is refused.
"""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app import keys
from app.accounts import permissions, sessions
from app.accounts.sessions import SESSION_COOKIE
from app.api import chat, classifications, completions
from app.api.call import Call, call_of
from app.auth import find_key_by_hash
from app.db import Database
from app.errors import AuthenticationFailed, PermissionDenied

router = APIRouter(prefix="/playground", include_in_schema=False)


async def require_member_call(request: Request) -> Call:
    """The call of a member on their organisation's playground key.

    Raises:
        AuthenticationFailed: Nobody is signed in.
        PermissionDenied: Another site asks, the member's role does not allow it, the organisation is suspended, or
            its key may not be used from here.
    """
    _refuse_other_sites(request)
    # Whoever loses their role while their request is on its way, however slowly, has lost it.
    await request.body()
    database: Database = request.app.state.database
    token = request.cookies.get(SESSION_COOKIE, "")
    async with database.begin() as connection:
        user = await sessions.find_session(connection, token, datetime.now(UTC))
        if user is None:
            raise AuthenticationFailed("Please sign in.", code="sign_in_required")
        permissions.require(user, "playground.use")
        key = await find_key_by_hash(connection, await keys.playground_key(connection, user.org_id))
    key.require_host(request.client.host if request.client else None)
    return call_of(request, key)


MemberCall = Annotated[Call, Depends(require_member_call)]


@router.post("/chat/completions")
async def try_chat(call: MemberCall) -> Response:
    """As POST /v1/chat/completions."""
    return await chat.create_chat_completion(call)


@router.post("/completions")
async def try_completion(call: MemberCall) -> Response:
    """As POST /v1/completions."""
    return await completions.create_completion(call)


@router.post("/classifications")
async def try_classification(call: MemberCall) -> Response:
    """As POST /v1/classifications."""
    return await classifications.create_classification(call)


def _refuse_other_sites(request: Request) -> None:
    # Browsers say both and pages cannot forge either (Fetch Metadata; RFC 6454 section 7).
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    is_ours = site == "same-origin" if site is not None else origin == f"{request.url.scheme}://{request.url.netloc}"
    if not is_ours:
        raise PermissionDenied("Only the portal itself may ask here.", code="other_site")
