"""Several subscriptions of an organisation: each organisation's are its own matter."""

from datetime import timedelta
from typing import Any

import pytest

from app.billing import duplicates
from app.errors import StripeRefused
from tests.billing.stripe_world import GRACE, StripeWorld


async def test_one_that_cannot_be_ended_keeps_no_other_alive(
    stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    olds = []
    for name in ("Acme", "Bell"):
        _, customer = await stripe_world.customer(name)
        olds.append(stripe_world.subscribe(customer))
        stripe_world.go(stripe_world.now + timedelta(hours=1))
        stripe_world.subscribe(customer, "growth")
    await stripe_world.settle()
    cancel = stripe_world.gateway.cancel_subscription

    async def refuse_first(subscription_id: str) -> dict[str, Any]:
        if subscription_id == olds[0]:
            raise StripeRefused("No.")
        return await cancel(subscription_id)

    monkeypatch.setattr(stripe_world.gateway, "cancel_subscription", refuse_first)
    with pytest.raises(StripeRefused):
        await duplicates.end_all(stripe_world.database, stripe_world.gateway, stripe_world.now, GRACE)
    found = [stripe_world.v1.subscriptions.retrieve(old).status for old in olds]
    assert found == ["active", "canceled"]
