"""Billing credits and balances."""

from typing import Any

import pytest
import stripe

from simulators.stripe import credits
from simulators.stripe.errors import StripeError
from simulators.stripe.world import Object, World
from tests.simulators.stripe.simulator import Simulator

NOW = 1_800_000_000
METERED = {"scope": {"price_type": "metered"}}


class Account:
    """An account without a server, with a customer, an invoice and a metered price."""

    def __init__(self) -> None:
        self.now = NOW
        self.world = World(lambda: self.now)
        self.customer = self.world.new("customer", "cus", {"test_clock": None, "currency": None, "balance": 0})
        self.price = self.world.new("price", "price", {"recurring": {"usage_type": "metered"}})
        self.invoice = self.world.new("invoice", "in", {"customer": self.customer["id"], "currency": "usd"})

    def grant(self, value: int, currency: str = "usd", **more: Any) -> Object:
        money = {"type": "monetary", "monetary": {"currency": currency, "value": value}}
        params = {"customer": self.customer["id"], "amount": money, "applicability_config": METERED, **more}
        return credits.create(self.world, params)

    def spend(self, amount: int) -> list[int]:
        line = {"id": "il_1"}
        paid = credits.spend(self.world, self.invoice, line, self.price["id"], amount)
        return [part["amount"] for part in paid]

    def left(self, grant: Object) -> int:
        return credits.balance_of(self.world, grant)


def test_grant_pays_until_it_is_spent() -> None:
    account = Account()
    grant = account.grant(100)
    assert account.spend(60) == [60]
    assert account.spend(60) == [40]
    assert account.spend(60) == []
    assert account.left(grant) == 0


def test_order_is_priority_then_expiry_then_category_then_age() -> None:
    account = Account()
    paid = account.grant(1)
    promotional = account.grant(2, category="promotional")
    expiring = account.grant(4, expires_at=NOW + 500)
    first_to_expire = account.grant(8, expires_at=NOW + 100)
    urgent = account.grant(16, priority=0)
    assert account.spend(1000) == [16, 8, 4, 2, 1]
    assert [account.left(grant) for grant in (paid, promotional, expiring, first_to_expire, urgent)] == [0] * 5


def test_of_equals_the_one_that_took_effect_first_is_spent_first() -> None:
    account = Account()
    account.grant(1, effective_at=NOW - 10)
    account.grant(2, effective_at=NOW - 20)
    assert account.spend(1000) == [2, 1]


def test_grant_out_of_force_pays_nothing() -> None:
    account = Account()
    account.grant(1, effective_at=NOW + 10)
    account.grant(2, expires_at=NOW + 10)
    account.grant(4, currency="eur")
    other = account.world.new("price", "price", {"recurring": {"usage_type": "metered"}})
    account.grant(8, applicability_config={"scope": {"prices": [{"id": other["id"]}]}})
    account.grant(16, applicability_config={"scope": {"prices": [{"id": account.price["id"]}]}})
    account.now += 10
    assert sorted(account.spend(1000)) == [1, 16]


def test_voided_invoice_gives_credit_back() -> None:
    account = Account()
    grant = account.grant(100)
    account.spend(60)
    credits.give_back(account.world, account.invoice)
    assert account.left(grant) == 100
    kinds = [(made["credit"] or made["debit"])["type"] for made in account.world.all(credits.TRANSACTION)]
    assert kinds == ["credits_granted", "credits_applied", "credits_application_invoice_voided"]


def test_grant_of_which_something_was_spent_cannot_be_voided() -> None:
    account = Account()
    grant = account.grant(100)
    account.spend(1)
    with pytest.raises(StripeError):
        credits.void(account.world, {}, grant["id"])
    assert credits.expire(account.world, {}, grant["id"])["expires_at"] == NOW
    assert account.left(grant) == 0
    with pytest.raises(StripeError):
        credits.expire(account.world, {}, grant["id"])


def test_balance_moves_and_is_recorded() -> None:
    account = Account()
    made = credits.move_balance(account.world, account.customer, -500, "usd", "in_1")
    assert (made["ending_balance"], made["type"], account.customer["balance"]) == (-500, "applied_to_invoice", -500)
    with pytest.raises(StripeError):
        credits.move_balance(account.world, account.customer, 1, "eur")


