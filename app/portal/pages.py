"""Every page of the portal, as one router; see the module of each."""

from fastapi import APIRouter

from app.portal import (
    alerts,
    audit_log,
    billing,
    data,
    forgotten,
    guide,
    invitation,
    keys,
    landing,
    limits,
    live,
    members,
    organizations,
    overview,
    playground,
    security,
    settings,
    sign_in,
    sign_up,
    usage,
)
from app.portal.page import STATIC_DIR, Files

router = APIRouter(include_in_schema=False)
_PAGES = (
    *(landing, guide, sign_up, sign_in, forgotten, invitation),
    *(overview, keys, usage, playground, live, billing, limits, alerts),
    *(members, audit_log, organizations, security, data, settings),
)
for _page in _PAGES:
    router.include_router(_page.router)


def static_files() -> Files:
    """Style sheet, modules and icons."""
    return Files(directory=STATIC_DIR)
