"""The border to Stripe: the only module that imports its library.

A method is one operation that we need, under the name that it has for us; what comes
back is the JSON of Stripe's object as it was on the wire, nothing of the library's.
Failures are our own: ``StripeUnavailable`` where asking again may help, ``StripeRefused``
where it cannot. A call that creates something takes an idempotency key from its caller,
so that sending it again after an unclear failure is safe.

Nothing on the path of a request for inference calls this.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self, cast

import stripe

from app.config import Settings
from app.errors import BadRequest, ConfigError, StripeRefused, StripeUnavailable
from app.telemetry import get_logger

log = get_logger(__name__)

Object = dict[str, Any]
"""An object of Stripe as JSON: times in unix seconds, amounts in cents, decimals as text."""

TIMEOUT_S = 20.0
RETRIES = 2
PAGE = 100
MAX_LOOKUP_KEYS = 10
"""Of one list of prices, by Stripe's documentation."""
MAX_EVENT_TYPES = 20
"""Of one list of events, by Stripe's documentation."""
SIGNATURE_TOLERANCE_S = 300
"""How old a webhook may be."""
_UNCLEAR = frozenset({401, 409, 429})
_FORBIDDEN = 403
_PERMISSION = re.compile(r"\brak_\w+")


class Gateway:
    """A client of one Stripe account; belongs to one event loop.

    Args:
        api_key: Secret or restricted key.
        api_base: Address of the API; None: Stripe's own.
        timeout_s: Longest wait for one operation, its repetitions included.
        retries: Of a call that failed for a moment, with the same idempotency key.
    """

    def __init__(
        self, api_key: str, *, api_base: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self._http = stripe.HTTPXClient(timeout=timeout_s)
        base: Any = {} if api_base is None else {"api": api_base, "meter_events": api_base}
        self._client = stripe.StripeClient(
            api_key, base_addresses=base, http_client=self._http, max_network_retries=retries
        )
        self._timeout_s = timeout_s
        self._meters: dict[str, str] = {}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The account that is set.

        Raises:
            StripeUnavailable: None is.
        """
        if settings.stripe_api_key is None:
            raise StripeUnavailable("Billing is not set up on this installation: it has no key of Stripe.")
        return cls(settings.stripe_api_key.get_secret_value(), api_base=settings.stripe_api_base)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    # Every call goes through one of these two.

    async def _ask(self, call: Awaitable[Any]) -> Object:
        """The JSON that a call of the library brings.

        Raises:
            StripeUnavailable: No answer, or one that leaves open what was done.
            StripeRefused: A clear no.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await call
        except TimeoutError:
            raise _not_reachable() from None
        except stripe.StripeError as error:
            raise _translated(error) from None
        return cast("Object", answer.last_response.data)

    async def _all(self, service: Any, params: Mapping[str, Any]) -> list[Object]:  # noqa: ANN401 - a list service
        """Every object of a list, page by page.

        Raises:
            StripeUnavailable: As ``_ask``; likewise ``StripeRefused``.
        """
        found: list[Object] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await self._ask(service.list_async({**params, "limit": PAGE, **after}))
            found += page["data"]
            if not page["has_more"]:
                return found

    # The catalogue.

    async def list_products(self, ids: Sequence[str]) -> list[Object]:
        """Those of the products that there are, archived ones too."""
        found: list[Object] = []
        for start in range(0, len(ids), PAGE):
            found += await self._all(self._client.v1.products, {"ids": list(ids[start : start + PAGE])})
        return found

    async def create_product(self, product: Mapping[str, Any]) -> Object:
        """Makes a product under the id that ``product`` names; the id makes it safe to repeat."""
        return await self._ask(self._client.v1.products.create_async(cast("Any", product)))

    async def update_product(self, product_id: str, changes: Mapping[str, Any]) -> Object:
        """Changes a product's name, tax code or whether it is active."""
        return await self._ask(self._client.v1.products.update_async(product_id, cast("Any", changes)))

    async def list_prices(self, lookup_keys: Sequence[str]) -> list[Object]:
        """The prices with these lookup keys, archived ones too, with their tiers."""
        found: list[Object] = []
        for start in range(0, len(lookup_keys), MAX_LOOKUP_KEYS):
            some = list(lookup_keys[start : start + MAX_LOOKUP_KEYS])
            for is_active in (True, False):
                params = {"lookup_keys": some, "active": is_active, "expand": ["data.tiers"]}
                found += await self._all(self._client.v1.prices, params)
        return found

    async def create_price(self, price: Mapping[str, Any], idempotency_key: str) -> Object:
        """Makes a price; its lookup key must not be taken."""
        options: Any = {"idempotency_key": idempotency_key}
        return await self._ask(self._client.v1.prices.create_async(cast("Any", price), options))

    async def list_coupons(self) -> list[Object]:
        """Every coupon."""
        return await self._all(self._client.v1.coupons, {})

    async def create_coupon(self, coupon: Mapping[str, Any]) -> Object:
        """Makes a coupon under the id that ``coupon`` names."""
        return await self._ask(self._client.v1.coupons.create_async(cast("Any", coupon)))

    async def list_promotion_codes(self, code: str) -> list[Object]:
        """Those with this code, switched off or not."""
        return await self._all(self._client.v1.promotion_codes, {"code": code})

    async def create_promotion_code(self, promotion_code: Mapping[str, Any]) -> Object:
        """Makes a code that customers type in at checkout."""
        return await self._ask(self._client.v1.promotion_codes.create_async(cast("Any", promotion_code)))

    # The meter.

    async def list_meters(self, status: Literal["active", "inactive"] = "active") -> list[Object]:
        """Every meter that counts, or that somebody has switched off, newest first."""
        return await self._all(self._client.v1.billing.meters, {"status": status})

    async def create_meter(self, meter: Mapping[str, Any]) -> Object:
        """Makes a meter; there can be one active meter of an event name."""
        return await self._ask(self._client.v1.billing.meters.create_async(cast("Any", meter)))

    async def reactivate_meter(self, meter_id: str) -> Object:
        """Lets a meter count again."""
        return await self._ask(self._client.v1.billing.meters.reactivate_async(meter_id))

    async def meter_id(self, event_name: str) -> str:
        """The id of the active meter of this event name; asked for once.

        Raises:
            ConfigError: There is none: the catalogue has not been pushed.
            StripeUnavailable: As every call; likewise ``StripeRefused``.
        """
        if event_name not in self._meters:
            self._meters |= {meter["event_name"]: meter["id"] for meter in await self.list_meters()}
        if event_name not in self._meters:
            raise ConfigError(f"Stripe has no meter {event_name}; run: tollgate billing sync-catalog")
        return self._meters[event_name]

    async def send_meter_event(
        self, event_name: str, customer: str, value: int, at: datetime, identifier: str, *, idempotency_key: str
    ) -> None:
        """Reports usage of a customer; that Stripe took it does not say that it counts it.

        Args:
            event_name: Which meter.
            customer: Stripe's id.
            value: In the meter's unit, above 0 and of at most 15 digits.
            at: When it was used, whole seconds; at most 35 days ago.
            identifier: Makes that sending it twice within a day counts once.
            idempotency_key: Of the call.

        Raises:
            StripeRefused: It is one of its duplicates, or wrong.
            StripeUnavailable: Whether it was taken is not known.
        """
        event: Any = {
            "event_name": event_name,
            "identifier": identifier,
            "timestamp": int(at.timestamp()),
            "payload": {"stripe_customer_id": customer, "value": str(value)},
        }
        options: Any = {"idempotency_key": idempotency_key}
        await self._ask(self._client.v1.billing.meter_events.create_async(event, options))

    async def meter_sums(self, meter_id: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """What a meter has counted of a customer by the hour; hours without usage may be missing.

        Args:
            meter_id: Stripe's.
            customer: Likewise.
            start: A whole hour.
            end: Likewise; exclusive.
        """
        found: dict[datetime, int] = {}
        service = self._client.v1.billing.meters.event_summaries
        while start < end:
            # A page holds them all.
            until = min(end, start + timedelta(hours=PAGE))
            asked: Any = {
                "customer": customer,
                "start_time": int(start.timestamp()),
                "end_time": int(until.timestamp()),
                "value_grouping_window": "hour",
                "limit": PAGE,
            }
            page = await self._ask(service.list_async(meter_id, asked))
            for one in page["data"]:
                # Stripe writes it as a number with a fraction; it is whole, and exact far beyond what an hour can cost.
                found[datetime.fromtimestamp(one["start_time"], UTC)] = int(one["aggregated_value"])
            start = until
        return found

    async def retrieve_thin_event(self, event_id: str) -> Object:
        """A thin event in full, as its notification does not have it."""
        return await self._ask(self._client.v2.core.events.retrieve_async(event_id))

    # Stripe's billing portal.

    async def list_portal_configurations(self) -> list[Object]:
        """Every active configuration."""
        return await self._all(self._client.v1.billing_portal.configurations, {"active": True})

    async def create_portal_configuration(self, configuration: Mapping[str, Any]) -> Object:
        """Makes a configuration of the portal."""
        service = self._client.v1.billing_portal.configurations
        return await self._ask(service.create_async(cast("Any", configuration)))

    async def update_portal_configuration(self, configuration_id: str, changes: Mapping[str, Any]) -> Object:
        """Changes a configuration of the portal."""
        service = self._client.v1.billing_portal.configurations
        return await self._ask(service.update_async(configuration_id, cast("Any", changes)))

    # What customers buy.

    async def create_customer(self, customer: Mapping[str, Any], idempotency_key: str) -> Object:
        """Makes a customer."""
        options: Any = {"idempotency_key": idempotency_key}
        return await self._ask(self._client.v1.customers.create_async(cast("Any", customer), options))

    async def create_checkout(self, session: Mapping[str, Any]) -> Object:
        """Makes a checkout, whose ``url`` the customer's browser opens."""
        return await self._ask(self._client.v1.checkout.sessions.create_async(cast("Any", session)))

    async def list_open_checkouts(self, customer: str) -> list[Object]:
        """A customer's checkouts that can still be paid."""
        return await self._all(self._client.v1.checkout.sessions, {"customer": customer, "status": "open"})

    async def expire_checkout(self, session_id: str) -> Object:
        """Ends an open checkout."""
        return await self._ask(self._client.v1.checkout.sessions.expire_async(session_id))

    async def list_subscriptions(self, customer: str) -> list[Object]:
        """A customer's subscriptions that have not ended."""
        return await self._all(self._client.v1.subscriptions, {"customer": customer})

    async def create_portal_session(self, session: Mapping[str, Any]) -> Object:
        """Opens Stripe's billing portal, at ``url``, for a customer."""
        return await self._ask(self._client.v1.billing_portal.sessions.create_async(cast("Any", session)))

    async def create_subscription_item(self, item: Mapping[str, Any], idempotency_key: str) -> Object:
        """Adds a price to a subscription."""
        options: Any = {"idempotency_key": idempotency_key}
        return await self._ask(self._client.v1.subscription_items.create_async(cast("Any", item), options))

    async def update_subscription(self, subscription_id: str, changes: Mapping[str, Any]) -> Object:
        """Changes a subscription's prices, or when it ends."""
        return await self._ask(self._client.v1.subscriptions.update_async(subscription_id, cast("Any", changes)))

    async def preview_invoice(self, invoice: Mapping[str, Any]) -> Object:
        """The invoice that a change would bring; changes nothing."""
        return await self._ask(self._client.v1.invoices.create_preview_async(cast("Any", invoice)))

    async def create_schedule(self, schedule: Mapping[str, Any]) -> Object:
        """Puts a subscription under a schedule."""
        return await self._ask(self._client.v1.subscription_schedules.create_async(cast("Any", schedule)))

    async def update_schedule(self, schedule_id: str, changes: Mapping[str, Any]) -> Object:
        """Changes what a schedule has planned."""
        return await self._ask(self._client.v1.subscription_schedules.update_async(schedule_id, cast("Any", changes)))

    async def release_schedule(self, schedule_id: str) -> Object:
        """Ends a schedule; its subscription goes on as it is."""
        return await self._ask(self._client.v1.subscription_schedules.release_async(schedule_id))

    # What webhooks are about.

    async def retrieve_subscription(self, subscription_id: str) -> Object:
        """A subscription, with the schedule that it is under."""
        return await self._ask(
            self._client.v1.subscriptions.retrieve_async(subscription_id, cast("Any", {"expand": ["schedule"]}))
        )

    async def cancel_subscription(self, subscription_id: str) -> Object:
        """Ends a subscription at once; usage is invoiced, and unused time becomes credit of the customer.

        One that has ended already is refused.
        """
        terms: Any = {"invoice_now": True, "prorate": True}
        return await self._ask(self._client.v1.subscriptions.cancel_async(subscription_id, terms))

    async def list_open_invoices(self, subscription_id: str) -> list[Object]:
        """A subscription's invoices that are final and not paid."""
        return await self._all(self._client.v1.invoices, {"subscription": subscription_id, "status": "open"})

    async def retrieve_invoice(self, invoice_id: str) -> Object:
        """An invoice with all of its lines."""
        invoice = await self._ask(self._client.v1.invoices.retrieve_async(invoice_id))
        lines = invoice["lines"]
        while lines["has_more"]:
            after: Any = {"limit": PAGE, "starting_after": lines["data"][-1]["id"]}
            page = await self._ask(self._client.v1.invoices.line_items.list_async(invoice_id, after))
            lines["data"] += page["data"]
            lines["has_more"] = page["has_more"]
        return invoice

    async def list_charges(self, payment_intent: str) -> list[Object]:
        """The attempts to collect a payment, newest first."""
        return await self._all(self._client.v1.charges, {"payment_intent": payment_intent})

    async def list_refunds(self, payment_intent: str) -> list[Object]:
        """What was given back of a payment."""
        return await self._all(self._client.v1.refunds, {"payment_intent": payment_intent})

    async def list_disputes(self, payment_intent: str) -> list[Object]:
        """The disputes of a payment."""
        return await self._all(self._client.v1.disputes, {"payment_intent": payment_intent})

    async def list_invoice_payments(self, payment_intent: str) -> list[Object]:
        """The invoices that a payment was for."""
        payment = {"type": "payment_intent", "payment_intent": payment_intent}
        return await self._all(self._client.v1.invoice_payments, {"payment": payment})

    async def list_checkouts_of(self, payment_intent: str) -> list[Object]:
        """The checkout that a payment was made in."""
        return await self._all(self._client.v1.checkout.sessions, {"payment_intent": payment_intent})

    async def retrieve_customer(self, customer_id: str) -> Object:
        """A customer; of one that was deleted only ``deleted`` is left."""
        return await self._ask(self._client.v1.customers.retrieve_async(customer_id))

    async def list_events(self, since: int, types: Sequence[str]) -> list[Object]:
        """What happened since then (unix seconds), newest first; Stripe remembers 30 days."""
        found: list[Object] = []
        for start in range(0, len(types), MAX_EVENT_TYPES):
            some = list(types[start : start + MAX_EVENT_TYPES])
            found += await self._all(self._client.v1.events, {"created": {"gte": since}, "types": some})
        return found

    # Stripe's test mode.

    async def create_test_clock(self, now: int, name: str) -> Object:
        """Makes a clock that stands at ``now``, in unix seconds, for up to three customers."""
        clock: Any = {"frozen_time": now, "name": name}
        return await self._ask(self._client.v1.test_helpers.test_clocks.create_async(clock))

    async def advance_test_clock(self, clock_id: str, now: int) -> Object:
        """Sends a clock forward; it is there when its ``status`` is ``ready``."""
        return await self._ask(
            self._client.v1.test_helpers.test_clocks.advance_async(clock_id, cast("Any", {"frozen_time": now}))
        )

    async def retrieve_test_clock(self, clock_id: str) -> Object:
        """A clock."""
        return await self._ask(self._client.v1.test_helpers.test_clocks.retrieve_async(clock_id))

    async def delete_test_clock(self, clock_id: str) -> Object:
        """Deletes a clock with all its customers."""
        return await self._ask(self._client.v1.test_helpers.test_clocks.delete_async(clock_id))

    async def create_subscription(self, subscription: Mapping[str, Any]) -> Object:
        """Makes a subscription without a checkout, paid by the customer's default card."""
        return await self._ask(self._client.v1.subscriptions.create_async(cast("Any", subscription)))

    async def list_invoices(self, customer: str) -> list[Object]:
        """A customer's invoices, newest first."""
        return await self._all(self._client.v1.invoices, {"customer": customer})


def verify_webhook(body: bytes, header: str | None, secrets: Sequence[str]) -> None:
    """Whether Stripe sent this body, within the last five minutes.

    Args:
        body: As it came in, not a byte changed.
        header: ``Stripe-Signature``.
        secrets: Any of them may have signed it: there are two while one is rolled. An empty one never fits.

    Raises:
        BadRequest: It did not. Neither the body nor the header is part of what is raised.
    """
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(body, header, secret, SIGNATURE_TOLERANCE_S)
        except (stripe.SignatureVerificationError, UnicodeDecodeError, TypeError):
            # Not UTF-8, or a header that is not ASCII: the library compares texts.
            continue
        return
    raise BadRequest("The Stripe-Signature header does not fit this body, or is too old.", code="invalid_signature")


def _not_reachable() -> StripeUnavailable:
    return StripeUnavailable("Stripe is not reachable at the moment. Please try again in a few minutes.")


def _translated(error: stripe.StripeError) -> StripeRefused | StripeUnavailable:
    """Ours for the library's; what Stripe says is for the customer only where it is about the request."""
    status = error.http_status
    if status is None or status in _UNCLEAR or not 400 <= status < 500:
        log.warning("stripe.unavailable", status=status, error=type(error).__name__, stripe_request=error.request_id)
        return _not_reachable()
    details = error.error
    message = error.user_message or "Stripe refused."
    return StripeRefused(
        _lacking(message) if status == _FORBIDDEN else message,
        stripe_status=status,
        stripe_code=error.code or getattr(details, "code", None),
        param=getattr(error, "param", None),
        decline_code=getattr(details, "decline_code", None),
    )


def _lacking(message: str) -> str:
    """Which permission the key lacks, without the part of the key that Stripe's message shows to whoever reads it."""
    names = ", ".join(dict.fromkeys(_PERMISSION.findall(message)))
    return f"Billing is not set up fully here: the key of Stripe lacks {names or 'a permission'}."
