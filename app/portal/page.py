"""A page of the portal: who looks at it, and how it is rendered.

What a page shows belongs to the organisation of the session that it was asked with;
there is no id of an organisation in any address to guess.
"""

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

from app import auth
from app.auth import PortalUser
from app.billing.prices import money
from app.config import Settings
from app.db import Database
from app.portal.forms import HEADERS, SESSION_COOKIE

SEE_OTHER = 303


async def find_user(request: Request) -> PortalUser | None:
    """The person whose session the request carries; None: nobody is signed in."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return None
    async with database_of(request).begin() as connection:
        return await auth.find_session(connection, token, datetime.now(UTC))


def render(name: str, status: int = 200, **values: object) -> Response:
    """The template ``name`` as an answer that nobody keeps."""
    return HTMLResponse(_templates().get_template(name).render(values), status, HEADERS)


def settings_of(request: Request) -> Settings:
    """The settings of the process that answers."""
    settings: Settings = request.app.state.settings
    return settings


def database_of(request: Request) -> Database:
    """The database of the process that answers."""
    database: Database = request.app.state.database
    return database


def host_of(request: Request) -> str:
    """The address of the caller; empty where there is none."""
    return request.client.host if request.client else ""


def dollars(pico_usd: int | Decimal) -> str:
    """An amount of 10^-12 USD as text, rounded to the micro-USD."""
    return f"${money(pico_usd)['value']}"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(loader=PackageLoader("app.portal"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
