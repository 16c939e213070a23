"""Ids replaced by objects, and fields that are shown on request."""

from typing import Any

import pytest

from simulators.stripe import handlers
from simulators.stripe.errors import StripeError
from simulators.stripe.expansion import expanded
from simulators.stripe.world import Object, World


@pytest.fixture
def world() -> World:
    """A customer with a card by default, a product and a tiered price, and an item that embeds the price."""
    handlers.load()
    world = World(lambda: 1)
    put(world, "payment_method", id="pm", type="card", customer="cus")
    put(world, "customer", id="cus", invoice_settings={"default_payment_method": "pm"}, _note="ours")
    put(world, "product", id="prod", name="Tokens")
    price = put(world, "price", id="price", product="prod", tiers=[{"up_to": None}], metadata={"customer": "cus"})
    item = put(world, "subscription_item", id="si", price=price)
    put(world, "subscription", id="sub", customer="cus", items={"object": "list", "data": [item], "url": "/"})
    return world


def put(world: World, kind: str, **fields: Any) -> Object:
    return world.put({"object": kind, **fields})


def test_notes_and_unasked_fields_are_left_out_at_every_depth(world: World) -> None:
    assert "_note" not in expanded(world, world.get("customer", "cus"))
    shown = expanded(world, world.get("subscription", "sub"))
    assert "tiers" not in shown["items"]["data"][0]["price"]
    assert world.get("price", "price")["tiers"]


def test_path_leads_through_parts_lists_and_objects(world: World) -> None:
    shown = expanded(
        world,
        world.get("subscription", "sub"),
        ["customer.invoice_settings.default_payment_method", "items.data.price.product", "items.data.price.tiers"],
    )
    assert shown["customer"]["invoice_settings"]["default_payment_method"]["type"] == "card"
    price = shown["items"]["data"][0]["price"]
    assert (price["product"]["name"], price["tiers"]) == ("Tokens", [{"up_to": None}])


def test_computed_field_is_shown_on_request(world: World) -> None:
    world.get("subscription", "sub")["status"] = "active"
    shown = expanded(world, world.get("customer", "cus"), ["subscriptions"])
    assert [found["id"] for found in shown["subscriptions"]["data"]] == ["sub"]


def test_keys_of_metadata_are_no_fields(world: World) -> None:
    with pytest.raises(StripeError, match="cannot be expanded"):
        expanded(world, world.get("price", "price"), ["metadata.customer"])


def test_field_that_is_null_stays_null(world: World) -> None:
    assert expanded(world, world.get("subscription", "sub"), ["latest_invoice"]).get("latest_invoice") is None


def test_what_is_gone_gets_404(world: World) -> None:
    world.delete("product", "prod")
    with pytest.raises(StripeError) as caught:
        expanded(world, world.get("price", "price"), ["product"])
    assert caught.value.status == 404


def test_path_has_at_most_four_levels(world: World) -> None:
    with pytest.raises(StripeError, match="more than 4 levels"):
        expanded(world, world.get("subscription", "sub"), ["customer.a.b.c.d"])
