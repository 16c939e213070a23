"""Stripe's test cards: what happens to a payment depends on the card's number.

Only the last four digits of a number are kept with a payment method, as at Stripe, and they tell the cards apart.
"""

from dataclasses import dataclass
from types import MappingProxyType

from simulators.stripe.world import Object


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a bank says no: `code` is the error's, `decline_code` the bank's own."""

    code: str
    decline_code: str
    message: str


@dataclass(frozen=True, slots=True)
class Card:
    """A number that the pages accept."""

    number: str
    brand: str
    label: str

    @property
    def last4(self) -> str:
        """What is kept of the number."""
        return self.number[-4:]


GENERIC = Refusal("card_declined", "generic_decline", "Your card was declined.")
UNATTENDED = Refusal(
    "authentication_required",
    "authentication_required",
    "Your card was declined. This transaction requires authentication.",
)
_FUNDS = Refusal("card_declined", "insufficient_funds", "Your card has insufficient funds.")
_LOST = Refusal("card_declined", "lost_card", "Your card was declined.")
_STOLEN = Refusal("card_declined", "stolen_card", "Your card was declined.")
_EXPIRED = Refusal("expired_card", "expired_card", "Your card has expired.")
_CVC = Refusal("incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect.")
_PROCESSING = Refusal(
    "processing_error", "processing_error", "An error occurred while processing your card. Try again in a little bit."
)

# By the last four digits. The first group declines when it is attached and when it is charged, the second only then.
_REFUSES_ALWAYS = MappingProxyType(
    {
        "0002": GENERIC,
        "9995": _FUNDS,
        "9987": _LOST,
        "9979": _STOLEN,
        "0069": _EXPIRED,
        "0127": _CVC,
        "0119": _PROCESSING,
    }
)
_REFUSES_CHARGES = MappingProxyType({"0341": GENERIC})
_ASKS = frozenset({"3220", "3155", "3184"})
_DISPUTES = MappingProxyType({"0259": "fraudulent", "2685": "product_not_received", "1976": "fraudulent"})

OFFERED = (
    Card("4242424242424242", "visa", "Pays"),
    Card("4000000000000002", "visa", "Declines"),
    Card("4000000000009995", "visa", "Declines: insufficient funds"),
    Card("4000000000000341", "visa", "Is accepted, and declines when it is charged"),
)


def refusal_of_attaching(last4: str) -> Refusal | None:
    """Why a card cannot even be saved; None for one that can."""
    return _REFUSES_ALWAYS.get(last4)


def refusal_of_charge(payment_method: Object) -> Refusal | None:
    """Why a charge to a saved card fails; None for one that pays.

    A note `_refuses` on the payment method makes any card decline, until it is taken away.
    """
    if payment_method.get("_refuses"):
        return GENERIC
    last4 = payment_method["card"]["last4"]
    return _REFUSES_ALWAYS.get(last4) or _REFUSES_CHARGES.get(last4)


def asks_for_cardholder(payment_method: Object) -> bool:
    """Whether the card wants 3-D Secure for each payment."""
    return payment_method["card"]["last4"] in _ASKS


def dispute_reason(payment_method: Object) -> str | None:
    """Why the cardholder will dispute each charge to this card; None for one that does not."""
    return _DISPUTES.get(payment_method["card"]["last4"])
