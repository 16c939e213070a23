"""The second factor: time-based codes (RFC 6238) of an authenticator, and recovery codes.

The secret of an authenticator is not stored. It follows from the installation's
``SECRET_KEY`` and a random salt, so that whoever reads the database alone learns none.
The price: with another ``SECRET_KEY`` every authenticator has to be set up again, which
the recovery codes, being of the database, allow.

A code is accepted once. After five wrong ones in a row none is accepted for a while,
whichever process is asked; recovery codes, too long to guess, still are.
"""

import base64
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import pyotp
import segno
from pyotp.exceptions import OTPVerificationError
from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.tokens import hash_token
from app.config import Settings
from app.errors import Conflict
from app.tables import RecoveryCode, SecondFactor

ISSUER = "Tollgate"
NUM_RECOVERY_CODES = 10
MAX_FAILURES = 5
LOCK = timedelta(minutes=15)
"""After the fifth wrong code; twice as long after each further five."""
SETUP_LIFETIME = timedelta(minutes=15)
MAX_LOCK = timedelta(days=1)
# Steps of 30 s before and after the present that are accepted: clocks differ (RFC 6238 section 5.2).
_WINDOW = 1
_STEP_S = 30
_SALT_BYTES = 16
_SECRET_BYTES = 20  # RFC 4226 section 4: 160 bits are recommended.
_RECOVERY_LENGTH = 16  # of 32 letters and digits: 80 bits


@dataclass(frozen=True, slots=True)
class Setup:
    """What an authenticator has to be told.

    Attributes:
        secret: Base 32, for typing.
        svg: The same as a picture to scan.
    """

    secret: str
    svg: str


async def start(connection: AsyncConnection, user_id: UUID, now: datetime) -> None:
    """Begins to set an authenticator up, anew if that was begun before; it has to be confirmed soon.

    The password is asked for before this and not again, so whoever finds the session open later must
    find nothing to confirm.

    Raises:
        Conflict: There is one that is in use.
    """
    values = {"user_id": user_id, "salt": secrets.token_bytes(_SALT_BYTES), "last_counter": _step_of(now)}
    fresh = insert_or(SecondFactor).values(values)
    fresh = fresh.on_conflict_do_update(
        index_elements=["user_id"],
        set_={"salt": fresh.excluded.salt, "last_counter": fresh.excluded.last_counter},
        where=SecondFactor.confirmed_at.is_(None),
    )
    if not (await connection.execute(fresh)).rowcount:
        raise Conflict("A second factor is in use. Turn it off first.", code="second_factor_in_use")


async def is_on(connection: AsyncConnection, user_id: UUID) -> bool:
    """Whether a login of this person needs a code."""
    statement = select(SecondFactor.user_id).where(
        SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_not(None)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def find_setup(
    connection: AsyncConnection, settings: Settings, user_id: UUID, email: str, now: datetime
) -> Setup | None:
    """What was begun a quarter of an hour ago at most and not confirmed; None: nothing."""
    statement = select(SecondFactor.salt).where(*_begun(user_id, now))
    salt = (await connection.execute(statement)).scalar_one_or_none()
    if salt is None:
        return None
    secret = secret_of(settings, user_id, salt)
    uri = pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=ISSUER)
    # Black on white whatever the colours of the page: scanners want it so.
    svg = segno.make(uri, error="m").svg_inline(scale=4, dark="#000", light="#fff")
    return Setup(secret, svg)


async def confirm(
    connection: AsyncConnection, settings: Settings, user_id: UUID, code: str, now: datetime
) -> list[str] | None:
    """Turns the second factor on if the authenticator shows the right code.

    Returns:
        Ten recovery codes, shown once; None: the code is wrong.

    Raises:
        Conflict: Nothing was begun, or too long ago, or it was confirmed already.
    """
    statement = select(SecondFactor).where(*_begun(user_id, now))
    row = (await connection.execute(statement.with_for_update())).one_or_none()
    if row is None:
        raise Conflict("Setting up the second factor was not begun.", code="second_factor_not_begun")
    counter = _counter_of(secret_of(settings, user_id, row.salt), code, now)
    if counter is None:
        return None
    on = update(SecondFactor).where(SecondFactor.user_id == user_id).values(confirmed_at=now, last_counter=counter)
    await connection.execute(on)
    return await renew_recovery_codes(connection, user_id)


