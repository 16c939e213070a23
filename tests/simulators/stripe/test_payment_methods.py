"""Cards, how they are saved, and setup intents."""

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator


@pytest.fixture
def customer(simulator: Simulator) -> str:
    return str(simulator.v1.customers.create({"name": "Acme"}).id)


def test_card_is_saved_used_by_default_and_taken_away(simulator: Simulator, customer: str) -> None:
    methods = simulator.v1.payment_methods
    saved = methods.attach("pm_card_visa", {"customer": customer})
    assert (saved.card.last4, saved.customer) == ("4242", customer)
    settings = {"invoice_settings": {"default_payment_method": saved.id}}
    changed = simulator.v1.customers.update(customer, settings)
    assert changed.invoice_settings.default_payment_method == saved.id
    assert [found.id for found in methods.list({"customer": customer, "type": "card"}).data] == [saved.id]
    assert [found.id for found in simulator.v1.customers.payment_methods.list(customer).data] == [saved.id]
    assert simulator.v1.customers.payment_methods.retrieve(customer, saved.id).id == saved.id
    assert methods.detach(saved.id).customer is None
    assert simulator.v1.customers.retrieve(customer).invoice_settings.default_payment_method is None
    with pytest.raises(stripe.InvalidRequestError):
        methods.detach(saved.id)
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.customers.payment_methods.retrieve(customer, saved.id)


def test_ready_made_card_is_a_new_one_each_time(simulator: Simulator, customer: str) -> None:
    methods = simulator.v1.payment_methods
    one, two = (methods.attach("pm_card_mastercard", {"customer": customer}).id for _ in range(2))
    assert one != two
    assert methods.attach(one, {"customer": customer}).id == one


def test_card_is_made_by_number_or_token(simulator: Simulator) -> None:
    number = {"number": "4000000000000341", "exp_month": 3, "exp_year": 2031, "cvc": "123"}
    details = {"billing_details": {"name": "A", "address": {"country": "DE"}}, "metadata": {"a": "1"}}
    made = simulator.v1.payment_methods.create({"type": "card", "card": number, **details})
    assert (made.card.last4, made.card.exp_year, made.billing_details.address.country) == ("0341", 2031, "DE")
    changed = simulator.v1.payment_methods.update(
        made.id, {"card": {"exp_year": 2033}, "billing_details": {"name": ""}, "allow_redisplay": "always"}
    )
    assert (changed.card.exp_year, changed.card.exp_month, changed.billing_details.name) == (2033, 3, None)
    assert simulator.v1.payment_methods.create({"type": "card", "card": {"token": "tok_amex"}}).card.brand == "amex"


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"type": "sepa_debit"}, stripe.InvalidRequestError),
        ({"type": "card", "card": {"token": "tok_none"}}, stripe.InvalidRequestError),
        ({"type": "card", "card": {"number": "4242424242424241"}}, stripe.CardError),
        ({"type": "card", "card": {"number": "none"}}, stripe.CardError),
    ],
)
def test_what_is_no_test_card_is_refused(simulator: Simulator, params: dict[str, object], error: type) -> None:
    with pytest.raises(error):
        simulator.v1.payment_methods.create(params)


def test_declining_card_cannot_be_saved(simulator: Simulator, customer: str) -> None:
    with pytest.raises(stripe.CardError) as caught:
        simulator.v1.payment_methods.attach("pm_card_chargeDeclinedInsufficientFunds", {"customer": customer})
    assert caught.value.code == "card_declined"
    assert caught.value.error is not None
    assert caught.value.error.decline_code == "insufficient_funds"
    assert simulator.v1.payment_methods.list({"customer": customer}).data == []


def test_customer_with_a_card_that_declines_is_not_made(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"payment_method": "pm_card_visa"})
    assert len(simulator.v1.payment_methods.list({"customer": made.id}).data) == 1
    with pytest.raises(stripe.CardError):
        simulator.v1.customers.create({"payment_method": "pm_card_chargeDeclined"})
    assert [found.id for found in simulator.v1.customers.list().data] == [made.id]


def test_card_of_another_customer_is_refused(simulator: Simulator, customer: str) -> None:
    other = simulator.v1.customers.create({"payment_method": "pm_card_visa"}).id
    card = simulator.v1.payment_methods.list({"customer": other}).data[0].id
    with pytest.raises(stripe.InvalidRequestError, match="already been attached"):
        simulator.v1.payment_methods.attach(card, {"customer": customer})
    with pytest.raises(stripe.InvalidRequestError, match="must be attached"):
        simulator.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": card}})
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.payment_methods.attach(card, {})
    assert simulator.v1.payment_methods.list().data == []


def test_setup_intent_saves_a_card(simulator: Simulator, customer: str) -> None:
    intents = simulator.v1.setup_intents
    made = intents.create({"customer": customer})
    assert made.status == "requires_payment_method"
    with pytest.raises(stripe.InvalidRequestError):
        intents.confirm(made.id)
    with pytest.raises(stripe.CardError) as caught:
        intents.confirm(made.id, {"payment_method": "pm_card_chargeDeclined"})
    assert caught.value.error is not None
    assert caught.value.error.setup_intent is not None
    assert caught.value.error.setup_intent.id == made.id
    assert intents.retrieve(made.id).last_setup_error.decline_code == "generic_decline"
    done = intents.confirm(made.id, {"payment_method": "pm_card_visa"})
    assert (done.status, done.last_setup_error) == ("succeeded", None)
    assert simulator.v1.payment_methods.retrieve(done.payment_method).customer == customer
    assert [found.id for found in intents.list({"customer": customer}).data] == [made.id]
    with pytest.raises(stripe.InvalidRequestError) as refused:
        intents.cancel(made.id)
    assert refused.value.code == "setup_intent_unexpected_state"


def test_setup_intent_is_confirmed_at_once_or_given_up(simulator: Simulator, customer: str) -> None:
    intents = simulator.v1.setup_intents
    params = {"customer": customer, "payment_method": "pm_card_visa"}
    assert intents.create({**params, "confirm": True}).status == "succeeded"
    waiting = intents.create(params)
    assert waiting.status == "requires_confirmation"
    cancelled = intents.cancel(waiting.id, {"cancellation_reason": "abandoned"})
    assert (cancelled.status, cancelled.cancellation_reason) == ("canceled", "abandoned")
    with pytest.raises(stripe.InvalidRequestError):
        intents.create({"customer": customer, "confirm": True})
