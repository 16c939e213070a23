"""Where the year happens: PostgreSQL, the API that takes webhooks in, and a simulated Stripe beside."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydantic import SecretStr

from app.billing import effects, sync
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.main import create_app
from app.supervise import follow_parent
from tests.serving import Server

ROOT = Path(__file__).parents[2]
GOOD_CARD = "4242 4242 4242 4242"
GRACE = timedelta(days=7)
_AUTH = {"authorization": "Bearer sk_test_year"}


@dataclass
class Town:
    """The running parts.

    Attributes:
        stripe: To the simulator's API, pages and controls, without the client library.
    """

    settings: Settings
    database: Database
    gateway: Gateway
    stripe: httpx.AsyncClient

    async def deliver(self) -> int:
        """Delivers every webhook that waits; returns how many."""
        answer = (await self.stripe.post("/_control/api/flush")).raise_for_status().json()
        assert not answer["failed"], answer
        return int(answer["delivered"])

    async def pay(self, url: str, card: str = GOOD_CARD) -> None:
        """Pays on a page of the checkout."""
        answer = await self.stripe.post(url, data={"number": card})
        assert answer.status_code == 303, answer.text

    async def ask(self, path: str, **params: Any) -> dict[str, Any]:
        """An object of the API."""
        answer = await self.stripe.get(path, params=params)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    async def tell(self, path: str, **params: Any) -> dict[str, Any]:
        """A POST to the API, parameters in Stripe's form encoding."""
        answer = await self.stripe.post(path, data=params)
        made: dict[str, Any] = answer.raise_for_status().json()
        return made

    async def all(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Every object of a list."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await self.ask(path, limit=100, **params, **after)
            found += page["data"]
            if not page["has_more"]:
                return found


@asynccontextmanager
async def running(database_url: str, folder: Path) -> AsyncIterator[Town]:
    """The town, with the catalogue at Stripe; ends with every process and connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    simulator, stripe_url = _start_simulator()
    try:
        secret = await _enable_webhooks(stripe_url, f"http://127.0.0.1:{listener.getsockname()[1]}/webhooks/stripe")
        settings = Settings(
            database_url=database_url,
            data_dir=folder / "data",
            models_dir=folder / "models",
            key_pepper=SecretStr("pepper-of-the-year"),
            secret_key=SecretStr("secret-of-the-year"),
            stripe_api_key=SecretStr("sk_test_year"),
            stripe_api_base=stripe_url,
            stripe_webhook_secrets=SecretStr(secret),
            log_level="warning",
        )
        async with _api(settings, listener), _clients(settings, stripe_url) as town:
            report = await sync.push(town.database, town.gateway, datetime.now().astimezone())
            assert not report.drift, report.drift
            yield town
    finally:
        simulator.terminate()
        await asyncio.to_thread(simulator.wait)
        assert simulator.stdout is not None
        simulator.stdout.close()


@asynccontextmanager
async def _clients(settings: Settings, stripe_url: str) -> AsyncIterator[Town]:
    assert settings.database_url is not None
    database, gateway = Database.connect(settings.database_url), Gateway.of(settings)
    async with httpx.AsyncClient(base_url=stripe_url, headers=_AUTH, timeout=60) as stripe:
        yield Town(settings, database, gateway, stripe)
    await gateway.aclose()
    await database.aclose()


@asynccontextmanager
async def _api(settings: Settings, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(create_app(settings), log_config=None, access_log=False, ws="none")
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await server.ready.wait()
    try:
        yield
    finally:
        server.end()
        await task


async def _enable_webhooks(stripe_url: str, our_url: str) -> str:
    """Makes the endpoint as the operator's guide says, with these events and no others; returns its secret."""
    events = {f"enabled_events[{number}]": name for number, name in enumerate(effects.SUBJECTS)}
    async with httpx.AsyncClient(base_url=stripe_url, headers=_AUTH) as stripe:
        answer = await stripe.post("/v1/webhook_endpoints", data={"url": our_url, **events})
    return str(answer.raise_for_status().json()["secret"])


def _start_simulator() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "simulators.stripe", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=follow_parent(signal.SIGTERM),
    )
    assert process.stdout is not None
    line: Mapping[str, str] = json.loads(process.stdout.readline())
    return process, line["url"]
