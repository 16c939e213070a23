"""People: their addresses and passwords.

There is a row for a person only once their address is confirmed: a sign-up waits in
a table of its own, so nobody can hold an address by asking for it.
"""

import re
import secrets
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import ColumnElement, exists, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.guessable import is_guessable
from app.errors import BadRequest, Conflict
from app.tables import ROLES, Membership, SecondFactor, User, new_id

MIN_PASSWORD_LENGTH = 10
MAX_PASSWORD_LENGTH = 200
"""More is nobody's password."""
MAX_EMAIL_LENGTH = 254
"""RFC 5321 section 4.5.3.1.3, less the brackets."""

# What <input type=email> takes: https://html.spec.whatwg.org/#valid-e-mail-address
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")
# argon2-cffi's defaults are RFC 9106's low-memory profile.
_PASSWORDS = PasswordHasher()


@dataclass(frozen=True, slots=True)
class Login:
    """A person who may log in.

    Attributes:
        has_second_factor: A code is asked for after the password.
    """

    user_id: UUID
    email: str
    password_hash: str
    has_second_factor: bool
    language: str | None


def checked_email(email: str) -> str:
    """The address in the one spelling that is kept.

    Raises:
        BadRequest: It is no address.
    """
    address = email.strip().lower()
    # RFC 2047: where a header says "=?", mail programs decode, and the mail would go to another address.
    if len(address) > MAX_EMAIL_LENGTH or not _EMAIL.fullmatch(address) or "=?" in address:
        raise BadRequest("This is not an e-mail address.", param="email")
    return address


def checked_password(password: str, about: str = "") -> str:
    """The password as it is.

    Args:
        password: Somebody's choice.
        about: Their e-mail address; empty: not known.

    Raises:
        BadRequest: It is shorter than 10 or longer than 200 characters, or everybody guesses it.
    """
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise BadRequest("A password has 10 to 200 characters.", param="password")
    if is_guessable(password, about):
        raise BadRequest("This password is too easy to guess.", param="password")
    return password


def hash_password(password: str) -> str:
    """The argon2id hash of a password.

    Takes tens of milliseconds of CPU by design: call it outside the event loop.

    Raises:
        BadRequest: As ``checked_password``.
    """
    return _PASSWORDS.hash(_bytes(checked_password(password)))


def check_password(password_hash: str | None, password: str) -> bool:
    """Whether the password fits; None (nobody has that address) costs the same time.

    Takes tens of milliseconds of CPU by design: call it outside the event loop.
    """
    # Nobody has a longer one; an empty one is nobody's either, and takes no time to normalise.
    guess = password if len(password) <= MAX_PASSWORD_LENGTH else ""
    try:
        _PASSWORDS.verify(password_hash or _nobodys_hash(), _bytes(guess))
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


async def create_user(
    connection: AsyncConnection, org_id: UUID, email: str, password: str, role: str = "owner"
) -> UUID:
    """A person with a password, member of ``org_id``.

    Raises:
        BadRequest: As ``checked_email`` and ``checked_password``, or the role is not one.
        Conflict: The address is taken.
    """
    if role not in ROLES:
        raise BadRequest("There is no such role.", param="role")
    address = checked_email(email)
    user_id = await add_user(connection, address, hash_password(password))
    await connection.execute(insert(Membership).values(org_id=org_id, user_id=user_id, role=role))
    return user_id


async def add_user(connection: AsyncConnection, email: str, password_hash: str, language: str | None = None) -> UUID:
    """A person who belongs nowhere yet.

    Args:
        connection: An open transaction.
        email: Checked, and confirmed or vouched for.
        password_hash: By ``hash_password``.
        language: For mails.

    Raises:
        Conflict: The address is taken.
    """
    values = {"id": new_id(), "email": email, "password_hash": password_hash, "language": language}
    created = insert_or(User).values(values).on_conflict_do_nothing(index_elements=["email"]).returning(User.id)
    user_id = (await connection.execute(created)).scalar_one_or_none()
    if user_id is None:
        raise Conflict("There is a login with this e-mail address already.", param="email")
    return user_id


async def find_login(connection: AsyncConnection, email: str) -> Login | None:
    """The person with this address."""
    if "\0" in email:  # nobody's, and PostgreSQL refuses to look for it
        return None
    return await _find(connection, User.email == email.strip().lower())


async def login_of(connection: AsyncConnection, user_id: UUID) -> Login:
    """That of a person who exists."""
    login = await _find(connection, User.id == user_id)
    assert login is not None, "whoever has a session exists"
    return login


async def emails_of(connection: AsyncConnection, user_ids: Collection[UUID]) -> dict[UUID, str]:
    """The addresses of those who exist."""
    rows = await connection.execute(select(User.id, User.email).where(User.id.in_(user_ids)))
    return {row.id: row.email for row in rows}


async def set_language(connection: AsyncConnection, user_id: UUID, language: str) -> None:
    """In which a person's mails are written from now on."""
    await connection.execute(update(User).where(User.id == user_id).values(language=language))


async def set_password(connection: AsyncConnection, user_id: UUID, password_hash: str) -> None:
    """Replaces a person's password; their sessions are the caller's to end."""
    await connection.execute(update(User).where(User.id == user_id).values(password_hash=password_hash))


async def _find(connection: AsyncConnection, condition: ColumnElement[bool]) -> Login | None:
    has_factor = exists().where(SecondFactor.user_id == User.id, SecondFactor.confirmed_at.is_not(None))
    columns = (User.id, User.email, User.password_hash, has_factor.label("has_second_factor"), User.language)
    row = (await connection.execute(select(*columns).where(condition))).one_or_none()
    return None if row is None else Login(*row)


def _bytes(password: str) -> bytes:
    # The same letters, whichever way a keyboard composes them. A lone surrogate, which none
    # makes, is a wrong password and no fault of ours.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _PASSWORDS.hash(secrets.token_urlsafe())
