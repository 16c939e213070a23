"""The API process: ``create_app`` puts it together, ``serve`` runs it.

Nothing happens here: routes, errors and pages live in ``app.api`` and ``app.portal``.
"""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from uvicorn.supervisors import Multiprocess

from app.accounts.hashing import Hashing
from app.admission import Admission
from app.api import (
    catalog,
    chat,
    classifications,
    completions,
    docs,
    embeddings,
    health,
    keys,
    openapi,
    playground,
    usage,
    webhooks,
)
from app.api.direct import DirectRoutes
from app.api.failures import answer_app_error, answer_http_exception, answer_query_error, error_response
from app.api.idempotent import IdempotencyLayer
from app.api.middleware import RequestMiddleware
from app.api.running import RunningRequests
from app.api.served import ServedModels
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.errors import AppError, ConfigError
from app.journal import Journal
from app.key_cache import KeyCache
from app.metering import Ledger
from app.portal import pages
from app.portal.cookies import HostCookies
from app.portal.headers import SecurityHeaders
from app.portal.live import Followers
from app.portal.page import error_page, refused_page, wants_page
from app.privacy.prompts import PromptStore
from app.rpc.client import EngineClient
from app.telemetry import configure_logging

# Longer than the idle timeout of common load balancers, so that they close first.
_KEEP_ALIVE_S = 75
# A worker that does not answer its parent is replaced. The first answer comes only after
# its imports, which on a busy machine take longer than uvicorn's 5 s.
_WORKER_SILENCE_S = 60
_BACKLOG = 2048
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Workers(Multiprocess):
    """uvicorn's supervisor, but draining: its own copy of the socket must not take connections in."""

    def terminate_all(self) -> None:
        """Stops listening, then asks every worker to finish."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; connections open when its lifespan starts.

    Raises:
        ConfigError: No database is set.
    """
    if settings.database_url is None:
        raise ConfigError("TOLLGATE_DATABASE_URL must be set for the API")
    app = FastAPI(
        title="Tollgate",
        version=version("tollgate"),
        summary="An OpenAI-compatible API over models of your own, every token metered.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.requests = RunningRequests()
    work = (completions.router, chat.router, classifications.router, embeddings.router)
    # The last one added is the outermost.
    app.add_middleware(DirectRoutes, routers=work)
    app.add_middleware(IdempotencyLayer)
    app.add_middleware(RequestMiddleware, requests=app.state.requests, failed=_answer_failure)
    app.add_middleware(SecurityHeaders, is_https=settings.env == "production")
    if settings.env == "production":
        app.add_middleware(HostCookies)
    for router in (*work, catalog.router, usage.router, keys.router, keys.public_router):
        app.include_router(router)
    for router in (health.router, docs.router, webhooks.router, playground.router, pages.router):
        app.include_router(router)
    app.mount("/static", pages.static_files())
    app.add_exception_handler(AppError, answer_app_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, answer_query_error)
    openapi.complete(app)
    return app


def serve(settings: Settings, workers: int = 1, fd: int | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains: no new connections, running answers may finish.

    Args:
        settings: Address, and how long to drain.
        workers: Processes on one listening socket. They end with this one, however it
            ends. Their metrics are merged where prometheus_client's folder is set.
        fd: An inherited socket that listens already; None: one is opened at the
            settings' host and port.

    Raises:
        ConfigError: The address cannot be listened on, or the settings do not fit.
    """
    config = uvicorn.Config(
        partial(_worker_app, settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_worker_healthcheck=_WORKER_SILENCE_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s),
    )
    listener = _listen(settings) if fd is None else socket.socket(fileno=fd)
    if workers > 1:
        _Workers(config, sockets=[listener]).run()
        return
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise ConfigError("the API could not start; see the log above")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    assert settings.database_url is not None  # create_app refuses
    app.state.database = Database.connect(
        settings.database_url, pool_size=settings.database_pool_size, timeout_s=settings.database_timeout_s
    )
    app.state.engine = EngineClient(
        settings.engine_target, stall_s=settings.engine_stall_s, keepalive_s=settings.engine_keepalive_s
    )
    app.state.models = ServedModels(settings.models_dir)
    app.state.ledger = Ledger(app.state.database, Journal(settings.journal_dir), timeout_s=settings.database_timeout_s)
    app.state.ledger.start()
    app.state.admission = Admission(
        app.state.database,
        app.state.ledger,
        timeout_s=settings.database_timeout_s,
        billing_url=f"{settings.portal_url}/billing",
    )
    # Of the portal alone: no request of the API waits for Stripe.
    app.state.gateway = Gateway.of(settings) if settings.stripe_api_key is not None else None
    app.state.prompts = PromptStore(app.state.database)
    app.state.hashing = Hashing()
    app.state.followers = Followers()
    async with _key_news(app, settings.database_url, settings.database_timeout_s):
        yield
    # Those that were cut off after the time to drain still write their usage rows.
    await app.state.requests.finish()
    app.state.hashing.close()
    await app.state.prompts.aclose()
    await app.state.engine.aclose()
    await app.state.admission.aclose()
    if app.state.gateway is not None:
        await app.state.gateway.aclose()
    await app.state.ledger.aclose()
    await app.state.database.aclose()


@asynccontextmanager
async def _key_news(app: FastAPI, database_url: str, timeout_s: float) -> AsyncIterator[None]:
    """Keys are cached, and forgotten when they change; takes one connection beside the pool."""
    app.state.key_cache = KeyCache()
    channel = Database.connect(database_url, pool_size=1, timeout_s=timeout_s)
    following = asyncio.create_task(app.state.key_cache.follow(channel), name="key_cache")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await channel.aclose()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """A page for a person, the API's error for a program."""
    assert isinstance(error, HTTPException)
    if wants_page(request):
        return await refused_page(request, error.status_code)
    return await answer_http_exception(request, error)


def _answer_failure(request: Request, error: AppError) -> Response:
    """Likewise, where nothing below could answer."""
    return error_page(request, error) if wants_page(request) else error_response(error)


def _worker_app(settings: Settings) -> FastAPI:
    """The application of one worker process."""
    parent = multiprocessing.parent_process()
    if parent is not None:  # one of several: this process was spawned for it
        configure_logging(settings)
        _end_with(parent.pid)
    app = create_app(settings)
    # Modules and schemas stay: the collector need not walk them again and again.
    gc.freeze()
    return app


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None


def _end_with(parent_pid: int | None) -> None:
    """Lets the kernel stop this process, gracefully, when its parent is killed (Linux only)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os.kill(os.getpid(), signal.SIGTERM)
