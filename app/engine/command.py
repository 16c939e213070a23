"""`tollgate engine`: serves every enabled model of MODELS_DIR until it is told to stop."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from app.config import Settings, make_private_dir
from app.engine.device import device_name
from app.engine.host import Host, Load
from app.engine.loader import load_model, load_stub
from app.engine.server import EngineServer
from app.errors import ConfigError
from app.modeling.registry import Registry
from app.telemetry import configure_logging, get_logger

log = get_logger(__name__)

UNIX = "unix:"


class Ending(NamedTuple):
    """How it came to an end.

    Attributes:
        is_wanted: by a signal; else it could not go on.
        is_loading: models were still being loaded.
    """

    is_wanted: bool
    is_loading: bool


def serve(settings: Settings, *, stub: bool = False, step_ms: float = 0.0) -> None:
    """Serve until SIGTERM or SIGINT; returns after the calls in flight have finished.

    Where threads may still be at work, it ends the process instead: with status 0 if models were
    still being loaded, with 1 if the device failed, so that a supervisor starts a new process.

    Args:
        settings: where the models are, where to listen, how many slots.
        stub: run the hand-computable device instead of the models' weights; names
            and sizes still come from MODELS_DIR.
        step_ms: with `stub`, how long each step takes.

    Raises:
        ConfigError: nobody can listen at the address, or another engine does.
    """
    configure_logging(settings)
    load = partial(load_stub, settings, step_s=step_ms / 1000) if stub else partial(load_model, settings)
    ending = asyncio.run(_serve(settings, load, (lambda: "stub") if stub else device_name))
    if not ending.is_wanted:
        log.error("engine.failed")
        _leave(1)
    if ending.is_loading:
        _leave(0)


async def _serve(settings: Settings, load: Load, name_device: Callable[[], str]) -> Ending:
    """Serve until a signal or until it cannot go on."""
    stop = asyncio.Event()
    with _sole_listener(settings.engine_listen):
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        # Before anybody can ask: an engine that has not looked yet would seem to have no model.
        cards = [card for card in Registry(settings.models_dir).list() if card.enabled]
        host = Host(load, cards, settings.engine_queue, settings.request_timeout_s)
        server = EngineServer(host, settings.engine_listen)
        await server.start()
        loading = asyncio.create_task(_load(host, server, name_device))
        loading.add_done_callback(partial(_give_up_if_failed, host))
        await _first_of(stop, host.lost)
        is_loading = loading.cancel()
        await server.drain(settings.drain_timeout_s if stop.is_set() else 0)
    return Ending(stop.is_set(), is_loading)


@contextmanager
def _sole_listener(address: str) -> Iterator[None]:
    """Hold the path of a unix socket: gRPC would take it from an engine that listens there, and remove it at its end.

    The lock is the kernel's: it ends with the process, however that ends.
    """
    if not address.startswith(UNIX):
        yield
        return
    path = Path(address.removeprefix(UNIX))
    make_private_dir(path.parent)
    with path.with_name(path.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another engine listens on {path}") from None
        yield


def _leave(code: int) -> NoReturn:
    """End the process at once; Python would wait for threads that compile or hang, which nothing can stop."""
    logging.shutdown()
    os._exit(code)


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
