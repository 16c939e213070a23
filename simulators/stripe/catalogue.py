"""The calls that make products and prices: each may make one of the other in the same breath."""

from simulators.stripe import prices, products
from simulators.stripe.errors import StripeError
from simulators.stripe.operations import Params, operation
from simulators.stripe.world import Object, World


@operation("POST", "/v1/products")
def create_product(world: World, params: Params) -> Object:
    """A product, and its default price with it if `default_price_data` describes one."""
    made = products.make(world, params)
    if "default_price_data" in params:
        price = prices.make(world, {**params["default_price_data"], "product": made["id"]}, "default_price_data")
        made["default_price"] = price["id"]
    return made


@operation("POST", "/v1/prices")
def create_price(world: World, params: Params) -> Object:
    """A price of a product that there is, or of one that `product_data` describes."""
    if ("product" in params) == ("product_data" in params):
        raise StripeError("You must specify either `product` or `product_data` when creating a price.", param="product")
    if "product_data" in params:
        product = products.make(world, params["product_data"])
        return prices.make(world, {**params, "product": product["id"]})
    return prices.make(world, params)
