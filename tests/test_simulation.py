"""The simulated Stripe that comes with ``tollgate up``."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from app import simulation, up
from app.billing import sync
from app.config import Settings
from app.db import Database
from app.errors import StripeRefused
from app.supervise import Child, Role
from app.tables import Org
from tests.factories import make_org
from tests.simulators.stripe.simulator import Simulator, running


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running() as simulator:
        yield simulator


def child() -> Child:
    return Child(Role("stripe", (), {}), on_line=lambda _role, _line: None)


def facing(settings: Settings, url: str) -> Settings:
    return simulation.connected(settings).model_copy(update={"stripe_api_base": url})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, True),
        ({"stripe_api_key": SecretStr("sk_test_own")}, False),
        ({"simulate_stripe": False}, False),
        ({"env": "production"}, False),
    ],
)
def test_it_is_for_development_without_a_key(settings: Settings, given: dict[str, object], wanted: bool) -> None:
    assert simulation.is_wanted(settings.model_copy(update=given)) is wanted


def test_it_comes_with_a_checkout_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert simulation.is_there()
    monkeypatch.setattr(simulation, "ROOT", tmp_path)
    assert not simulation.is_there()


def test_it_listens_next_to_the_api_or_where_there_is_room(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        elsewhere = simulation.connected(settings.model_copy(update={"port": port - 1}))
        assert elsewhere.stripe_api_base != f"http://127.0.0.1:{port}"
    beside = simulation.connected(settings.model_copy(update={"port": port - 1}))
    assert beside.stripe_api_base == f"http://127.0.0.1:{port}"
    assert simulation.connected(settings.model_copy(update={"port": 65535})).stripe_api_base is not None


def test_its_webhooks_are_signed_with_a_secret_of_this_installation(settings: Settings) -> None:
    first, again = simulation.connected(settings), simulation.connected(settings)
    other = simulation.connected(settings.model_copy(update={"secret_key": SecretStr("another secret")}))
    assert first.webhook_secrets == again.webhook_secrets != other.webhook_secrets
    assert first.webhook_secrets[0].startswith("whsec_")


def test_the_child_is_told_where_to_listen_and_no_secret_but_its_own(settings: Settings) -> None:
    connected = simulation.connected(settings)
    role = simulation.role(connected, "http://127.0.0.1:9/webhooks/stripe")
    words = dict(zip(role.command[4::2], role.command[5::2], strict=True))
    assert connected.stripe_api_base == f"http://{words['--host']}:{words['--port']}"
    assert words["--webhook-url"] == "http://127.0.0.1:9/webhooks/stripe"
    assert words["--webhook-secret"] == connected.webhook_secrets[0]
    assert Path(words["--state"]).parent == settings.data_dir.resolve()
    for secret in (settings.key_pepper, settings.secret_key):
        assert secret.get_secret_value() not in role.environment.values()


def test_the_line_with_its_address_is_not_shown() -> None:
    shown: list[tuple[str, str]] = []
    forward = simulation.without_address(lambda role, line: shown.append((role, line)))
    forward("stripe", '{"url": "http://127.0.0.1:1"}')
    forward("stripe", "Traceback …")
    assert shown == [("stripe", "Traceback …")]


async def test_the_catalogue_is_pushed_once_it_listens(
    database: Database, settings: Settings, simulator: Simulator
) -> None:
    connected = facing(settings, simulator.url)
    for _ in range(2):
        told = await simulation.prepare(connected, child(), asyncio.Event())
        assert told == f"{simulator.url}/ (simulated: no money moves)"
    async with database.begin() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM catalog_prices")).scalar_one() > 10


async def test_an_account_from_before_a_change_of_the_catalogue_is_told(
    database: Database, settings: Settings, simulator: Simulator
) -> None:
    connected = facing(settings, simulator.url)
    await simulation.prepare(connected, child(), asyncio.Event())
    [price] = simulator.v1.prices.list({"lookup_keys": ["tollgate_scale_v1_flat_year"]})
    simulator.v1.prices.update(price.id, {"active": False})
    told = await simulation.prepare(connected, child(), asyncio.Event())
    assert "another catalogue: tollgate_scale_v1_flat_year" in told
    assert told.endswith(f"remove {settings.data_dir}, and empty the database if it lies elsewhere")


async def test_a_database_with_the_customers_of_another_account_is_told(
    database: Database, settings: Settings, simulator: Simulator
) -> None:
    connected = facing(settings, simulator.url)
    org_id = await make_org(database)
    async with database.begin() as connection:
        customer = simulator.v1.customers.create({"name": "Acme"}).id
        await connection.execute(update(Org).where(Org.id == org_id).values(stripe_customer_id=customer))
    assert (await simulation.prepare(connected, child(), asyncio.Event())).startswith(simulator.url)
    simulator.control("POST", "/reset")
    told = await simulation.prepare(connected, child(), asyncio.Event())
    assert told.startswith("the simulation does not know the customers of this database")
    assert str(settings.data_dir / "stripe.json") in told


async def test_a_catalogue_that_is_refused_is_told(
    settings: Settings, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StripeRefused("No such meter.")

    monkeypatch.setattr(sync, "push", refuse)
    told = await simulation.prepare(facing(settings, simulator.url), child(), asyncio.Event())
    assert told == "the simulation does not take the catalogue: No such meter."


async def test_one_that_dies_again_and_again_is_not_waited_for(settings: Settings) -> None:
    dying = child()
    dying.starts, dying.last_line = simulation.MAX_STARTS + 1, "ModuleNotFoundError: stripe"
    told = await simulation.prepare(simulation.connected(settings), dying, asyncio.Event())
    assert told == "the simulation does not start: ModuleNotFoundError: stripe"


async def test_it_is_waited_for(
    database: Database, settings: Settings, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, False, True]

    async def listens(_: Settings) -> bool:
        return answers.pop(0)

    monkeypatch.setattr(simulation, "_listens", listens)
    monkeypatch.setattr(simulation, "POLL_S", 0.0)
    told = await simulation.prepare(facing(settings, simulator.url), child(), asyncio.Event())
    assert told.startswith(simulator.url)
    assert answers == []


async def test_a_stop_ends_the_wait(settings: Settings) -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(simulation.prepare(simulation.connected(settings), child(), stop))
    await asyncio.sleep(0)
    stop.set()
    assert "does not start" in await waiting


@pytest.mark.parametrize(("is_wanted", "line"), [(True, simulation.MISSING), (False, None)])
async def test_an_installed_package_runs_without_it_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_wanted: bool, line: str | None
) -> None:
    monkeypatch.setattr(simulation, "ROOT", tmp_path)
    settings = settings.model_copy(update={"simulate_stripe": is_wanted, "port": 0})
    with up.listening_socket(settings) as listener:
        installation = up.Installation(settings, 1, listener)
        assert (await installation._start_stripe(settings)).stripe_api_key is None
        assert await installation._stripe_line() == line
