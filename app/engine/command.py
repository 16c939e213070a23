"""`tollgate engine`: serves every enabled model of MODELS_DIR until it is told to stop."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from app.config import Settings, make_private_dir
from app.engine.device import device_name
from app.engine.host import Host, Load
from app.engine.loader import load_model, load_stub
from app.engine.server import EngineServer
from app.errors import TollgateError
from app.modeling.registry import Registry
from app.telemetry import configure_logging, get_logger

log = get_logger(__name__)

UNIX = "unix:"


def serve(settings: Settings, *, stub: bool = False, step_ms: float = 0.0) -> None:
    """Serve until SIGTERM or SIGINT; returns after the calls in flight have finished.

    Args:
        settings: where the models are, where to listen, how many slots.
        stub: run the hand-computable device instead of the models' weights; names
            and sizes still come from MODELS_DIR.
        step_ms: with `stub`, how long each step takes.

    Raises:
        TollgateError: the device failed, or nothing could be started; a supervisor should start a new process.
    """
    configure_logging(settings)
    load = partial(load_stub, settings, step_s=step_ms / 1000) if stub else partial(load_model, settings)
    if not asyncio.run(_serve(settings, load, (lambda: "stub") if stub else device_name)):
        raise TollgateError("the engine failed; see the log")


async def _serve(settings: Settings, load: Load, name_device: Callable[[], str]) -> bool:
    """Serve until a signal (True) or until it cannot go on (False)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.engine_listen.startswith(UNIX):
        make_private_dir(Path(settings.engine_listen.removeprefix(UNIX)).parent)
    # Before anybody can ask: an engine that has not looked yet would seem to have no model.
    cards = [card for card in Registry(settings.models_dir).list() if card.enabled]
    host = Host(load, cards, settings.engine_queue, settings.request_timeout_s)
    server = EngineServer(host, settings.engine_listen)
    await server.start()
    loading = asyncio.create_task(_load(host, server, name_device))
    loading.add_done_callback(partial(_give_up_if_failed, host))
    await _first_of(stop, host.lost)
    loading.cancel()
    await server.drain(settings.drain_timeout_s if stop.is_set() else 0)
    return stop.is_set()


async def _load(host: Host, server: EngineServer, name_device: Callable[[], str]) -> None:
    await host.start()
    host.device = name_device()
    ready = [name for name, model in host.models.items() if model.is_ready]
    if not ready:
        # It stays, so that `Describe` can say which models are broken: another start
        # would find the same files.
        log.error("engine.no_model_ready", models=[*host.models])
        return
    await server.set_ready()
    log.info("engine.ready", device=host.device, models=ready)


def _give_up_if_failed(host: Host, loading: "asyncio.Task[None]") -> None:
    if not loading.cancelled() and loading.exception() is not None:
        log.error("engine.start_failed", exc_info=loading.exception())
        host.lost.set()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
