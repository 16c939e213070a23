"""Mails about limits that are being used up, each in its reader's language; sent by the worker."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.alerts.notifications import SendMail
from app.config import Settings
from app.db import Database
from app.errors import MailUnavailable, NotificationFailed
from app.mail import REFUSED, Mail, send
from app.portal.i18n import LANGUAGES, Language
from app.portal.mails import plain_mail
from app.tables import Org, User

_PICO_USD_PER_NANO_USD = 1_000
_USED_UP = 100


def alert_mailer(settings: Settings, database: Database) -> SendMail:
    """What sends an alert to an e-mail address.

    Args:
        settings: Mail server, and the address of the portal.
        database: Says the reader's language and the organisation's name.
    """

    async def mail(to: str, event: Mapping[str, Any]) -> None:
        async with database.begin() as connection:
            language = (await connection.execute(select(User.language).where(User.email == to))).scalar_one_or_none()
            found = select(Org.name).where(Org.id == UUID(event["data"]["organization"]))
            org_name = (await connection.execute(found)).scalar_one_or_none()
        spoken = LANGUAGES.get(language or "", LANGUAGES["en"])
        try:
            await send(settings, limit_reached(spoken, to, org_name or "", event["data"], settings.portal_url))
        except MailUnavailable as error:
            raise NotificationFailed(error.message, is_final=error.code == REFUSED) from error

    return mail


def limit_reached(language: Language, to: str, org_name: str, data: Mapping[str, Any], portal_url: str) -> Mail:
    """What share of which limit is used up, and where that can be changed.

    Args:
        language: Of the mail.
        to: The reader.
        org_name: Whose limit.
        data: Of the event; see ``app.alerts.thresholds``.
        portal_url: Without a slash at its end.
    """
    say, percent, measure = language.gettext, int(data["percent"]), str(data["measure"])
    words = {"percent": percent, "org": org_name, "limit": _limit(language, measure, int(data["limit"]))}
    subject = {
        "spend_cap": say("%(org)s has used %(percent)s%% of its cap of this month"),
        "token_limit": say("%(org)s has used %(percent)s%% of its tokens of this month"),
        "included": say("%(org)s has used %(percent)s%% of what its plan includes"),
        "credit": say("%(org)s has used %(percent)s%% of its prepaid credit"),
    }[measure]
    limit = {
        "spend_cap": say("The cap is %(limit)s."),
        "token_limit": say("The limit is %(limit)s tokens."),
        "included": say("The plan includes usage worth %(limit)s at list price in each period."),
        "credit": say("When credit was last added, there was %(limit)s."),
    }[measure]
    consequence = {
        "spend_cap": say("Requests are refused until the cap is raised or the next month begins."),
        "token_limit": say("Requests are refused until the next month begins or the plan is changed."),
        "included": say("What is used from here on is billed at the end of the period."),
        "credit": say("Requests are refused until credit is added."),
    }[measure]
    path = "/limits" if measure == "spend_cap" else "/billing"
    paragraphs = [limit % words] + ([consequence] if percent >= _USED_UP else [])
    return plain_mail(to, subject % words, *paragraphs, f"{portal_url}{path}")


def _limit(language: Language, measure: str, limit: int) -> str:
    if measure == "token_limit":
        return language.number(limit)
    return language.dollars(limit * _PICO_USD_PER_NANO_USD if measure == "included" else limit)
