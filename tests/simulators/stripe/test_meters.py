"""Meters, their events, and what they counted."""

from typing import Any

import pytest
import stripe

from simulators.stripe.meters import usage
from simulators.stripe.world import World
from tests.simulators.stripe.simulator import Simulator

HOUR = 3600
DAY = 24 * HOUR
# A midnight, UTC.
START = 1_800_000_000 - 1_800_000_000 % DAY


class Metered:
    """A meter and a customer under a test clock that stands at `START` plus ten days."""

    def __init__(self, simulator: Simulator, formula: str = "sum") -> None:
        self.simulator = simulator
        self.now = START + 10 * DAY
        self.clock = simulator.v1.test_helpers.test_clocks.create({"frozen_time": self.now}).id
        self.customer = simulator.v1.customers.create({"test_clock": self.clock}).id
        self.meter = simulator.v1.billing.meters.create(
            {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": formula}}
        ).id

    def report(self, value: Any, timestamp: int | None = None, **more: Any) -> Any:
        params = {"event_name": "tokens", "payload": {"stripe_customer_id": self.customer, "value": str(value)}}
        when = {} if timestamp is None else {"timestamp": timestamp}
        return self.simulator.v1.billing.meter_events.create(params | when | more)

    def total(self, start: int, end: int) -> float:
        return float(sum(summary.aggregated_value for summary in self.summaries(start, end)))

    def summaries(self, start: int, end: int, window: str | None = None) -> list[Any]:
        params: dict[str, Any] = {"customer": self.customer, "start_time": start, "end_time": end, "limit": 100}
        if window:
            params["value_grouping_window"] = window
        listed = self.simulator.v1.billing.meters.event_summaries.list(self.meter, params)
        return list(listed.auto_paging_iter())

    def refused(self, value: Any, timestamp: int | None = None, **more: Any) -> stripe.InvalidRequestError:
        with pytest.raises(stripe.InvalidRequestError) as caught:
            self.report(value, timestamp, **more)
        assert caught.value.http_status == 400
        return caught.value


@pytest.fixture
def metered(simulator: Simulator) -> Metered:
    return Metered(simulator)


def test_events_are_summed_half_open(metered: Metered) -> None:
    for second, value in ((START, 1), (START + HOUR - 1, 10), (START + HOUR, 100)):
        metered.report(value, second)
    assert metered.total(START, START + HOUR) == 11
    assert metered.total(START + HOUR, START + 2 * HOUR) == 100
    assert metered.total(START + 2 * HOUR, START + 3 * HOUR) == 0


def test_what_is_billed_for_a_period_is_half_open() -> None:
    world = World(lambda: START)
    world.put({"id": "mtr", "object": "billing.meter", "default_aggregation": {"formula": "sum"}})
    events = [
        {"identifier": str(value), "timestamp": second, "value": value, "received": START, "is_cancelled": False}
        for second, value in ((START - 1, 1), (START, 10), (START + HOUR - 1, 100), (START + HOUR, 1000))
    ]
    world.put({"id": "mtr/cus", "object": "_usage", "customer": "cus", "events": events})
    assert usage(world, "mtr", "cus", START, START + HOUR) == 110
    assert usage(world, "mtr", "cus", START + HOUR, START + 2 * HOUR) == 1000
    assert usage(world, "mtr", "other", START, START + HOUR) == 0


def test_windows_are_hours_or_days_of_utc(metered: Metered) -> None:
    for second, value in ((START, 1), (START + HOUR, 2), (START + DAY, 4)):
        metered.report(value, second)
    hours = metered.summaries(START, START + 2 * DAY, "hour")
    assert [(found.start_time, found.end_time, found.aggregated_value) for found in reversed(hours)] == [
        (START, START + HOUR, 1),
        (START + HOUR, START + 2 * HOUR, 2),
        (START + DAY, START + DAY + HOUR, 4),
    ]
    days = metered.summaries(START, START + 2 * DAY, "day")
    assert [found.aggregated_value for found in reversed(days)] == [3, 4]


def test_more_windows_than_a_page_holds_are_paged(metered: Metered) -> None:
    for hour in range(130):
        metered.report(1, START + hour * HOUR)
    assert sum(found.aggregated_value for found in metered.summaries(START, START + 6 * DAY, "hour")) == 130


@pytest.mark.parametrize(
    ("start", "end", "window"), [(1, 60, None), (0, 61, None), (0, 0, None), (60, HOUR, "hour"), (HOUR, DAY, "day")]
)
def test_range_must_be_aligned(metered: Metered, start: int, end: int, window: str | None) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        metered.summaries(START + start, START + end, window)


@pytest.mark.parametrize(("formula", "counted"), [("sum", 8), ("count", 3), ("last", 1)])
def test_formula_of_the_meter_counts(simulator: Simulator, formula: str, counted: int) -> None:
    metered = Metered(simulator, formula)
    for second, value in ((START + 9, 1), (START, 5), (START + 5, 2)):
        metered.report(value, second)
    assert metered.total(START, START + DAY) == counted


def test_counting_meter_needs_no_value(simulator: Simulator) -> None:
    metered = Metered(simulator, "count")
    params = {"event_name": "tokens", "payload": {"stripe_customer_id": metered.customer}, "timestamp": START}
    simulator.v1.billing.meter_events.create(params)
    assert metered.total(START, START + DAY) == 1


def test_duplicate_identifier_gets_400_for_a_day(metered: Metered) -> None:
    metered.report(5, START, identifier="e1")
    assert "already exists with identifier e1" in str(metered.refused(5, START, identifier="e1").user_message)
    assert metered.total(START, START + DAY) == 5
    advance(metered, 24 * HOUR - 1)
    metered.refused(5, START, identifier="e1")
    advance(metered, 24 * HOUR)
    metered.report(5, START, identifier="e1")
    assert metered.total(START, START + DAY) == 10


def advance(metered: Metered, seconds: int) -> None:
    metered.simulator.v1.test_helpers.test_clocks.advance(metered.clock, {"frozen_time": metered.now + seconds})


@pytest.mark.parametrize("value", ["1.5", "-1", "many", "1e3", "1" * 16])
def test_value_must_be_a_whole_number_of_15_digits(metered: Metered, value: str) -> None:
    assert metered.refused(value).param == "payload[value]"
    assert metered.total(START, START + 11 * DAY) == 0


def test_largest_value_is_counted_exactly(metered: Metered) -> None:
    metered.report(999_999_999_999_999, START)
    assert metered.total(START, START + DAY) == 999_999_999_999_999


def test_time_must_be_within_35_days_back_and_5_minutes_ahead(metered: Metered) -> None:
    metered.report(1, metered.now - 35 * DAY)
    metered.report(1, metered.now + 300)
    assert metered.refused(1, metered.now - 35 * DAY - 1).param == "timestamp"
    assert metered.refused(1, metered.now + 301).param == "timestamp"


def test_identifier_has_at_most_100_characters(metered: Metered) -> None:
    metered.report(1, identifier="x" * 100)
    assert metered.refused(1, identifier="y" * 101).param == "identifier"


def test_event_answers_with_what_was_accepted(metered: Metered) -> None:
    event = metered.report(7)
    assert event.timestamp == event.created == metered.now
    assert event.identifier
    assert event.payload["value"] == "7"


@pytest.mark.parametrize(
    ("change", "type", "code"),
    [
        ({"event_name": "nothing"}, "v1.billing.meter.no_meter_found", "no_meter"),
        (
            {"payload": {"stripe_customer_id": "cus_none", "value": "1"}},
            "v1.billing.meter.error_report_triggered",
            "meter_event_customer_not_found",
        ),
        (
            {"payload": {"value": "1"}},
            "v1.billing.meter.error_report_triggered",
            "meter_event_no_customer_defined",
        ),
    ],
)
def test_event_that_refers_to_nothing_is_reported_by_a_thin_event(
    metered: Metered, change: dict[str, Any], type: str, code: str
) -> None:
    params = {"event_name": "tokens", "payload": {"stripe_customer_id": metered.customer, "value": "1"}}
    metered.simulator.v1.billing.meter_events.create(params | change | {"identifier": "e1"})
    metered.simulator.flush()
    body, header = next(sent for sent in metered.simulator.receiver.received if b"v2.core.event" in sent[0])
    notification = metered.simulator.client.parse_event_notification(body, header, "whsec_test")
    assert notification.type == type
    event = notification.fetch_event()
    error = event.data.reason.error_types[0]
    assert (error.code, error.error_count) == (code, 1)
    assert error.sample_errors[0].request.identifier == "e1"
    if type != "v1.billing.meter.no_meter_found":
        assert notification.fetch_related_object().id == metered.meter
    assert metered.total(START, START + 11 * DAY) == 0


def test_event_of_an_inactive_meter_is_not_counted(metered: Metered) -> None:
    meters = metered.simulator.v1.billing.meters
    assert meters.deactivate(metered.meter).status_transitions.deactivated_at is not None
    metered.report(5, START)
    with pytest.raises(stripe.InvalidRequestError):
        meters.deactivate(metered.meter)
    assert meters.reactivate(metered.meter).status == "active"
    with pytest.raises(stripe.InvalidRequestError):
        meters.reactivate(metered.meter)
    metered.report(7, START)
    assert metered.total(START, START + DAY) == 7
    thin = metered.simulator.client.v2.core.events.list({"object_id": metered.meter}).data
    assert [event.data.reason.error_types[0].code for event in thin] == ["archived_meter"]


def test_rejected_event_is_accepted_and_not_counted(metered: Metered) -> None:
    metered.simulator.hazard("meter_event_rejected", times=1, code="meter_event_invalid_value")
    metered.report(5, START, identifier="e1")
    metered.report(7, START)
    assert metered.total(START, START + DAY) == 7
    thin = metered.simulator.client.v2.core.events.list({"types": ["v1.billing.meter.error_report_triggered"]}).data
    assert [event.data.reason.error_types[0].code for event in thin] == ["meter_event_invalid_value"]


def test_forgotten_identifier_is_counted_again(metered: Metered) -> None:
    metered.report(5, START, identifier="e1")
    metered.simulator.hazard("identifier_forgotten", times=1)
    metered.report(5, START, identifier="e1")
    metered.refused(5, START, identifier="e1")
    assert metered.total(START, START + DAY) == 10


def test_event_can_be_counted_and_called_a_duplicate(metered: Metered) -> None:
    metered.simulator.hazard("duplicate_identifier", times=1)
    metered.refused(5, START, identifier="e1")
    assert metered.total(START, START + DAY) == 5


def test_lagging_summaries_leave_out_what_just_came(metered: Metered) -> None:
    metered.report(5, START)
    advance(metered, 60)
    metered.report(7, START)
    metered.simulator.hazard("summaries_lag", seconds=30)
    assert metered.total(START, START + DAY) == 5
    advance(metered, 120)
    assert metered.total(START, START + DAY) == 12


def test_adjustment_cancels_an_event_for_a_day(metered: Metered) -> None:
    metered.report(5, START, identifier="e1")
    metered.report(7, START, identifier="e2")
    adjustments = metered.simulator.v1.billing.meter_event_adjustments
    made = adjustments.create({"event_name": "tokens", "type": "cancel", "cancel": {"identifier": "e1"}})
    assert (made.status, made.cancel.identifier) == ("complete", "e1")
    assert metered.total(START, START + DAY) == 7
    for cancel in ({}, {"cancel": {"identifier": "none"}}):
        with pytest.raises(stripe.InvalidRequestError):
            adjustments.create({"event_name": "tokens", "type": "cancel", **cancel})
    advance(metered, 24 * HOUR + 1)
    with pytest.raises(stripe.InvalidRequestError):
        adjustments.create({"event_name": "tokens", "type": "cancel", "cancel": {"identifier": "e2"}})


def test_meters_are_listed_renamed_and_named_once(metered: Metered) -> None:
    meters = metered.simulator.v1.billing.meters
    assert [found.id for found in meters.list({"status": "active"}).data] == [metered.meter]
    assert meters.update(metered.meter, {"display_name": "Words"}).display_name == "Words"
    assert meters.retrieve(metered.meter).display_name == "Words"
    with pytest.raises(stripe.InvalidRequestError):
        meters.create({"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}})


def test_meter_chooses_the_keys_of_its_payload(simulator: Simulator) -> None:
    customer = simulator.v1.customers.create().id
    meter = simulator.v1.billing.meters.create(
        {
            "display_name": "Bytes",
            "event_name": "bytes",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"event_payload_key": "who", "type": "by_id"},
            "value_settings": {"event_payload_key": "bytes"},
        }
    )
    event = simulator.v1.billing.meter_events.create(
        {"event_name": "bytes", "payload": {"who": customer, "bytes": "12"}}
    )
    start = event.timestamp - event.timestamp % 60
    params = {"customer": customer, "start_time": start, "end_time": start + 60}
    listed = simulator.v1.billing.meters.event_summaries.list(meter.id, params)
    assert [found.aggregated_value for found in listed.data] == [12]
    with pytest.raises(stripe.InvalidRequestError, match=r"payload\[bytes\]"):
        simulator.v1.billing.meter_events.create({"event_name": "bytes", "payload": {"who": customer}})
