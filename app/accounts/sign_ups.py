"""Signing up: an address is confirmed first, then the person and their organisation exist.

Whoever asks for an account at somebody else's address gets none: the mail goes to the
owner of the address, and the link in it works by itself only in the browser that asked.
Anywhere else the password is asked for, which the owner does not know then.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.orgs import checked_name, create_org
from app.accounts.tokens import Token, fits, hash_token, new_token
from app.accounts.users import add_user
from app.errors import NotFound
from app.tables import Membership, SignUp, User, new_id

SIGN_UP_LIFETIME = timedelta(hours=24)
PLAN = "free"
"""Of every organisation that somebody signs up."""
_COLUMNS = (SignUp.email, SignUp.password_hash, SignUp.org_name, SignUp.language, SignUp.browser_hash)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for: an account at an address, and an organisation."""

    email: str
    password_hash: str
    org_name: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wish whose address is not confirmed."""

    wish: Wish
    browser_hash: bytes

    def is_from(self, browser: str | None) -> bool:
        """Whether the browser with this cookie asked for it."""
        return fits(browser, self.browser_hash)


@dataclass(frozen=True, slots=True)
class Account:
    """A person and the organisation that was made for them."""

    user_id: UUID
    org_id: UUID


async def ask(connection: AsyncConnection, wish: Wish, now: datetime) -> tuple[UUID, Token]:
    """Remembers a wish for 24 hours, whether its address has a login or not: that takes the same time.

    Args:
        connection: An open transaction.
        wish: With a checked address and a checked name.
        now: Aware.

    Returns:
        Its id, for ``make_link``, and the token for the browser.
    """
    id, browser = new_id(), new_token()
    values = {
        "id": id,
        "token_hash": new_token().hash,
        "browser_hash": browser.hash,
        "email": wish.email,
        "password_hash": wish.password_hash,
        "org_name": checked_name(wish.org_name),
        "language": wish.language,
        "expires_at": now + SIGN_UP_LIFETIME,
    }
    await connection.execute(insert(SignUp).values(values))
    return id, browser


async def make_link(connection: AsyncConnection, id: UUID, now: datetime) -> Token | None:
    """The token for the mail, in the place of one that was made before.

    Returns:
        None: The address has a login. The wish is over then.

    Raises:
        NotFound: It was confirmed, or is too old.
    """
    wanted = (SignUp.id == id, SignUp.expires_at > now)
    token = new_token()
    renewed = update(SignUp).where(*wanted).values(token_hash=token.hash).returning(SignUp.email)
    email = (await connection.execute(renewed)).scalar_one_or_none()
    if email is None:
        raise _used()
    if not (await connection.execute(select(exists().where(User.email == email)))).scalar_one():
        return token
    await connection.execute(delete(SignUp).where(SignUp.id == id))
    return None


async def find_waiting(connection: AsyncConnection, token: str, now: datetime) -> Waiting:
    """The wish behind a link.

    Raises:
        NotFound: It was used, is too old, or never was.
    """
    statement = select(*_COLUMNS).where(SignUp.token_hash == hash_token(token), SignUp.expires_at > now)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise _used()
    return Waiting(Wish(*row[:4]), row.browser_hash)


async def confirm(connection: AsyncConnection, token: str, now: datetime) -> Account:
    """Makes the person and the organisation; every other wish at this address is over.

    Raises:
        NotFound: As ``find_waiting``; of two at once the second.
        Conflict: The address got a login in the meantime.
    """
    taken = delete(SignUp).where(SignUp.token_hash == hash_token(token), SignUp.expires_at > now)
    row = (await connection.execute(taken.returning(*_COLUMNS))).one_or_none()
    if row is None:
        raise _used()
    wish = Wish(*row[:4])
    await connection.execute(delete(SignUp).where(SignUp.email == wish.email))
    user_id = await add_user(connection, wish.email, wish.password_hash, wish.language)
    org_id = await found_org(connection, user_id, wish.org_name)
    return Account(user_id, org_id)


async def found_org(connection: AsyncConnection, user_id: UUID, name: str) -> UUID:
    """A new organisation on the free plan, owned by a person.

    Raises:
        BadRequest: The name is not one.
    """
    org_id = await create_org(connection, name, PLAN)
    await connection.execute(insert(Membership).values(org_id=org_id, user_id=user_id, role="owner"))
    return org_id


async def delete_expired_sign_ups(connection: AsyncConnection, now: datetime) -> int:
    """Forgets what was never confirmed; returns how many."""
    return (await connection.execute(delete(SignUp).where(SignUp.expires_at <= now))).rowcount


def _used() -> NotFound:
    return NotFound("This link was used already, or it is too old.", code="link_expired")
