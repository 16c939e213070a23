"""Periodic jobs beside the request path: partitions, rollups, retention, logins, last use of keys, and Stripe.

Each job is one transaction, or one for each of those that it looks at, and may run twice, late or in
several workers at once. A job that fails is logged and counted, and tried again at its
next turn; this loop is one of the three edges at which any exception is caught.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from app import idempotency, keys, partitions, recovery, throttle
from app.accounts import invitations, mailings, passwords, sessions, sign_ups
from app.alerts import notifications, thresholds
from app.alerts.calls import Caller
from app.alerts.notifications import Messenger
from app.billing import (
    burns,
    claims,
    credits,
    duplicates,
    entitlement,
    inbox,
    invoices,
    outbox,
    reconcile,
    retention,
    rollups,
    sync,
)
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.errors import ConfigError
from app.mail import send
from app.portal.account_mails import composer
from app.portal.alert_mails import alert_mailer
from app.privacy import deletion, prompts
from app.telemetry import (
    JOB_DONE_SECONDS,
    JOB_FAILURES,
    JOB_INTERVAL_SECONDS,
    JOB_SECONDS,
    get_logger,
    serving_metrics,
)

log = get_logger(__name__)

Clock = Callable[[], datetime]
Pause = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every ``interval_s`` seconds, first at the start."""

    name: str
    interval_s: float
    run: Callable[[Database, datetime], Awaitable[None]]


def utc_now() -> datetime:
    """The present, aware."""
    return datetime.now(UTC)


async def make_partitions(database: Database, now: datetime) -> None:
    """Makes this month's partition of usage events and those of the next three."""
    async with database.begin() as connection:
        await partitions.ensure_partitions(connection, now.astimezone(UTC).date())


async def delete_expired_sessions(database: Database, now: datetime) -> None:
    """Removes portal logins that have ended, links of mails that are over, and mails that nobody waits for."""
    async with database.begin() as connection:
        await sessions.delete_expired_sessions(connection, now)
        await sign_ups.delete_expired_sign_ups(connection, now)
        await passwords.delete_expired_resets(connection, now)
        await invitations.delete_expired_invitations(connection, now)
        await mailings.delete_expired_mails(connection, now)


async def forget_attempts(database: Database, now: datetime) -> None:
    """Removes counts of attempts that are over."""
    async with database.begin() as connection:
        await throttle.sweep(connection, now)


async def touch_used_keys(database: Database, _: datetime) -> None:
    """Dates the last use of keys."""
    async with database.begin() as connection:
        await keys.touch_used_keys(connection)


async def roll_up_usage(database: Database, _: datetime) -> None:
    """Sums the hours that are over, and anew those that have changed."""
    is_more = True
    while is_more:
        async with database.begin() as connection:
            is_more = await rollups.roll_next(connection)


def drop_old_usage(keep_months: int) -> Job:
    """The job that drops usage rows older than so many whole months; 0: it does nothing."""

    async def run(database: Database, now: datetime) -> None:
        if not keep_months:
            return
        async with database.begin() as connection:
            dropped = await retention.drop_old_usage(connection, now.astimezone(UTC).date(), keep_months)
        if dropped:
            log.info("usage.dropped", partitions=dropped)

    return Job("drop_old_usage", 3600.0, run)


async def delete_old_stripe_events(database: Database, _: datetime) -> None:
    """Removes what Stripe told us long ago."""
    async with database.begin() as connection:
        await inbox.delete_old(connection)


def billing_jobs(settings: Settings) -> tuple[Job, ...]:
    """What is done about money whether or not there is a Stripe."""
    grace = timedelta(days=settings.billing_grace_days)

    async def apply_entitlements(database: Database, now: datetime) -> None:
        await entitlement.apply_all(database, now, grace)

    return (
        Job("apply_entitlements", 60.0, apply_entitlements),
        Job("claim_usage", 60.0, claims.claim_due),
        Job("burn_credit", 300.0, burns.burn_due),
        Job("expire_credit", 900.0, credits.expire_due),
        Job("measure_meter_outbox", 60.0, reconcile.measure),
        Job("delete_old_stripe_events", 3600.0, delete_old_stripe_events),
    )


def stripe_jobs(settings: Settings, gateway: Gateway) -> tuple[Job, ...]:
    """What is told to Stripe and taken from it."""
    grace = timedelta(days=settings.billing_grace_days)

    async def work_off_stripe_events(database: Database, now: datetime) -> None:
        await inbox.work_off(database, gateway, now, grace)

    async def sweep_stripe_events(database: Database, now: datetime) -> None:
        await inbox.sweep(database, gateway, now)

    async def end_duplicate_subscriptions(database: Database, now: datetime) -> None:
        await duplicates.end_all(database, gateway, now, grace)

    async def audit_invoices(database: Database, now: datetime) -> None:
        await invoices.audit_recent(database, now)

    async def send_meter_events(database: Database, now: datetime) -> None:
        await outbox.drain(database, gateway, now=now)

    async def settle_doubted_usage(database: Database, now: datetime) -> None:
        await reconcile.settle_doubts(database, gateway, now)

    async def compare_usage(database: Database, now: datetime) -> None:
        await reconcile.watch(database, gateway, now)

    async def check_catalog(database: Database, now: datetime) -> None:
        drift = await sync.check(database, gateway, now)
        if drift:
            log.warning("catalog.drift", drift=drift)

    return (
        Job("check_catalog", 3600.0, check_catalog),
        Job("work_off_stripe_events", 1.0, work_off_stripe_events),
        Job("sweep_stripe_events", 900.0, sweep_stripe_events),
        Job("end_duplicate_subscriptions", 60.0, end_duplicate_subscriptions),
        Job("audit_invoices", 600.0, audit_invoices),
        Job("send_meter_events", 5.0, send_meter_events),
        Job("settle_doubted_usage", 300.0, settle_doubted_usage),
        Job("compare_usage", 3600.0, compare_usage),
    )


