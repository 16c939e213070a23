"""Tax rates: percentages that an account names itself, inclusive or on top."""

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

RATE = "tax_rate"

_NAMES = ("country", "description", "jurisdiction", "state", "tax_type")


@operation("POST", "/v1/tax_rates")
def create(world: World, params: Params) -> Object:
    """A rate; its percentage never changes.

    Raises:
        StripeError: 400 for a percentage outside 0 to 100.
    """
    if not 0 <= params["percentage"] <= 100:
        raise invalid("percentage", "Invalid percentage: must be between 0 and 100.")
    made = world.new(
        RATE,
        "txr",
        {
            "active": params.get("active", True),
            "created": world.now(),
            "display_name": params["display_name"],
            "effective_percentage": None,
            "inclusive": params["inclusive"],
            "metadata": {},
            "percentage": params["percentage"],
            "rate_type": "percentage",
            **{name: params.get(name) for name in _NAMES},
        },
    )
    merge_metadata(made, params)
    world.emit("tax_rate.created", made)
    return made


@operation("GET", "/v1/tax_rates")
def list_rates(world: World, params: Params) -> list[Object]:
    """Rates by state and kind."""
    return matching(world.all(RATE), params, "active", "inclusive")


@operation("GET", "/v1/tax_rates/{tax_rate}")
def retrieve(world: World, params: Params, tax_rate: str) -> Object:
    """One rate."""
    return world.get(RATE, tax_rate, "tax_rate")


@operation("POST", "/v1/tax_rates/{tax_rate}")
def update(world: World, params: Params, tax_rate: str) -> Object:
    """Rename a rate, or retire it: it stays where it is applied already."""
    rate = retrieve(world, params, tax_rate)
    with recorded(world, rate, "tax_rate.updated"):
        for name in (*_NAMES, "active", "display_name"):
            if name in params:
                rate[name] = params[name]
        merge_metadata(rate, params)
    return rate
