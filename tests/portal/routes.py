"""Every route of the portal, and who may use it: a new one fails the walks until it is named here."""

from fastapi.routing import APIRoute

from app.portal import pages

EVERYBODY = "everybody"
"""Signed in or not."""
PERSON = "person"
"""Whoever is signed in, for their own account."""
MEMBER = "member"
"""Whoever is signed in and belongs to an organisation."""

ROUTES = {
    "GET /": EVERYBODY,
    "GET /guide": EVERYBODY,
    "GET /guide/billing": EVERYBODY,
    "GET /guide/changes": EVERYBODY,
    "GET /guide/errors": EVERYBODY,
    "GET /guide/limits": EVERYBODY,
    "GET /language/{code}": EVERYBODY,
    "GET /signup": EVERYBODY,
    "POST /signup": EVERYBODY,
    "GET /confirm": EVERYBODY,
    "POST /confirm": EVERYBODY,
    "GET /login": EVERYBODY,
    "POST /login": EVERYBODY,
    "GET /login/code": EVERYBODY,
    "POST /login/code": EVERYBODY,
    "POST /logout": EVERYBODY,
    "GET /forgot": EVERYBODY,
    "POST /forgot": EVERYBODY,
    "GET /reset": EVERYBODY,
    "POST /reset": EVERYBODY,
    "GET /invitation": EVERYBODY,
    "POST /invitation/join": EVERYBODY,
    "POST /invitation/accept": PERSON,
    "GET /security": PERSON,
    "POST /security/password": PERSON,
    "POST /security/sessions/end": PERSON,
    "POST /security/sessions/end-all": PERSON,
    "POST /security/second-factor": PERSON,
    "GET /security/second-factor": PERSON,
    "POST /security/second-factor/confirm": PERSON,
    "POST /security/second-factor/off": PERSON,
    "POST /security/recovery-codes": PERSON,
    "GET /organizations": PERSON,
    "POST /organizations": PERSON,
    "POST /organizations/switch": PERSON,
    "POST /organizations/leave": MEMBER,
    "GET /settings": MEMBER,
    "POST /settings": MEMBER,
    "GET /overview": "overview.read",
    "GET /live": "usage.read",
    "GET /usage": "usage.read",
    "GET /usage/rows": "usage.read",
    "GET /usage/lines.csv": "usage.read",
    "GET /usage/rows.csv": "usage.read",
    "GET /playground": "playground.use",
    "GET /keys": "keys.read",
    "GET /keys/new": "keys.write",
    "POST /keys": "keys.write",
    "GET /keys/{key_id}": "keys.read",
    "POST /keys/{key_id}": "keys.write",
    "POST /keys/{key_id}/rotate": "keys.write",
    "POST /keys/{key_id}/revoke": "keys.write",
    "GET /limits": "limits.read",
    "POST /limits": "limits.write",
    "GET /alerts": "limits.read",
    "POST /alerts/webhooks": "limits.write",
    "POST /alerts/webhooks/{endpoint_id}/remove": "limits.write",
    "POST /alerts/webhooks/{endpoint_id}/renew": "limits.write",
    "POST /alerts/webhooks/{endpoint_id}/test": "limits.write",
    "GET /billing": "billing.read",
    "GET /billing/change": "billing.write",
    "GET /billing/invoices/{invoice_id}": "billing.read",
    "POST /billing/subscribe": "billing.write",
    "POST /billing/credit": "billing.write",
    "POST /billing/portal": "billing.write",
    "POST /billing/change": "billing.write",
    "POST /billing/cancel": "billing.write",
    "POST /billing/resume": "billing.write",
    "GET /members": "members.read",
    "POST /members/invite": "members.write",
    "POST /members/{user_id}/role": "members.write",
    "POST /members/{user_id}/remove": "members.write",
    "POST /members/invitations/{invitation_id}/withdraw": "members.write",
    "GET /audit": "audit.read",
    "GET /data": "settings.read",
    "GET /data/requests": "settings.read",
    "POST /data/prompts": "settings.write",
    "POST /data/export": "settings.write",
    "POST /data/delete": "org.delete",
}
"""Method and path; a permission, or one of the words above."""


def served() -> set[str]:
    """Method and path of every route that the portal has."""
    found = set()
    for included in pages.router.routes:
        inner = getattr(included, "original_router", None)
        for route in [included] if inner is None else inner.routes:
            assert isinstance(route, APIRoute)
            found |= {f"{method} {route.path}" for method in route.methods or ()}
    return found


def filled(route: str, value: str) -> tuple[str, str]:
    """Method and path of a route, with ``value`` in each of its places."""
    method, path = route.split(" ")
    while "{" in path:
        path = path[: path.index("{")] + value + path[path.index("}") + 1 :]
    return method, path
