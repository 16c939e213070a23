"""Products: what prices are prices of. They are made in `catalogue`."""

from collections.abc import Mapping
from typing import Any

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

PRODUCT = "product"

_OPTIONAL = (
    "description",
    "package_dimensions",
    "shippable",
    "statement_descriptor",
    "tax_code",
    "tax_details",
    "unit_label",
    "url",
)


def make(world: World, params: Mapping[str, Any]) -> Object:
    """A product, as a call describes it.

    Raises:
        StripeError: 400 for an id that is taken.
    """
    if world.find(PRODUCT, params.get("id")) is not None:
        raise invalid("id", "Product already exists.", "resource_already_exists")
    now = world.now()
    fields = {
        "active": params.get("active", True),
        "created": now,
        "default_price": None,
        "images": params.get("images", []),
        "marketing_features": params.get("marketing_features", []),
        "metadata": {},
        "name": params["name"],
        "type": params.get("type", "service"),
        "updated": now,
        **{name: params.get(name) for name in _OPTIONAL},
    }
    if "id" in params:
        fields["id"] = params["id"]
    made = world.new(PRODUCT, "prod", fields)
    merge_metadata(made, params)
    world.emit("product.created", made)
    return made


@operation("GET", "/v1/products")
def list_products(world: World, params: Params) -> list[Object]:
    """Products by state, address or id."""
    found = matching(world.all(PRODUCT), params, "active", "shippable", "type", "url")
    return [product for product in found if product["id"] in params.get("ids", [product["id"]])]


@operation("GET", "/v1/products/{id}")
def retrieve(world: World, params: Params, id: str) -> Object:
    """One product."""
    return world.get(PRODUCT, id)


@operation("POST", "/v1/products/{id}")
def update(world: World, params: Params, id: str) -> Object:
    """Change a product; its default price must be one of its own."""
    product = world.get(PRODUCT, id)
    if params.get("default_price"):
        price = world.get("price", params["default_price"], "default_price")
        if price["product"] != id:
            raise invalid("default_price", "The default price must belong to the product.")
    with recorded(world, product, "product.updated"):
        for name in (*_OPTIONAL, "active", "default_price", "name"):
            if name in params:
                product[name] = None if params[name] == "" else params[name]
        for name in ("images", "marketing_features"):
            if name in params:
                product[name] = params[name] or []
        merge_metadata(product, params)
        product["updated"] = world.now()
    return product


@operation("DELETE", "/v1/products/{id}")
def delete(world: World, params: Params, id: str) -> Object:
    """Remove a product that has no prices."""
    product = world.get(PRODUCT, id)
    if any(price["product"] == id for price in world.all("price")):
        raise StripeError("This product cannot be deleted because it has one or more user-created prices.", param="id")
    world.emit("product.deleted", product)
    world.delete(PRODUCT, id)
    return {"id": id, "object": PRODUCT, "deleted": True}
