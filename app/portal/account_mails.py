"""The mails that ``app.accounts.mailings`` has queued, as they are sent: with words, and with a link made just now."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import invitations, passwords, sign_ups
from app.accounts.mailings import Compose, Queued
from app.config import Settings
from app.errors import NotFound
from app.mail import Mail
from app.portal import mails
from app.portal.i18n import LANGUAGES


def composer(settings: Settings) -> Compose:
    """What writes a queued mail.

    Args:
        settings: The address of the portal.
    """
    url = settings.portal_url

    async def compose(connection: AsyncConnection, queued: Queued, now: datetime) -> Mail | None:
        try:
            return await _compose(connection, url, queued, now)
        except NotFound:  # a sign-up or an invitation that is over
            return None

    return compose


async def _compose(connection: AsyncConnection, url: str, queued: Queued, now: datetime) -> Mail | None:
    language, to = LANGUAGES.get(queued.language, LANGUAGES["en"]), queued.email
    match queued.kind, queued.reference:
        case "sign_up", id if id is not None:
            token = await sign_ups.make_link(connection, id, now)
            if token is None:
                return mails.has_account(language, to, f"{url}/login", f"{url}/forgot")
            return mails.confirm_address(language, to, f"{url}/confirm?token={token.text}")
        case "invitation", id if id is not None:
            invited, by, token = await invitations.make_link(connection, id, now)
            return mails.invitation(language, invited, by, f"{url}/invitation?token={token.text}")
        case "reset", _:
            asked = await passwords.ask_reset(connection, to, now)
            return None if asked is None else mails.reset_password(language, to, f"{url}/reset?token={asked.text}")
        case "password_changed", _:
            return mails.password_changed(language, to, f"{url}/forgot")
    return mails.second_factor_changed(language, to, f"{url}/security", is_on=queued.kind == "second_factor_on")
