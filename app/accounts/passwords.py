"""New passwords: by a link in a mail for who forgot theirs, or for who knows the old one.

A password that changes ends every other login of the person: whoever changes it because
it became known must not share the account with whoever knew it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.sessions import end_sessions
from app.accounts.tokens import Token, hash_token, new_token
from app.accounts.users import find_login, set_password
from app.errors import NotFound
from app.tables import PasswordReset, User

RESET_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Reset:
    """Whose password a link replaces."""

    user_id: UUID
    email: str


async def ask_reset(connection: AsyncConnection, email: str, now: datetime) -> Token | None:
    """A link for one hour, in the place of earlier ones; None: nobody has this address."""
    login = await find_login(connection, email)
    if login is None:
        return None
    await connection.execute(delete(PasswordReset).where(PasswordReset.user_id == login.user_id))
    token = new_token()
    values = {"token_hash": token.hash, "user_id": login.user_id, "expires_at": now + RESET_LIFETIME}
    await connection.execute(insert(PasswordReset).values(values))
    return token


async def find_reset(connection: AsyncConnection, token: str, now: datetime) -> Reset:
    """Whom a link is for.

    Raises:
        NotFound: It was used, is too old, or never was.
    """
    statement = (
        select(User.id, User.email)
        .join_from(PasswordReset, User, User.id == PasswordReset.user_id)
        .where(PasswordReset.token_hash == hash_token(token), PasswordReset.expires_at > now)
    )
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise _used()
    return Reset(row.id, row.email)


async def use_reset(connection: AsyncConnection, token: str, password_hash: str, now: datetime) -> None:
    """Sets the password that a link asks for, and ends the person's links and logins.

    The second factor stays: a mailbox alone does not open an account that has one.

    Raises:
        NotFound: As ``find_reset``; of two at once the second.
    """
    used = delete(PasswordReset).where(PasswordReset.token_hash == hash_token(token), PasswordReset.expires_at > now)
    user_id = (await connection.execute(used.returning(PasswordReset.user_id))).scalar_one_or_none()
    if user_id is None:
        raise _used()
    await change_password(connection, user_id, password_hash)


async def change_password(
    connection: AsyncConnection, user_id: UUID, password_hash: str, keep_session: UUID | None = None
) -> None:
    """Replaces a password; ends the person's links, and logins but ``keep_session``."""
    await set_password(connection, user_id, password_hash)
    await connection.execute(delete(PasswordReset).where(PasswordReset.user_id == user_id))
    await end_sessions(connection, user_id, keep_session)


async def delete_expired_resets(connection: AsyncConnection, now: datetime) -> int:
    """Forgets links that are over; returns how many."""
    return (await connection.execute(delete(PasswordReset).where(PasswordReset.expires_at <= now))).rowcount


def _used() -> NotFound:
    return NotFound("This link was used already, or it is too old.", code="link_expired")
