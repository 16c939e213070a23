"""Logs, the request id and the one list of Prometheus metrics.

A log line is an event with fields: ``log.info("request.finished", queue_s=0.01)``.
The request id of the running task is added to each line. Prompts, keys and
passwords never go into a field; a stack is printed without the values of variables,
and whatever looks like a key is blotted out. Metrics live in one registry per process; with
several API processes on one machine they are merged through prometheus_client's
multiprocess folder, which ``tollgate up`` and ``tollgate api`` prepare.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar, cast

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)
from prometheus_client import generate_latest as _generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from app.config import Settings, metrics_dir

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

# The prefix of app.auth, which is above this module, and those of Stripe's keys and of webhook
# secrets, Stripe's and ours, which are base64; what follows is the secret.
_KEY = re.compile(r"(tg_live_|[sr]k_(?:live|test)_|whsec_)[0-9A-Za-z+/=]+")

M = TypeVar("M", Counter, Histogram)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that the running task works for."""

# Seconds; from a cached classification to a long generation.
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

HTTP_REQUESTS = Counter("tollgate_http_requests", "Answers sent.", ("route", "method", "status"))
HTTP_SECONDS = Histogram(
    "tollgate_http_request_seconds",
    "From the first byte in to the last byte out.",
    ("route",),
    buckets=_LATENCY_BUCKETS,
)
HTTP_IN_FLIGHT = Gauge("tollgate_http_in_flight", "Requests being worked on.", multiprocess_mode="livesum")
FIRST_TOKEN_SECONDS = Histogram(
    "tollgate_first_token_seconds", "From admission to the first token.", ("model",), buckets=_LATENCY_BUCKETS
)
TOKENS = Counter("tollgate_tokens", "Tokens billed.", ("model", "direction"))
USAGE_ROWS = Counter("tollgate_usage_rows", "Usage rows committed.", ("kind", "state"))
LATE_SETTLEMENTS = Gauge(
    "tollgate_late_settlements", "Usage rows on disk that PostgreSQL has not taken yet.", multiprocess_mode="livesum"
)
REFUSALS = Counter("tollgate_refusals", "Requests refused before any work.", ("code",))
CLIENTS_GONE = Counter("tollgate_clients_gone", "Streams whose client left before the end.", ("model",))
IDEMPOTENT_REQUESTS = Counter("tollgate_idempotent_requests", "Requests with an Idempotency-Key.", ("outcome",))
NOTIFICATIONS = Counter("tollgate_notifications", "Mails and calls to customers' addresses.", ("channel", "outcome"))
STORED_REQUESTS = Counter("tollgate_stored_requests", "Requests of customers who let them be kept.", ("outcome",))
ENGINE_ERRORS = Counter("tollgate_engine_errors", "Engine calls that failed.", ("code",))
METER_EVENTS = Counter("tollgate_meter_events", "What became of usage on its way to Stripe.", ("outcome",))
METER_WAITING_SECONDS = Gauge(
    "tollgate_meter_waiting_seconds",
    "Age of the oldest usage that is to be reported to Stripe and is not.",
    multiprocess_mode="livemostrecent",
)
METER_OUTBOX_ROWS = Gauge(
    "tollgate_meter_outbox_rows",
    "Meter events that are not settled, by state.",
    ("state",),
    multiprocess_mode="livemostrecent",
)
METER_DRIFT = Gauge(
    "tollgate_meter_drift_micro_usd",
    "List value by which Stripe's sums by the hour differ from what it took, of the last days.",
    multiprocess_mode="livemostrecent",
)
STRIPE_EVENTS = Counter("tollgate_stripe_events", "What became of events that Stripe sent.", ("outcome",))
STRIPE_INBOX = Gauge(
    "tollgate_stripe_inbox",
    "Events of Stripe's that are not dealt with, by state.",
    ("state",),
    multiprocess_mode="livemostrecent",
)
STRIPE_INBOX_SECONDS = Gauge(
    "tollgate_stripe_inbox_seconds",
    "Age of the oldest event that waits and is not given up.",
    multiprocess_mode="livemostrecent",
)
DUPLICATE_SUBSCRIPTIONS = Counter(
    "tollgate_duplicate_subscriptions", "Subscriptions that were ended because a newer one was there."
)
BILLING_DRIFT = Gauge(
    "tollgate_billing_drift_micro_usd",
    "List value by which the metered lines of recent invoices differ from the ledger.",
    multiprocess_mode="livemostrecent",
)
JOB_SECONDS = Histogram("tollgate_job_seconds", "One run of a periodic job.", ("job",))
JOB_FAILURES = Counter("tollgate_job_failures", "Runs of a periodic job that raised.", ("job",))
CATALOG_DRIFT = Gauge(
    "tollgate_billing_catalog_drift",
    "Prices and other parts of the catalogue that are not at Stripe what they are here.",
    multiprocess_mode="livemostrecent",
)
MAILS = Counter("tollgate_mails", "Mails handed over, or not taken.", ("outcome",))
JOB_DONE_SECONDS = Gauge(
    "tollgate_job_last_success_seconds",
    "Unix time at which a periodic job last succeeded.",
    ("job",),
    multiprocess_mode="max",
)
JOB_INTERVAL_SECONDS = Gauge(
    "tollgate_job_interval_seconds", "Pause of a periodic job after each run.", ("job",), multiprocess_mode="max"
)
ENGINE_SLOTS = Gauge(
    "tollgate_engine_slots", "Slots of a model by state.", ("model", "state"), multiprocess_mode="livemostrecent"
)
ENGINE_QUEUE = Gauge(
    "tollgate_engine_queue", "Requests waiting for a slot or batch.", ("model",), multiprocess_mode="livemostrecent"
)
ENGINE_STEP_SECONDS = Histogram(
    "tollgate_engine_step_seconds", "One call of a compiled function.", ("model", "phase"), buckets=_STEP_BUCKETS
)
ENGINE_COMPILATIONS = Counter("tollgate_engine_compilations", "Compilations after warm-up; 0 is healthy.", ("model",))


