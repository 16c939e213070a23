"""Every page of the portal, as one router; see the module of each."""

from fastapi import APIRouter

from app.portal import billing, keys, landing, limits, overview, settings, sign_in, usage
from app.portal.page import STATIC_DIR, Files

router = APIRouter(include_in_schema=False)
for _page in (landing, sign_in, overview, keys, usage, billing, limits, settings):
    router.include_router(_page.router)


def static_files() -> Files:
    """Style sheet, modules and icons."""
    return Files(directory=STATIC_DIR)
