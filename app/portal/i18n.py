"""The languages of the portal: which one a visitor reads, its words, and how it writes numbers and dates.

Catalogues are gettext's ``.po`` files beside this module, read once by each process;
``make messages`` brings them up to date. Times are shown in UTC, as they are billed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from babel import Locale
from babel.dates import format_date, format_datetime, format_skeleton, format_timedelta, get_datetime_format
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_compact_decimal, format_currency, format_decimal, format_percent
from fastapi import Request
from markupsafe import Markup

from app.billing.amounts import PICO_USD_PER_USD
from app.errors import AppError

LANGUAGE_COOKIE = "tollgate_language"
LOCALE_DIR = Path(__file__).parent / "locale"
DOMAIN = "portal"
_CURRENCY = "USD"
_MICRO_USD = Decimal("0.000001")
_CENT = Decimal("0.01")
_MAX_HEADER = 200


@dataclass(frozen=True)
class Language:
    """A language that the portal speaks.

    Attributes:
        code: In the cookie and in ``Accept-Language``.
        tag: BCP 47, of the page.
        name: As its speakers call it.
        locale_name: Of its catalogue and of its way to write numbers.
    """

    code: str
    tag: str
    name: str
    locale_name: str

    @cached_property
    def locale(self) -> Locale:
        """Babel's data on it."""
        return Locale.parse(self.locale_name)

    @cached_property
    def translations(self) -> NullTranslations:
        """Its catalogue; English is what the code says."""
        path = LOCALE_DIR / self.locale_name / "LC_MESSAGES" / f"{DOMAIN}.po"
        if not path.exists():
            return NullTranslations()
        compiled = BytesIO()
        with path.open("rb") as lines:
            write_mo(compiled, read_po(lines, locale=self.locale))
        compiled.seek(0)
        return GNUTranslations(compiled)

    @property
    def is_translated(self) -> bool:
        """Whether it says anything else than the code does."""
        return isinstance(self.translations, GNUTranslations)

    def gettext(self, message: str) -> str:
        """``message`` in this language."""
        return self.translations.gettext(message)

    def ngettext(self, singular: str, plural: str, count: int) -> str:
        """The form for ``count`` in this language."""
        return self.translations.ngettext(singular, plural, count)

    def told(self, error: AppError) -> str:
        """What went wrong, in this language."""
        said = self.gettext(error.template)
        return said % error.values if error.values else said

    def number(self, value: int | Decimal) -> str:
        """``1,234,567``."""
        return format_decimal(value, locale=self.locale)

    def compact(self, value: int | Decimal) -> str:
        """``1.2M``: for axes."""
        return format_compact_decimal(value, locale=self.locale, fraction_digits=1)

    def percent(self, share: Decimal) -> str:
        """``42%`` for 0.42."""
        return format_percent(share, locale=self.locale)

    def money(self, pico_usd: int | Decimal) -> str:
        """10^-12 USD to the micro-dollar, half to even: as it is billed."""
        value = (Decimal(pico_usd) / PICO_USD_PER_USD).quantize(_MICRO_USD, ROUND_HALF_EVEN)
        return self._currency(value, "0.000000")

    def dollars(self, pico_usd: int | Decimal) -> str:
        """10^-12 USD without zeros beyond the cents: limits and balances."""
        value = (Decimal(pico_usd) / PICO_USD_PER_USD).quantize(_MICRO_USD, ROUND_HALF_EVEN)
        return self._currency(value, "0.00####")

    def rounded(self, pico_usd: int | Decimal) -> str:
        """10^-12 USD to the cent: what is estimated."""
        return self._currency((Decimal(pico_usd) / PICO_USD_PER_USD).quantize(_CENT, ROUND_HALF_EVEN), "0.00")

    def cents(self, amount: int) -> str:
        """Cents, as Stripe has them."""
        return self._currency(Decimal(amount) / 100, "0.00")

    def month(self, at: datetime) -> str:
        """``November 2026``."""
        return format_skeleton("yMMMM", at.astimezone(UTC), locale=self.locale)

    def day(self, at: datetime) -> Markup:
        """``Nov 27, 2026``, readable by machines."""
        at = at.astimezone(UTC)
        return _time(at, "%Y-%m-%d", format_date(at.date(), "medium", locale=self.locale))

    def short_day(self, at: datetime) -> str:
        """``Nov 27``: for axes."""
        return format_skeleton("MMMd", at.astimezone(UTC), locale=self.locale)

    def minute(self, at: datetime) -> Markup:
        """``Nov 27, 2026, 06:08 UTC``, readable by machines."""
        at = at.astimezone(UTC)
        date = format_date(at.date(), "medium", locale=self.locale)
        # Languages join a day and its time each in their own way: "{1}, {0}" or "{1} {0}".
        text = str(get_datetime_format("medium", locale=self.locale)).format(f"{at:%H:%M}", date)
        return _time(at, "%Y-%m-%dT%H:%M:%SZ", f"{text} UTC")

    def ago(self, at: datetime, now: datetime) -> Markup:
        """``3 minutes ago``, with the time itself as its title."""
        at = at.astimezone(UTC)
        text = format_timedelta(at - now, add_direction=True, locale=self.locale)
        full = format_datetime(at, "medium", locale=self.locale)
        return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(f"{at:%Y-%m-%dT%H:%M:%SZ}", full, text)

    def _currency(self, value: Decimal, digits: str) -> str:
        return format_currency(
            value, _CURRENCY, f"¤#,##{digits};-¤#,##{digits}", locale=self.locale, currency_digits=False
        )


LANGUAGES: Mapping[str, Language] = MappingProxyType(
    {
        "en": Language("en", "en", "English", "en_US"),
        "zh": Language("zh", "zh-Hans", "简体中文", "zh_Hans_CN"),
    }
)
"""By code; the first is what is spoken to everybody else."""


def language_of(request: Request) -> Language:
    """What the visitor chose, or else what their browser prefers."""
    chosen = LANGUAGES.get(request.cookies.get(LANGUAGE_COOKIE, ""))
    return chosen or preferred(request.headers.get("accept-language", ""))


def preferred(header: str) -> Language:
    """The best of our languages by an ``Accept-Language`` header (RFC 9110 section 12.5.4)."""
    wishes: list[tuple[float, int, str]] = []
    for position, part in enumerate(header[:_MAX_HEADER].split(",")):
        tag, _, parameter = part.partition(";")
        code = tag.strip().lower().partition("-")[0]
        quality = _quality(parameter)
        if code in LANGUAGES and quality > 0:  # 0: not to be sent
            wishes.append((-quality, position, code))
    return LANGUAGES[min(wishes)[2] if wishes else "en"]


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    try:
        return float(value) if name == "q" else 1.0
    except ValueError:
        return 0.0


def _time(at: datetime, machine: str, text: str) -> Markup:
    return Markup('<time datetime="{}">{}</time>').format(at.strftime(machine), text)
