"""Pages of lists."""

import pytest

from simulators.stripe.errors import StripeError
from simulators.stripe.paging import page_of
from simulators.stripe.world import Object

OBJECTS = [{"id": f"o{number}", "object": "price", "created": number} for number in range(25)]


def ids(page: Object) -> list[str]:
    return [found["id"] for found in page["data"]]


def test_newest_come_first_ten_at_a_time() -> None:
    page = page_of(OBJECTS, {}, "/v1/prices")
    assert ids(page) == [f"o{number}" for number in range(24, 14, -1)]
    assert page["has_more"]
    assert page["url"] == "/v1/prices"


def test_cursors_walk_there_and_back() -> None:
    second = page_of(OBJECTS, {"limit": 10, "starting_after": "o15"}, "/v1/prices")
    assert ids(second) == [f"o{number}" for number in range(14, 4, -1)]
    third = page_of(OBJECTS, {"limit": 10, "starting_after": "o5"}, "/v1/prices")
    assert (ids(third), third["has_more"]) == ([f"o{number}" for number in range(4, -1, -1)], False)
    back = page_of(OBJECTS, {"limit": 10, "ending_before": "o4"}, "/v1/prices")
    assert (ids(back), back["has_more"]) == (ids(second), True)
    first = page_of(OBJECTS, {"limit": 20, "ending_before": "o14"}, "/v1/prices")
    assert (ids(first)[0], first["has_more"]) == ("o24", False)


def test_page_that_holds_the_rest_is_the_last() -> None:
    assert not page_of(OBJECTS, {"limit": 25}, "/")["has_more"]
    assert page_of(OBJECTS, {"limit": 24}, "/")["has_more"]
    assert not page_of(OBJECTS, {"limit": 4, "ending_before": "o20"}, "/")["has_more"]
    assert page_of(OBJECTS, {"limit": 3, "ending_before": "o20"}, "/")["has_more"]


def test_created_filters() -> None:
    assert ids(page_of(OBJECTS, {"created": {"gte": 3, "lt": 5}}, "/")) == ["o4", "o3"]
    assert ids(page_of(OBJECTS, {"created": 7}, "/")) == ["o7"]


def test_order_can_be_kept() -> None:
    assert ids(page_of(OBJECTS, {"limit": 2}, "/", is_oldest_first=True)) == ["o0", "o1"]


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"limit": 0}, 400),
        ({"limit": 101}, 400),
        ({"starting_after": "o1", "ending_before": "o2"}, 400),
        ({"starting_after": "gone"}, 404),
    ],
)
def test_nonsense_is_refused(params: dict[str, object], status: int) -> None:
    with pytest.raises(StripeError) as caught:
        page_of(OBJECTS, params, "/")
    assert caught.value.status == status
