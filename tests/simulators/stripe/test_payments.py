"""Payment intents, charges, refunds and disputes."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator


def pay(simulator: Simulator, card: str = "pm_card_visa", cents: int = 2_000, **more: Any) -> Any:
    params = {"amount": cents, "currency": "usd", "payment_method": card, "confirm": True, **more}
    return simulator.v1.payment_intents.create(params)


def told(caught: pytest.ExceptionInfo[stripe.CardError]) -> Any:
    """What the API said of an error."""
    return caught.value.error


def types(simulator: Simulator) -> list[str]:
    return [event.type for event in reversed(simulator.v1.events.list().data)]


def test_card_that_pays_makes_a_charge(simulator: Simulator) -> None:
    intent = pay(simulator, metadata={"order": "7"})
    assert (intent.status, intent.amount_received) == ("succeeded", 2_000)
    charge = simulator.v1.charges.retrieve(intent.latest_charge)
    assert (charge.status, charge.paid, charge.payment_method_details.card.last4) == ("succeeded", True, "4242")
    assert charge.metadata.to_dict() == {"order": "7"}
    assert types(simulator) == ["payment_intent.created", "charge.succeeded", "payment_intent.succeeded"]
    with pytest.raises(stripe.InvalidRequestError, match="status of succeeded"):
        simulator.v1.payment_intents.confirm(intent.id)


@pytest.mark.parametrize(
    ("card", "code", "decline"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error"),
    ],
)
def test_card_that_declines_says_why_and_leaves_an_intent(
    simulator: Simulator, card: str, code: str, decline: str
) -> None:
    with pytest.raises(stripe.CardError) as caught:
        pay(simulator, card)
    assert (caught.value.code, told(caught).decline_code) == (code, decline)
    intent = simulator.v1.payment_intents.retrieve(told(caught).payment_intent.id)
    assert (intent.status, intent.last_payment_error.code) == ("requires_payment_method", code)
    charge = simulator.v1.charges.retrieve(intent.latest_charge)
    assert (charge.status, charge.failure_code, charge.outcome.reason) == ("failed", code, decline)
    assert types(simulator) == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]
    assert simulator.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa"}).status == "succeeded"


def test_card_that_asks_for_its_holder(simulator: Simulator) -> None:
    intent = pay(simulator, "pm_card_threeDSecure2Required")
    assert (intent.status, intent.next_action.type) == ("requires_action", "use_stripe_sdk")
    with pytest.raises(stripe.CardError) as caught:
        pay(simulator, "pm_card_threeDSecure2Required", off_session=True)
    assert caught.value.code == "authentication_required"


def test_intent_can_be_cancelled_until_it_is_paid(simulator: Simulator) -> None:
    intent = simulator.v1.payment_intents.create({"amount": 500, "currency": "usd"})
    assert intent.status == "requires_payment_method"
    assert simulator.v1.payment_intents.cancel(intent.id).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError, match="status of canceled"):
        simulator.v1.payment_intents.cancel(intent.id)


def test_amount_must_be_worth_charging(simulator: Simulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        pay(simulator, cents=49)
    assert caught.value.code == "amount_too_small"
    assert pay(simulator, cents=50).status == "succeeded"


def test_refund_in_parts_until_nothing_is_left(simulator: Simulator) -> None:
    intent = pay(simulator)
    first = simulator.v1.refunds.create({"payment_intent": intent.id, "amount": 500, "reason": "duplicate"})
    assert (first.status, first.amount, first.charge) == ("succeeded", 500, intent.latest_charge)
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        simulator.v1.refunds.create({"charge": intent.latest_charge, "amount": 1_501})
    with pytest.raises(stripe.InvalidRequestError, match="positive"):
        simulator.v1.refunds.create({"charge": intent.latest_charge, "amount": 0})
    simulator.v1.refunds.create({"charge": intent.latest_charge})
    charge = simulator.v1.charges.retrieve(intent.latest_charge, {"expand": ["refunds"]})
    assert (charge.amount_refunded, charge.refunded, len(charge.refunds.data)) == (2_000, True, 2)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.refunds.create({"charge": intent.latest_charge})
    assert caught.value.code == "charge_already_refunded"
    refunded = simulator.v1.events.list({"type": "charge.refunded"}).data
    assert refunded[0].data.previous_attributes.to_dict() == {"amount_refunded": 500, "refunded": False}
    assert refunded[1].data.previous_attributes.to_dict() == {"amount_refunded": 0}
    assert len(simulator.v1.refunds.list({"charge": intent.latest_charge}).data) == 2


def test_charge_that_failed_is_not_refunded(simulator: Simulator) -> None:
    with pytest.raises(stripe.CardError) as caught:
        pay(simulator, "pm_card_chargeDeclined")
    with pytest.raises(stripe.InvalidRequestError, match="failed"):
        simulator.v1.refunds.create({"charge": told(caught).charge})
    with pytest.raises(stripe.InvalidRequestError, match="successful charge"):
        simulator.v1.refunds.create({"payment_intent": told(caught).payment_intent.id})
    with pytest.raises(stripe.InvalidRequestError, match="One of the following"):
        simulator.v1.refunds.create({})


def test_disputed_charge_is_lost_when_it_is_accepted(simulator: Simulator) -> None:
    intent = pay(simulator, "pm_card_createDispute")
    [dispute] = simulator.v1.disputes.list({"charge": intent.latest_charge}).data
    assert (dispute.status, dispute.reason, dispute.amount) == ("needs_response", "fraudulent", 2_000)
    assert simulator.v1.charges.retrieve(intent.latest_charge).disputed
    with pytest.raises(stripe.InvalidRequestError, match="charged back"):
        simulator.v1.refunds.create({"charge": intent.latest_charge})
    assert simulator.v1.disputes.close(dispute.id).status == "lost"
    assert types(simulator)[-3:] == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
    ]
    with pytest.raises(stripe.InvalidRequestError, match="already closed"):
        simulator.v1.disputes.close(dispute.id)


@pytest.mark.parametrize(
    ("text", "status"), [("winning_evidence", "won"), ("losing_evidence", "lost"), ("?", "under_review")]
)
def test_evidence_decides_a_dispute(simulator: Simulator, text: str, status: str) -> None:
    pay(simulator, "pm_card_createDispute")
    [dispute] = simulator.v1.disputes.list().data
    answered = simulator.v1.disputes.update(dispute.id, {"evidence": {"uncategorized_text": text}})
    assert (answered.status, answered.evidence_details.submission_count) == (status, 1)
    assert ("charge.dispute.funds_reinstated" in types(simulator)) == (status == "won")


def test_lists_are_by_customer_and_intent(simulator: Simulator) -> None:
    customer = simulator.v1.customers.create({"email": "a@acme.example"}).id
    intent = pay(simulator, customer=customer)
    pay(simulator)
    assert [found.id for found in simulator.v1.payment_intents.list({"customer": customer}).data] == [intent.id]
    assert [found.id for found in simulator.v1.charges.list({"customer": customer}).data] == [intent.latest_charge]
    assert len(simulator.v1.charges.list({"payment_intent": intent.id}).data) == 1
    changed = simulator.v1.charges.update(intent.latest_charge, {"metadata": {"a": "b"}, "description": "Order"})
    assert (changed.description, changed.metadata.to_dict()) == ("Order", {"a": "b"})
    assert simulator.v1.payment_intents.update(intent.id, {"description": "Order"}).description == "Order"