@cache
def labelled(metric: M, *values: str) -> M:
    """The part of a metric that has these labels; the library checks and locks each time that it is asked."""
    return metric.labels(*values)


@contextmanager
def serving_metrics(host: str, port: int) -> Iterator[None]:
    """Shows this process' metrics at ``http://host:port/metrics``, for one that has no HTTP of its own; 0: nowhere.

    Raises:
        OSError: The address is in use.
    """
    if not port:
        yield
        return
    server, thread = start_http_server(port, host)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def configure_logging(settings: Settings) -> None:
    """Sends structlog and the standard library's loggers to standard error as one stream."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared], processors=_renderers(settings)
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    _quieten_libraries()


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of a module; events are ``noun.verb`` with fields."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def render_metrics() -> bytes:
    """All metrics in Prometheus' text format: of this process, or of all that share its folder."""
    folder = metrics_dir()
    if folder is None:
        return _generate_latest(REGISTRY)
    merged = CollectorRegistry()
    MultiProcessCollector(merged, path=folder)  # type: ignore[no-untyped-call]
    return _generate_latest(merged)


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    current = request_id.get()
    if current is not None:
        event.setdefault("request_id", current)
    return event


def _renderers(settings: Settings) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if settings.log_format == "json":
        return [strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _without_keys]
    # The renderer's own choice where rich is installed prints every local variable.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return [strip, console, _without_keys]


def _without_keys(_: WrappedLogger, __: str, line: str | bytes | EventDict) -> str:
    # By now the line is rendered; an exception's own words are the one part of it that
    # nobody here has written.
    return _KEY.sub(r"\1…", str(line))


def _quieten_libraries() -> None:
    # uvicorn installs handlers of its own; request lines come from our middleware.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("uvicorn.access", "httpx", "httpcore", "stripe", "asyncio", "alembic", "absl", "tensorflow", "h5py"):
        logging.getLogger(name).setLevel(logging.WARNING)
