"""The worker's jobs about Stripe, as it runs them: each may run twice, and together they keep both sides even."""

from datetime import timedelta

from pydantic import SecretStr

from app import worker
from app.config import Settings
from tests.billing.stripe_world import START, StripeWorld

DAY = timedelta(days=1)


async def test_the_jobs_take_in_what_was_bought_and_find_nothing_amiss(
    stripe_world: StripeWorld, settings: Settings
) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    older = world.subscribe(customer)
    world.go(START + DAY)
    world.subscribe(customer, "growth")
    settings = settings.model_copy(update={"stripe_api_key": SecretStr("sk_test")})
    jobs = {job.name: job for job in (*worker.billing_jobs(settings), *worker.stripe_jobs(settings, world.gateway))}
    assert len(jobs) == len(worker.billing_jobs(settings)) + len(worker.stripe_jobs(settings, world.gateway))
    # Nothing was delivered: the sweep has to find it.
    await jobs["sweep_stripe_events"].run(world.database, world.now)
    await jobs["work_off_stripe_events"].run(world.database, world.now)
    await jobs["end_duplicate_subscriptions"].run(world.database, world.now)
    assert await world.budget(org_id) == ("growth", "active", None)
    assert world.v1.subscriptions.retrieve(older).status == "canceled"
    for _ in range(2):
        for job in jobs.values():
            await job.run(world.database, world.now)
    assert await world.budget(org_id) == ("growth", "active", None)
    assert await world.rows("SELECT id FROM stripe_events WHERE processed_at IS NULL") == []
    assert await world.rows("SELECT id FROM invoices WHERE metered_value <> ledger_value") == []


async def test_a_grace_that_has_run_out_restricts_though_stripe_is_away(
    stripe_world: StripeWorld, settings: Settings
) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer)
    world.simulator.control("POST", f"/customers/{customer}/decline")
    world.go(START + 28 * DAY + timedelta(hours=2))
    await world.settle()
    world.simulator.hazard("outage")
    (job,) = [job for job in worker.billing_jobs(settings) if job.name == "apply_entitlements"]
    await job.run(world.database, world.now)
    assert await world.budget(org_id) == ("starter", "active", None)
    await job.run(world.database, world.now + timedelta(days=settings.billing_grace_days))
    assert await world.budget(org_id) == ("starter", "restricted", "past_due")
