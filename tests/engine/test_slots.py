from hypothesis import given
from hypothesis import strategies as st

from app.engine.sequence import Request, Sequence
from app.engine.slots import Slots


def make_sequence() -> Sequence:
    return Sequence(Request("r", (1,), 1))


def test_lowest_free_slot_goes_first() -> None:
    slots = Slots(3)
    first, second = make_sequence(), make_sequence()
    slots.allocate(first)
    slots.allocate(second)
    slots.release(first)
    assert slots.allocate(make_sequence()) == 0


def test_release_of_a_sequence_without_slot_changes_nothing() -> None:
    slots = Slots(2)
    slots.release(make_sequence())
    assert slots.num_free == 2


@given(count=st.integers(1, 6), choices=st.lists(st.integers(0, 9), max_size=60))
def test_no_slot_ever_has_two_owners(count: int, choices: list[int]) -> None:
    slots, owners = Slots(count), list[Sequence]()
    for choice in choices:
        if choice < 5 and slots.can_allocate:
            owners.append(make_sequence())
            slots.allocate(owners[-1])
        elif owners:
            slots.release(owners.pop(choice % len(owners)))
        held = [owner.slot for owner in owners]
        assert len(set(held)) == len(held)
        assert all(slot is not None and 0 <= slot < count for slot in held)
        assert slots.num_free == count - len(owners)
        assert set(slots) == set(owners)