async def release_expired_reservations(database: Database, _: datetime) -> None:
    """Frees what is held for requests that ended without a word."""
    await recovery.release_expired(database)


async def delete_expired_answers(database: Database, _: datetime) -> None:
    """Removes answers that were kept for their ``Idempotency-Key`` long enough."""
    async with database.begin() as connection:
        await idempotency.delete_expired(connection)


async def delete_expired_requests(database: Database, _: datetime) -> None:
    """Removes requests that customers let us keep once their days are over."""
    async with database.begin() as connection:
        await prompts.delete_expired(connection)


async def delete_old_notifications(database: Database, now: datetime) -> None:
    """Removes mails and calls that were sent, or given up, long ago."""
    async with database.begin() as connection:
        await notifications.delete_old(connection, now)


async def delete_organisations(database: Database, now: datetime) -> None:
    """Deletes those whose owners asked for it a day ago."""
    await deletion.delete_due(database, now)


async def tell_limits(database: Database, now: datetime) -> None:
    """Queues mails and calls about limits that are being used up."""
    await thresholds.tell_due(database, now)


def send_notifications(settings: Settings) -> Job:
    """The job that sends what is queued for customers."""

    async def run(database: Database, now: datetime) -> None:
        caller = Caller(is_private_allowed=settings.env == "development")
        try:
            await notifications.send_due(database, Messenger(settings, caller, alert_mailer(settings, database)), now)
        finally:
            await caller.aclose()

    return Job("send_notifications", 5.0, run)


def send_account_mails(settings: Settings) -> Job:
    """The job that sends people links and notes about their accounts."""
    compose = composer(settings)

    async def run(database: Database, now: datetime) -> None:
        await mailings.send_due(database, compose, partial(send, settings), now)

    return Job("send_account_mails", 1.0, run)


JOBS = (
    Job("make_partitions", 3600.0, make_partitions),
    Job("delete_expired_sessions", 600.0, delete_expired_sessions),
    Job("forget_attempts", 600.0, forget_attempts),
    Job("delete_expired_answers", 600.0, delete_expired_answers),
    Job("release_expired_reservations", 30.0, release_expired_reservations),
    Job("touch_used_keys", 30.0, touch_used_keys),
    Job("roll_up_usage", 60.0, roll_up_usage),
    Job("delete_expired_requests", 600.0, delete_expired_requests),
    Job("delete_organisations", 600.0, delete_organisations),
    Job("tell_limits", 60.0, tell_limits),
    Job("delete_old_notifications", 3600.0, delete_old_notifications),
)


def run(settings: Settings) -> None:
    """Works until SIGTERM or SIGINT; a job that runs then is finished first.

    Raises:
        ConfigError: No database is set.
    """
    if settings.database_url is None:
        raise ConfigError("TOLLGATE_DATABASE_URL must be set for the worker")
    database = Database.connect(settings.database_url, pool_size=4, timeout_s=settings.database_timeout_s)
    jobs = (
        *JOBS,
        drop_old_usage(settings.usage_retention_months),
        send_notifications(settings),
        send_account_mails(settings),
        *billing_jobs(settings),
    )
    asyncio.run(_run_until_signal(database, jobs, settings))


async def work(
    database: Database,
    stop: asyncio.Event,
    *,
    jobs: Sequence[Job] = JOBS,
    clock: Clock = utc_now,
    pause: Pause = asyncio.sleep,
) -> None:
    """Runs every job at its interval until ``stop`` is set.

    Args:
        database: For the jobs.
        stop: Ends the pauses at once; a job in progress is finished.
        jobs: What to do.
        clock: The time that jobs are told.
        pause: Waits so many seconds.
    """
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_repeat(job, database, stop, clock, pause), name=job.name)


async def _run_until_signal(database: Database, jobs: Sequence[Job], settings: Settings) -> None:
    gateway = None if settings.stripe_api_key is None else Gateway.of(settings)
    if gateway is not None:
        jobs = (*jobs, *stripe_jobs(settings, gateway))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        with serving_metrics(settings.host, settings.worker_metrics_port):
            log.info("worker.started", jobs=[job.name for job in jobs])
            await work(database, stop, jobs=jobs)
    finally:
        if gateway is not None:
            await gateway.aclose()
        await database.aclose()
    log.info("worker.stopped")


async def _repeat(job: Job, database: Database, stop: asyncio.Event, clock: Clock, pause: Pause) -> None:
    JOB_INTERVAL_SECONDS.labels(job.name).set(job.interval_s)
    while not stop.is_set():
        await _attempt(job, database, clock())
        await _pause_or_stop(pause(job.interval_s), stop)


async def _attempt(job: Job, database: Database, now: datetime) -> None:
    try:
        with JOB_SECONDS.labels(job.name).time():
            await job.run(database, now)
        JOB_DONE_SECONDS.labels(job.name).set_to_current_time()
    except Exception:
        JOB_FAILURES.labels(job.name).inc()
        log.exception("job.failed", job=job.name)


async def _pause_or_stop(pause: Awaitable[None], stop: asyncio.Event) -> None:
    waits = {asyncio.ensure_future(pause), asyncio.ensure_future(stop.wait())}
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
