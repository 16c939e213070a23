"""Disputes: a cardholder asks the bank for the money back.

Some test cards dispute each charge, and the control page disputes any. As in Stripe's test mode, evidence with the text
`winning_evidence` or `losing_evidence` decides it.
"""

from typing import Any

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.periods import SECONDS_PER_DAY
from simulators.stripe.world import Object, World

KIND = "dispute"

_DAYS_TO_ANSWER = 7
_VERDICTS = {"winning_evidence": "won", "losing_evidence": "lost"}
_OPEN = ("needs_response", "under_review")
DECIDED = ("won", "lost")


def open_dispute(world: World, charge: Object, reason: str = "fraudulent") -> Object:
    """The cardholder disputes a charge; its money is withdrawn.

    Raises:
        StripeError: 400 where the charge is disputed already, or never succeeded.
    """
    if charge["disputed"] or charge["status"] != "succeeded":
        raise StripeError(f"Charge {charge['id']} cannot be disputed.", code="charge_disputed")
    now = world.now(charge)
    card = {
        "brand": charge["payment_method_details"]["card"]["brand"],
        "case_type": "chargeback",
        "network": charge["payment_method_details"]["card"]["network"],
        "network_reason_code": "10.4",
    }
    dispute = world.new(
        KIND,
        "du",
        {
            "amount": charge["amount"],
            "balance_transactions": [],
            "charge": charge["id"],
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": {"enhanced_evidence": {}},
            "evidence_details": _evidence_details(now + _DAYS_TO_ANSWER * SECONDS_PER_DAY),
            "is_charge_refundable": False,
            "metadata": {},
            "payment_intent": charge["payment_intent"],
            "payment_method_details": {"card": card, "type": "card"},
            "reason": reason,
            "status": "needs_response",
        },
        owner=charge,
    )
    charge["disputed"] = True
    world.emit("charge.dispute.created", dispute)
    world.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


def decide(world: World, dispute: Object, status: str) -> None:
    """The bank decides: `won` brings the money back, `lost` does not."""
    dispute["status"] = status
    if status == "won":
        world.emit("charge.dispute.funds_reinstated", dispute)
    world.emit("charge.dispute.closed", dispute)


@operation("GET", "/v1/disputes/{dispute}")
def retrieve(world: World, params: Params, dispute: str) -> Object:
    """One dispute."""
    return world.get(KIND, dispute)


@operation("GET", "/v1/disputes")
def list_all(world: World, params: Params) -> list[Object]:
    """All disputes, or those of a charge or an intent."""
    return matching(world.all(KIND), params, "charge", "payment_intent")


@operation("POST", "/v1/disputes/{dispute}")
def update(world: World, params: Params, dispute: str) -> Object:
    """Add evidence; what is submitted is decided at once where its text says how."""
    found = world.get(KIND, dispute)
    _require_open(found)
    evidence: dict[str, Any] = params.get("evidence") or {}
    with recorded(world, found, "charge.dispute.updated"):
        merge_metadata(found, params)
        found["evidence"].update(evidence)
        if evidence:
            found["evidence_details"].update(has_evidence=True)
        if params.get("submit", True) and evidence:
            found["evidence_details"].update(submission_count=found["evidence_details"]["submission_count"] + 1)
            found["status"] = "under_review"
    verdict = _VERDICTS.get(str(evidence.get("uncategorized_text")))
    if verdict is not None:
        decide(world, found, verdict)
    return found


@operation("POST", "/v1/disputes/{dispute}/close")
def close(world: World, params: Params, dispute: str) -> Object:
    """Accept a dispute: it is lost."""
    found = world.get(KIND, dispute)
    _require_open(found)
    decide(world, found, "lost")
    return found


def _require_open(dispute: Object) -> None:
    if dispute["status"] not in _OPEN:
        raise StripeError("This dispute is already closed")


def _evidence_details(due_by: int) -> Object:
    return {
        "due_by": due_by,
        "enhanced_eligibility": {},
        "has_evidence": False,
        "past_due": False,
        "submission_count": 0,
        "submission_method": "not_submitted",
    }
