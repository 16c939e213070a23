"""Renders the pages that a browser sees; every one of them says that it is a simulator's."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

_TEMPLATES = Path(__file__).with_name("templates")

# What these currencies count in has no smaller part.
_WHOLE = frozenset({"jpy", "krw", "vnd", "clp", "isk", "ugx"})


def render(template: str, status: int = 200, **context: Any) -> HTMLResponse:  # noqa: ANN401 - what the template names
    """A page from a template, which extends `base.html` and fills its block `content`.

    Args:
        template: File name under `templates/`.
        status: HTTP status.
        context: What the template names; a name that is missing is an error.
    """
    return HTMLResponse(_environment.get_template(template).render(**context), status)


def money(amount: int, currency: str) -> str:
    """An amount in the currency's smallest unit, as a person reads it: `12.34 USD`."""
    sign = "-" if amount < 0 else ""
    whole, cents = divmod(abs(amount), 100)
    figures = f"{abs(amount):,}" if currency in _WHOLE else f"{whole:,}.{cents:02d}"
    return f"{sign}{figures} {currency.upper()}"


def day(moment: int | None) -> str:
    """A moment as a date, in UTC; a dash for none."""
    return "-" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%-d %b %Y")


def minute(moment: int | None) -> str:
    """A moment as date and time, in UTC; a dash for none."""
    return "-" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%-d %b %Y %H:%M:%S")


_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {"day": day, "minute": minute, "money": money}
