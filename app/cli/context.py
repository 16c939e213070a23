"""What most commands need first: settings, logs and, for some, a database."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.config import Settings, load_settings, quiet_libraries
from app.errors import BadRequest, ConfigError

if TYPE_CHECKING:
    from app.db import Database

T = TypeVar("T")


def settings_for_command(**overrides: object) -> Settings:
    """Settings from the environment, options of the command line over them.

    Args:
        overrides: Fields of ``Settings``; None leaves the environment's value.
    """
    from app.telemetry import configure_logging

    quiet_libraries()
    settings = load_settings()
    settings = settings.model_copy(update={name: value for name, value in overrides.items() if value is not None})
    configure_logging(settings)
    return settings


def model_directory(name: str) -> Path:
    """The folder of a model below MODELS_DIR.

    Raises:
        ConfigError: There is no such model.
    """
    directory = settings_for_command(log_level="warning").models_dir / name
    if not (directory / "config.json").is_file():
        raise ConfigError(f"there is no model {name!r} in {directory.parent}")
    return directory


def require_extras(*packages: str) -> None:
    """Refuse at once what would fail after an hour of work.

    Args:
        packages: As Python imports them.

    Raises:
        ConfigError: One is not installed.
    """
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed; run: make install, or pip install 'tollgate[engine-cpu,train]'"
        )


def import_tensorflow() -> None:
    """Load TensorFlow without the lines that its C++ half writes at every start.

    Raises:
        ConfigError: It is not installed.
    """
    import importlib
    import os

    require_extras("tensorflow")
    # Whatever TF_CPP_MIN_LOG_LEVEL says, TensorFlow 2.21 logs before it has read it.
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        importlib.import_module("tensorflow")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def usd_option(text: str | None, option: str, *, is_signed: bool = False) -> int | None:
    """An option's amount of USD in 10^-12 USD; None: it was not given.

    Raises:
        BadRequest: It is no amount; names the option.
    """
    from app.billing.amounts import parse_usd

    try:
        return None if text is None else parse_usd(text, option, is_signed=is_signed)
    except BadRequest as error:
        raise BadRequest(f"{option} {text}: {error.message}", param=option) from None


def with_database(action: "Callable[[Database, Settings], Awaitable[T]]") -> T:
    """Runs ``action`` on the database in use; starts the embedded one if none runs, and migrates it.

    Args:
        action: Opens transactions as it needs them.

    Raises:
        DatabaseUnavailable: The database does not answer.
        ConfigError: The embedded one cannot be started.
    """
    import asyncio

    from app import migrate, postgres
    from app.db import Database

    # Only what goes wrong: the command's own output is on standard output.
    settings = settings_for_command(log_level="warning")

    async def run(url: str) -> T:
        if settings.database_url is None:  # a database of our own, perhaps new
            await migrate.upgrade(url)
        database = Database.connect(url, pool_size=1)
        try:
            return await action(database, settings)
        finally:
            await database.aclose()

    with postgres.available(settings) as url:
        return asyncio.run(run(url))