async def accepts(connection: AsyncConnection, settings: Settings, user_id: UUID, code: str, now: datetime) -> bool:
    """Whether a code, of the authenticator or for recovery, is right; it is used up then.

    Counts a wrong one: the transaction has to commit then, too.
    """
    statement = select(SecondFactor).where(SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_not(None))
    row = (await connection.execute(statement.with_for_update())).one_or_none()
    if row is None:
        return False
    used = delete(RecoveryCode).where(RecoveryCode.user_id == user_id, RecoveryCode.code_hash == _hash(code))
    if (await connection.execute(used)).rowcount:
        return True
    if row.locked_until is not None and row.locked_until > now:
        return False
    counter = _counter_of(secret_of(settings, user_id, row.salt), code, now)
    if counter is None or counter <= row.last_counter:
        await _count_failure(connection, user_id, row.num_failures + 1, now)
        return False
    values = {"last_counter": counter, "num_failures": 0, "locked_until": None}
    await connection.execute(update(SecondFactor).where(SecondFactor.user_id == user_id).values(values))
    return True


async def renew_recovery_codes(connection: AsyncConnection, user_id: UUID) -> list[str]:
    """Ten new codes in the place of what is left of the old ones; shown once."""
    await connection.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
    codes = [_new_recovery_code() for _ in range(NUM_RECOVERY_CODES)]
    rows = [{"user_id": user_id, "code_hash": _hash(code)} for code in codes]
    await connection.execute(insert(RecoveryCode), rows)
    return codes


async def num_recovery_codes(connection: AsyncConnection, user_id: UUID) -> int:
    """How many are not used up."""
    statement = select(func.count()).where(RecoveryCode.user_id == user_id)
    return (await connection.execute(statement)).scalar_one()


async def remove(connection: AsyncConnection, user_id: UUID) -> None:
    """Turns the second factor off, and forgets the recovery codes."""
    await connection.execute(delete(SecondFactor).where(SecondFactor.user_id == user_id))
    await connection.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))


def secret_of(settings: Settings, user_id: UUID, salt: bytes) -> str:
    """The secret that a person's authenticator and we share, base 32."""
    key = settings.secret_key.get_secret_value().encode()
    return base64.b32encode(
        hmac.digest(key, b"second-factor:" + user_id.bytes + salt, "sha256")[:_SECRET_BYTES]
    ).decode()


def _begun(user_id: UUID, now: datetime) -> tuple[ColumnElement[bool], ...]:
    oldest = _step_of(now - SETUP_LIFETIME)
    return SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_(None), SecondFactor.last_counter > oldest


def _step_of(now: datetime) -> int:
    return int(now.timestamp()) // _STEP_S


def _counter_of(secret: str, code: str, now: datetime) -> int | None:
    """The step of time whose code it is; None: of no step near ``now``."""
    digits = "".join(code.split())
    if not (digits.isascii() and digits.isdigit()):
        return None
    try:
        return pyotp.TOTP(secret).verify_and_get_timecode(digits, for_time=now, valid_window=_WINDOW)
    except OTPVerificationError:
        return None


async def _count_failure(connection: AsyncConnection, user_id: UUID, num_failures: int, now: datetime) -> None:
    rounds, rest = divmod(num_failures, MAX_FAILURES)
    locked_until = now + min(LOCK * 2 ** min(rounds - 1, 10), MAX_LOCK) if rest == 0 else None
    values = {"num_failures": num_failures, "locked_until": locked_until}
    await connection.execute(update(SecondFactor).where(SecondFactor.user_id == user_id).values(values))


def _new_recovery_code() -> str:
    text = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    return "-".join(text[start : start + 4] for start in range(0, _RECOVERY_LENGTH, 4))


def _hash(code: str) -> bytes:
    return hash_token("".join(code.replace("-", "").split()).lower())
