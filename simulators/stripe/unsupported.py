"""Parameters that Stripe has and the simulator does not carry out: refused, so that nobody takes them for done.

These are the ones that would change what is billed, when, to whom, or what a list holds. What changes only looks,
receipts, risk and the routing of money between accounts is taken and has no effect. An empty value asks for nothing
and is taken too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from simulators.stripe.errors import invalid

_OF_SUBSCRIPTION = (
    "add_invoice_items",
    "billing_schedules",
    "billing_thresholds",
    "default_source",
    "pending_invoice_item_interval",
    "trial_from_plan",
)
_OF_ITEM = ("billing_thresholds", "clear_usage", "current_trial", "plan")
_OF_PHASE = (
    "add_invoice_items",
    "billing_cycle_anchor",
    "billing_thresholds",
    "collection_method",
    "default_payment_method",
    "default_tax_rates",
    "discounts",
    "trial",
)
_OF_PHASE_ITEM = ("billing_thresholds", "discounts", "plan", "price_data", "tax_rates")
_OF_SCHEDULE = (
    "pause_schedules",
    *(f"phases.{name}" for name in _OF_PHASE),
    *(f"phases.items.{name}" for name in _OF_PHASE_ITEM),
)
_OF_INVOICE = ("automatically_finalizes_at", "default_source", "effective_at", "number", "shipping_cost")
_OF_INVOICE_ITEM = ("price_data", "quantity_decimal", "unit_amount_decimal")

UNSUPPORTED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("GET", "/v1/charges"): ("transfer_group",),
    ("GET", "/v1/checkout/sessions"): ("customer_details", "payment_link"),
    ("GET", "/v1/invoices"): ("due_date",),
    ("GET", "/v1/setup_intents"): ("attach_to_self",),
    ("GET", "/v1/subscription_schedules"): ("canceled_at", "completed_at", "released_at"),
    ("GET", "/v1/subscriptions"): ("automatic_tax", "current_period_end", "current_period_start", "plan"),
    ("GET", "/v2/core/events"): ("created",),
    ("POST", "/v1/checkout/sessions"): (
        "after_expiration",
        "optional_items",
        "payment_intent_data.capture_method",
        "shipping_options",
        "subscription_data.billing_cycle_anchor_config",
        "subscription_data.pending_invoice_item_interval",
    ),
    ("POST", "/v1/coupons"): ("currency_options",),
    ("POST", "/v1/invoiceitems"): _OF_INVOICE_ITEM,
    ("POST", "/v1/invoiceitems/{invoiceitem}"): (
        *_OF_INVOICE_ITEM,
        "discountable",
        "discounts",
        "period",
        "pricing",
        "quantity",
        "tax_rates",
    ),
    ("POST", "/v1/invoices"): (*_OF_INVOICE, "from_invoice"),
    ("POST", "/v1/invoices/create_preview"): (
        "customer_details",
        "preview_mode",
        "schedule",
        "schedule_details",
        "subscription_details.billing_schedules",
        "subscription_details.pause",
        "subscription_details.resume_at",
        "subscription_details.start_date",
        *(f"subscription_details.items.{name}" for name in _OF_ITEM),
    ),
    ("POST", "/v1/invoices/{invoice}"): _OF_INVOICE,
    ("POST", "/v1/invoices/{invoice}/pay"): ("forgive", "source"),
    ("POST", "/v1/payment_intents"): ("capture_method", "confirmation_token", "payment_method_data"),
    ("POST", "/v1/payment_intents/{intent}"): ("amount", "capture_method", "currency", "customer"),
    ("POST", "/v1/payment_intents/{intent}/confirm"): ("amount_to_confirm", "capture_method", "confirmation_token"),
    ("POST", "/v1/prices/{price}"): ("currency_options",),
    ("POST", "/v1/promotion_codes"): ("restrictions.currency_options",),
    ("POST", "/v1/subscription_items"): _OF_ITEM,
    ("POST", "/v1/subscription_items/{item}"): _OF_ITEM,
    ("DELETE", "/v1/subscription_items/{item}"): ("clear_usage",),
    ("POST", "/v1/subscription_schedules"): _OF_SCHEDULE,
    ("POST", "/v1/subscription_schedules/{schedule}"): _OF_SCHEDULE,
    ("POST", "/v1/subscription_schedules/{schedule}/release"): ("preserve_cancel_date",),
    ("POST", "/v1/subscriptions"): (
        *_OF_SUBSCRIPTION,
        "backdate_start_date",
        "billing_cycle_anchor_config",
        *(f"items.{name}" for name in _OF_ITEM),
    ),
    ("POST", "/v1/subscriptions/{subscription_exposed_id}"): (
        *_OF_SUBSCRIPTION,
        *(f"items.{name}" for name in _OF_ITEM),
    ),
    ("POST", "/v1/subscriptions/{subscription}/resume"): ("proration_date",),
}


def refuse_unsupported(verb: str, path: str, params: Mapping[str, Any]) -> None:
    """Refuse a call that asks for something the simulator would not do.

    Args:
        verb: Of the operation.
        path: Likewise, as the library writes it.
        params: Converted.

    Raises:
        StripeError: 400 that names the parameter.
    """
    for name in (*UNSUPPORTED.get((verb, path), ()), "customer_account"):
        for place in _given(params, name.split("."), ""):
            raise invalid(place, f"The simulator does not know {place}.")


def _given(value: Any, path: list[str], place: str) -> Iterable[str]:  # noqa: ANN401 - any JSON
    """Where a parameter has a value that asks for something."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _given(inner, path, f"{place}[{index}]")
    elif not path:
        if value:
            yield place
    elif isinstance(value, dict) and path[0] in value:
        yield from _given(value[path[0]], path[1:], f"{place}[{path[0]}]" if place else path[0])
