"""A simulated Stripe beside ``tollgate up``, so that everything can be tried without an account.

It runs where nobody has set a key, in development, from a checkout: an installed package
does not hold it. Its account lies in the data folder and outlives a restart; the database
remembers its customers, so the two belong together. Its webhooks are signed with a secret
that follows from this installation's own.
"""

import asyncio
import hmac
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from sqlalchemy import select

from app import migrate
from app.billing import sync
from app.billing.gateway import Gateway
from app.config import Settings, child_environment
from app.db import Database
from app.errors import StripeRefused, TollgateError
from app.supervise import Child, Role
from app.tables import Org

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "sk_test_simulated"
ROLE = "stripe"
HOST = "127.0.0.1"
STATE = "stripe.json"
MISSING = "none: the simulation comes with a checkout only; set TOLLGATE_STRIPE_API_KEY"
POLL_S = 0.2
LONGEST_START_S = 60.0
MAX_STARTS = 3


def is_wanted(settings: Settings) -> bool:
    """Whether this installation has no account at Stripe and is to have a simulated one."""
    return settings.env == "development" and settings.stripe_api_key is None and settings.simulate_stripe


def is_there() -> bool:
    """Whether there is a simulator: only a checkout has it."""
    return (ROOT / "simulators" / "stripe" / "__main__.py").is_file()


def connected(settings: Settings) -> Settings:
    """The settings with which the other roles know the simulator, which then listens on a port that is free now."""
    port = _free_port(settings.port + 1)
    simulated = {
        "stripe_api_key": SecretStr(API_KEY),
        "stripe_api_base": f"http://{HOST}:{port}",
        "stripe_webhook_secrets": SecretStr(_webhook_secret(settings)),
    }
    return settings.model_copy(update=simulated)


def role(settings: Settings, webhook_url: str) -> Role:
    """The simulator as a child of this process.

    Args:
        settings: As ``connected`` makes them.
        webhook_url: Where it sends its events.
    """
    assert settings.stripe_api_base is not None
    words = {
        "--host": HOST,
        "--port": settings.stripe_api_base.rpartition(":")[2],
        "--webhook-url": webhook_url,
        "--webhook-secret": settings.webhook_secrets[0],
        "--state": str(settings.data_dir.resolve() / STATE),
    }
    command = [sys.executable, "-P", "-m", "simulators.stripe", *(word for pair in words.items() for word in pair)]
    # It is told nothing of this installation.
    environment = child_environment(Settings.model_construct(), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    return Role(ROLE, command, environment)


def without_address(on_line: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """``on_line`` for all that the simulator writes but the line with its address, which is known."""

    def forward(name: str, line: str) -> None:
        if not line.startswith('{"url"'):
            on_line(name, line)

    return forward


async def prepare(settings: Settings, child: Child, stop: asyncio.Event) -> str:
    """Waits for the simulator and pushes the catalogue to it.

    Args:
        settings: As ``connected`` makes them, with a database, which remembers where the prices lie.
        child: The simulator.
        stop: Ends the wait.

    Returns:
        What to tell a person: where it is, or what is wrong.
    """
    deadline_s = asyncio.get_running_loop().time() + LONGEST_START_S
    while not await _listens(settings):
        is_late = asyncio.get_running_loop().time() > deadline_s or child.starts > MAX_STARTS
        if stop.is_set() or is_late:
            return f"the simulation does not start: {child.last_line}"
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_S)
    gateway, database = Gateway.of(settings), Database.connect(migrate.required_url(settings), pool_size=1)
    try:
        report = await sync.push(database, gateway, datetime.now(UTC))
        is_strange = not await _knows_customers(database, gateway)
        return _told(settings, report, is_strange=is_strange)
    except TollgateError as error:
        return f"the simulation does not take the catalogue: {error.message}"
    finally:
        await gateway.aclose()
        await database.aclose()


async def _listens(settings: Settings) -> bool:
    address = urlsplit(settings.stripe_api_base or "")
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError:
        return False
    writer.close()
    return True


async def _knows_customers(database: Database, gateway: Gateway) -> bool:
    """Whether the first customer that the database remembers is one of this account's; so where there is none."""
    known = select(Org.stripe_customer_id).where(Org.stripe_customer_id.is_not(None)).order_by(Org.id).limit(1)
    async with database.begin() as connection:
        customer = await connection.scalar(known)
    if customer is None:
        return True
    try:
        await gateway.retrieve_customer(customer)
    except StripeRefused:
        return False
    return True


def _told(settings: Settings, report: sync.Report, *, is_strange: bool) -> str:
    # To remove the file alone would leave a database with customers that nobody knows.
    anew = f"to begin anew, remove {settings.data_dir}, and empty the database if it lies elsewhere"
    if is_strange:
        file = settings.data_dir / STATE
        return f"the simulation does not know the customers of this database: put its {file} back; {anew}"
    if report.drift:
        names = ", ".join(report.drift)
        return f"the simulation knows another catalogue: {names}; give what changed a new version; {anew}"
    return f"{settings.stripe_api_base}/ (simulated: no money moves)"


def _webhook_secret(settings: Settings) -> str:
    # Not kept anywhere: it follows from a secret that is.
    key = settings.secret_key.get_secret_value().encode()
    return "whsec_" + hmac.digest(key, b"webhooks of the simulated Stripe", "sha256").hex()


def _free_port(wanted: int) -> int:
    """``wanted``, so that links to it live on over a restart, or any other where it is taken."""
    with suppress(OSError, OverflowError):
        return _bound(wanted)
    return _bound(0)


def _bound(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
