"""Authenticators and recovery codes."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pyotp
import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import second_factor, users
from app.accounts.second_factor import LOCK, MAX_FAILURES, MAX_LOCK, SETUP_LIFETIME
from app.config import Settings
from app.db import Database
from app.errors import Conflict
from app.tables import RecoveryCode, SecondFactor
from tests.factories import make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
STEP = timedelta(seconds=30)
EMAIL = "someone@acme.example"


@pytest.fixture
async def user_id(database: Database) -> UUID:
    return await make_user(database, await make_org(database), EMAIL)


async def turn_on(connection: AsyncConnection, settings: Settings, user_id: UUID) -> tuple[pyotp.TOTP, list[str]]:
    """The authenticator, whose code of ``NOW`` is used up, and the recovery codes."""
    await second_factor.start(connection, user_id, NOW)
    setup = await second_factor.find_setup(connection, settings, user_id, EMAIL, NOW)
    assert setup is not None
    authenticator = pyotp.TOTP(setup.secret)
    codes = await second_factor.confirm(connection, settings, user_id, authenticator.at(NOW), NOW)
    assert codes is not None
    return authenticator, codes


async def test_the_right_code_turns_it_on(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    assert not await second_factor.is_on(connection, user_id)
    _, codes = await turn_on(connection, settings, user_id)
    assert await second_factor.is_on(connection, user_id)
    assert (await users.login_of(connection, user_id)).has_second_factor
    assert len({*codes}) == second_factor.NUM_RECOVERY_CODES
    assert await second_factor.num_recovery_codes(connection, user_id) == second_factor.NUM_RECOVERY_CODES
    assert await second_factor.find_setup(connection, settings, user_id, EMAIL, NOW) is None


async def test_a_wrong_code_does_not(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    await second_factor.start(connection, user_id, NOW)
    for code in ("", "abcdef", "\uff11" * 6, "12345", "\0"):
        assert await second_factor.confirm(connection, settings, user_id, code, NOW) is None
    assert not await second_factor.is_on(connection, user_id)
    assert not await second_factor.accepts(connection, settings, user_id, "000000", NOW)
    assert not (await users.login_of(connection, user_id)).has_second_factor


async def test_what_was_begun_long_ago_is_not_confirmed(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    """Or whoever finds an open session could turn on an authenticator of their own, without the password."""
    await second_factor.start(connection, user_id, NOW)
    setup = await second_factor.find_setup(connection, settings, user_id, EMAIL, NOW + SETUP_LIFETIME - STEP)
    assert setup is not None
    later = NOW + SETUP_LIFETIME
    assert await second_factor.find_setup(connection, settings, user_id, EMAIL, later) is None
    with pytest.raises(Conflict):
        await second_factor.confirm(connection, settings, user_id, pyotp.TOTP(setup.secret).at(later), later)
    await second_factor.start(connection, user_id, later)
    assert await second_factor.find_setup(connection, settings, user_id, EMAIL, later) is not None


async def test_the_picture_says_what_the_secret_says(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    await second_factor.start(connection, user_id, NOW)
    setup = await second_factor.find_setup(connection, settings, user_id, EMAIL, NOW)
    assert setup is not None
    assert len(setup.secret) == 32
    assert setup.svg.startswith("<svg")
    assert "style" not in setup.svg
    assert "<script" not in setup.svg


async def test_beginning_anew_makes_another_secret(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    secrets = set()
    for _ in range(2):
        await second_factor.start(connection, user_id, NOW)
        setup = await second_factor.find_setup(connection, settings, user_id, EMAIL, NOW)
        assert setup is not None
        secrets.add(setup.secret)
    assert len(secrets) == 2


async def test_what_is_in_use_is_not_begun_again(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    authenticator, _ = await turn_on(connection, settings, user_id)
    with pytest.raises(Conflict):
        await second_factor.start(connection, user_id, NOW)
    with pytest.raises(Conflict):
        await second_factor.confirm(connection, settings, user_id, authenticator.at(NOW), NOW)


async def test_what_was_not_begun_is_not_confirmed(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    with pytest.raises(Conflict):
        await second_factor.confirm(connection, settings, user_id, "123456", NOW)


async def test_a_code_is_accepted_once(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    authenticator, _ = await turn_on(connection, settings, user_id)
    later = NOW + 10 * STEP
    code = authenticator.at(later)
    assert not await second_factor.accepts(connection, settings, user_id, authenticator.at(NOW), NOW)
    assert await second_factor.accepts(connection, settings, user_id, f"{code[:3]} {code[3:]}", later)
    assert not await second_factor.accepts(connection, settings, user_id, code, later)
    # One from before it was never used, but somebody may have watched it being typed.
    assert not await second_factor.accepts(connection, settings, user_id, authenticator.at(later - STEP), later)


@pytest.mark.parametrize(("steps", "is_right"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
async def test_clocks_may_differ_by_a_step(
    user_id: UUID, settings: Settings, connection: AsyncConnection, steps: int, is_right: bool
) -> None:
    authenticator, _ = await turn_on(connection, settings, user_id)
    later = NOW + 10 * STEP
    code = authenticator.at(later + steps * STEP)
    assert await second_factor.accepts(connection, settings, user_id, code, later) == is_right


async def test_a_recovery_code_is_accepted_once(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    _, codes = await turn_on(connection, settings, user_id)
    assert await second_factor.accepts(connection, settings, user_id, f" {codes[3].upper().replace('-', ' ')} ", NOW)
    assert not await second_factor.accepts(connection, settings, user_id, codes[3], NOW)
    assert await second_factor.num_recovery_codes(connection, user_id) == len(codes) - 1


async def test_new_recovery_codes_replace_the_old(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    _, old = await turn_on(connection, settings, user_id)
    new = await second_factor.renew_recovery_codes(connection, user_id)
    assert not {*old} & {*new}
    assert not await second_factor.accepts(connection, settings, user_id, old[0], NOW)
    assert await second_factor.accepts(connection, settings, user_id, new[0], NOW)


async def test_guessing_is_stopped_for_longer_each_time(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    authenticator, codes = await turn_on(connection, settings, user_id)
    now = NOW + 10 * STEP
    for lock in (LOCK, 2 * LOCK, 4 * LOCK):
        for _ in range(MAX_FAILURES):
            assert not await second_factor.accepts(connection, settings, user_id, "000000", now)
        soon = now + lock - STEP
        assert not await second_factor.accepts(connection, settings, user_id, authenticator.at(soon), soon)
        now += lock
    assert await second_factor.accepts(connection, settings, user_id, authenticator.at(now), now)
    for _ in range(MAX_FAILURES - 1):  # the count began anew
        assert not await second_factor.accepts(connection, settings, user_id, "000000", now)
    later = now + STEP
    assert await second_factor.accepts(connection, settings, user_id, authenticator.at(later), later)
    assert await second_factor.accepts(connection, settings, user_id, codes[0], later)


async def test_a_recovery_code_opens_what_is_locked(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    _, codes = await turn_on(connection, settings, user_id)
    for _ in range(MAX_FAILURES):
        await second_factor.accepts(connection, settings, user_id, "000000", NOW)
    assert await second_factor.accepts(connection, settings, user_id, codes[0], NOW)


async def test_the_longest_lock_is_a_day(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    await turn_on(connection, settings, user_id)
    row = SecondFactor.__table__.update().values(num_failures=MAX_FAILURES * 1000 - 1)  # type: ignore[attr-defined]
    await connection.execute(row)
    await second_factor.accepts(connection, settings, user_id, "000000", NOW)
    assert (await connection.execute(select(SecondFactor.locked_until))).scalar_one() == NOW + MAX_LOCK


async def test_turned_off_nothing_is_left(user_id: UUID, settings: Settings, connection: AsyncConnection) -> None:
    _, codes = await turn_on(connection, settings, user_id)
    await second_factor.remove(connection, user_id)
    assert not await second_factor.is_on(connection, user_id)
    assert not await second_factor.accepts(connection, settings, user_id, codes[0], NOW)
    assert await second_factor.num_recovery_codes(connection, user_id) == 0
    await second_factor.start(connection, user_id, NOW)


async def test_the_database_alone_tells_no_secret(
    user_id: UUID, settings: Settings, connection: AsyncConnection
) -> None:
    authenticator, codes = await turn_on(connection, settings, user_id)
    rows = str((await connection.execute(select(SecondFactor))).all())
    rows += str((await connection.execute(select(RecoveryCode))).all())
    assert authenticator.secret not in rows
    assert not any(code in rows or code.replace("-", "") in rows for code in codes)
    other = settings.model_copy(update={"secret_key": SecretStr("another key of the tests")})
    later = NOW + STEP
    assert not await second_factor.accepts(connection, other, user_id, authenticator.at(later), later)
    assert await second_factor.accepts(connection, other, user_id, codes[0], later)


async def test_of_two_logins_with_one_code_one_succeeds(user_id: UUID, settings: Settings, database: Database) -> None:
    async with database.begin() as connection:
        authenticator, _ = await turn_on(connection, settings, user_id)
    later = NOW + 10 * STEP

    async def attempt() -> bool:
        async with database.begin() as connection:
            return await second_factor.accepts(connection, settings, user_id, authenticator.at(later), later)

    assert sorted(await asyncio.gather(*(attempt() for _ in range(5)))) == [False, False, False, False, True]