def test_grants_and_their_balance_through_the_client(simulator: Simulator) -> None:
    customer = simulator.v1.customers.create().id
    grants = simulator.v1.billing.credit_grants
    money = {"type": "monetary", "monetary": {"currency": "usd", "value": 1000}}
    made = grants.create(
        {"customer": customer, "amount": money, "applicability_config": METERED, "metadata": {"order": "1"}}
    )
    later = grants.create(
        {"customer": customer, "amount": money, "applicability_config": METERED, "effective_at": made.created + 9999}
    )
    assert (made.priority, made.category, made.voided_at) == (50, "paid", None)
    params = {"customer": customer, "filter": {"type": "applicability_scope", "applicability_scope": METERED["scope"]}}
    balance = simulator.v1.billing.credit_balance_summary.retrieve(params).balances[0]
    assert (balance.available_balance.monetary.value, balance.ledger_balance.monetary.value) == (1000, 2000)
    only = {"customer": customer, "filter": {"type": "credit_grant", "credit_grant": made.id}}
    assert simulator.v1.billing.credit_balance_summary.retrieve(only).balances[0].ledger_balance.monetary.value == 1000
    assert grants.void_grant(later.id).voided_at is not None
    assert grants.update(made.id, {"expires_at": made.created + 100}).expires_at == made.created + 100
    assert grants.update(made.id, {"expires_at": ""}).expires_at is None
    assert [found.id for found in grants.list({"customer": customer}).data] == [later.id, made.id]
    assert grants.retrieve(made.id).metadata["order"] == "1"
    transactions = simulator.v1.billing.credit_balance_transactions
    listed = transactions.list({"customer": customer}).data
    assert [found.type for found in listed] == ["debit", "credit", "credit"]
    assert transactions.retrieve(listed[0].id).debit.type == "credits_voided"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"customer": "cus_none"}, "customer"),
        ({"amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 0}}}, "amount[monetary][value]"),
        (
            {"applicability_config": {"scope": {"price_type": "metered", "prices": [{"id": "price_none"}]}}},
            "applicability_config[scope]",
        ),
        (
            {"applicability_config": {"scope": {"prices": [{"id": "price_none"}]}}},
            "applicability_config[scope][prices][0][id]",
        ),
        ({"expires_at": 1}, "expires_at"),
        ({"priority": 101}, "priority"),
    ],
)
def test_grant_that_makes_no_sense_is_refused(simulator: Simulator, changes: dict[str, Any], param: str) -> None:
    customer = simulator.v1.customers.create().id
    money = {"type": "monetary", "monetary": {"currency": "usd", "value": 1000}}
    params = {"customer": customer, "amount": money, "applicability_config": METERED}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.billing.credit_grants.create(params | changes)
    assert caught.value.param == param


def test_grant_for_a_licensed_price_is_refused(simulator: Simulator) -> None:
    price = simulator.v1.prices.create({"product_data": {"name": "x"}, "currency": "usd", "unit_amount": 1}).id
    money = {"type": "monetary", "monetary": {"currency": "usd", "value": 1000}}
    scope = {"scope": {"prices": [{"id": price}]}}
    params = {"customer": simulator.v1.customers.create().id, "amount": money, "applicability_config": scope}
    with pytest.raises(stripe.InvalidRequestError, match="metered prices only"):
        simulator.v1.billing.credit_grants.create(params)


def test_balance_is_adjusted_by_hand(simulator: Simulator) -> None:
    customer = simulator.v1.customers.create({"balance": -100}).id
    transactions = simulator.v1.customers.balance_transactions
    made = transactions.create(customer, {"amount": -400, "currency": "usd", "description": "sorry"})
    assert (made.ending_balance, made.type, made.description) == (-500, "adjustment", "sorry")
    assert simulator.v1.customers.update(customer, {"balance": 0}).balance == 0
    assert [found.amount for found in transactions.list(customer).data] == [500, -400, -100]
    assert transactions.retrieve(customer, made.id).amount == -400
