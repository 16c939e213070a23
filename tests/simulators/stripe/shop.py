"""What the tests of billing sell: flat prices by month and year and one metered price, under a test clock."""

from datetime import UTC, datetime
from typing import Any

from tests.simulators.stripe.simulator import Simulator

DAY = 86_400
HOUR = 3_600


def at(text: str) -> int:
    """Unix seconds of `2026-01-15` or `2026-01-15 12:30`, in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


class Shop:
    """A catalogue, a test clock, and a customer with a card that pays."""

    def __init__(self, simulator: Simulator, start: str = "2026-01-15", card: str | None = "pm_card_visa") -> None:
        self.simulator = simulator
        self.v1 = simulator.v1
        self.clock = self.v1.test_helpers.test_clocks.create({"frozen_time": at(start)}).id
        self.meter = self.v1.billing.meters.create(
            {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
        ).id
        self.plan = self.v1.products.create({"name": "Pro"}).id
        self.tokens = self.v1.products.create({"name": "Tokens"}).id
        self.month = self.flat(2_000, "month")
        self.year = self.flat(20_000, "year")
        self.metered = self.per_unit("0.01")
        self.customer = self.new_customer(card)

    def new_customer(self, card: str | None = "pm_card_visa") -> str:
        params: dict[str, Any] = {"test_clock": self.clock, "email": "a@acme.example", "name": "Acme"}
        if card is not None:
            params |= {"payment_method": card, "invoice_settings": {"default_payment_method": card}}
        return str(self.v1.customers.create(params).id)

    def flat(self, cents: int, interval: str, **more: Any) -> str:
        recurring = {"interval": interval}
        params = {"product": self.plan, "currency": "usd", "unit_amount": cents, "recurring": recurring, **more}
        return str(self.v1.prices.create(params).id)

    def per_unit(self, cents: str) -> str:
        return self._metered(unit_amount_decimal=cents)

    def graduated(self, *tiers: dict[str, Any]) -> str:
        return self._metered(billing_scheme="tiered", tiers_mode="graduated", tiers=list(tiers))

    def _metered(self, **amounts: Any) -> str:
        recurring = {"interval": "month", "usage_type": "metered", "meter": self.meter}
        params = {"product": self.tokens, "currency": "usd", "recurring": recurring, **amounts}
        return str(self.v1.prices.create(params).id)

    def subscribe(self, *prices: str, **more: Any) -> Any:
        items = [{"price": price} for price in prices or (self.month, self.metered)]
        return self.v1.subscriptions.create({"customer": self.customer, "items": items, **more})

    def subscription(self, id: str) -> Any:
        return self.v1.subscriptions.retrieve(id)

    def use(self, tokens: int, when: str | int, customer: str | None = None) -> None:
        moment = at(when) if isinstance(when, str) else when
        payload = {"stripe_customer_id": customer or self.customer, "value": str(tokens)}
        self.v1.billing.meter_events.create({"event_name": "tokens", "payload": payload, "timestamp": moment})

    def go(self, when: str | int) -> None:
        """Let the clock stand at a moment, and everything happen until then; by two months at once, which it allows."""
        moment = at(when) if isinstance(when, str) else when
        clocks = self.v1.test_helpers.test_clocks
        start = clocks.retrieve(self.clock).frozen_time
        for stop in (*range(start + 59 * DAY, moment, 59 * DAY), moment):
            clocks.advance(self.clock, {"frozen_time": stop})
            assert clocks.retrieve(self.clock).status == "ready"

    def invoices(self, customer: str | None = None, **query: Any) -> list[Any]:
        """Oldest first."""
        found = self.v1.invoices.list({"customer": customer or self.customer, "limit": 100, **query}).data
        return list(reversed(found))

    def events(self, *types: str) -> list[str]:
        """The types of the events so far, oldest first; of these only, if any are named."""
        found = reversed(self.v1.events.list({"limit": 100}).data)
        return [event.type for event in found if not types or event.type in types]

    def event(self, type: str) -> Any:
        """The latest event of a type."""
        return self.v1.events.list({"type": type, "limit": 1}).data[0]


def item_of(subscription: Any, price: str) -> Any:
    return next(item for item in subscription["items"].data if item.price.id == price)


def lines(invoice: Any) -> list[tuple[int, int, str]]:
    """Quantity, cents and description of each line."""
    return [(line.quantity, line.amount, line.description) for line in invoice.lines.data]
