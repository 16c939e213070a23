"""The pipeline of a call: key, version, path, parameters, idempotency, lists and expansion."""

import threading

import httpx
import pytest
import stripe

from simulators.stripe.calls import route
from simulators.stripe.operations import Operation
from simulators.stripe.world import API_VERSION
from tests.simulators.stripe.simulator import API_KEY, Simulator


def test_library_and_simulator_are_of_one_version(simulator: Simulator) -> None:
    assert stripe.api_version == API_VERSION
    answer = simulator.raw("GET", "/v1/customers")
    assert answer.headers["stripe-version"] == API_VERSION
    assert answer.headers["request-id"].startswith("req_")


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer sk_live_x", "Bearer nonsense", "Basic sk_test_x"])
def test_key_that_is_no_test_key_gets_401(simulator: Simulator, key: str) -> None:
    assert simulator.raw("GET", "/v1/customers", Authorization=key).status_code == 401


def test_other_version_gets_400(simulator: Simulator) -> None:
    answer = simulator.raw("GET", "/v1/customers", Stripe_Version="2020-08-27")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_path_gets_404(simulator: Simulator) -> None:
    answer = simulator.raw("GET", "/v1/topups")
    assert answer.status_code == 404
    assert "Unrecognized request URL" in answer.json()["error"]["message"]
    assert simulator.raw("PUT", "/v1/customers").status_code == 404


def test_path_that_the_library_has_and_the_simulator_lacks_is_no_id(simulator: Simulator) -> None:
    answer = simulator.raw("GET", "/v1/customers/search?query=x")
    assert answer.status_code == 404
    assert "the simulator does not know it" in answer.json()["error"]["message"]


def test_id_in_the_path_gets_404_and_in_a_parameter_400(simulator: Simulator) -> None:
    for verb, path, body, status, param in (
        ("GET", "/v1/customers/cus_none", "", 404, "customer"),
        ("GET", "/v1/subscriptions/sub_none", "", 404, "id"),
        ("POST", "/v1/subscriptions", "customer=cus_none&items[0][price]=price_none", 400, "customer"),
        ("GET", "/v1/customers?starting_after=cus_none", "", 400, "starting_after"),
    ):
        answer = simulator.raw(verb, path, body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, "resource_missing", param)


def test_body_that_is_no_text_gets_400(simulator: Simulator) -> None:
    answer = httpx.post(
        f"{simulator.url}/v1/customers", content=b"name=\xff", headers={"Authorization": f"Bearer {API_KEY}"}
    )
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_path_of_its_own_comes_before_a_path_with_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["/v1/invoices/create_preview", "/v1/invoices/{invoice}"]
    for order in (paths, paths[::-1]):
        known = {("POST", path): Operation("POST", path, dict, is_oldest_first=False) for path in order}
        monkeypatch.setattr("simulators.stripe.calls.OPERATIONS", known)
        assert route("POST", "/v1/invoices/create_preview")[0].path == paths[0]
        assert route("POST", "/v1/invoices/in_1")[1] == {"invoice": "in_1"}


def test_parameter_at_fault_reaches_the_client(simulator: Simulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.customers.create({"e_mail": "a@acme.example"})
    assert caught.value.param == "e_mail"
    assert caught.value.code == "parameter_unknown"


def test_body_of_v2_must_be_a_json_object(simulator: Simulator) -> None:
    for body in ("[]", "{"):
        assert simulator.raw("POST", "/v2/core/event_destinations", body).status_code == 400


def test_same_key_and_parameters_get_the_stored_answer(simulator: Simulator) -> None:
    first, second = (simulator.raw("POST", "/v1/customers", "name=Acme", Idempotency_Key="k1") for _ in range(2))
    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(simulator.v1.customers.list().data) == 1


def test_same_key_and_other_parameters_get_400(simulator: Simulator) -> None:
    simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
    with pytest.raises(stripe.IdempotencyError):
        simulator.v1.customers.create({"name": "Other"}, {"idempotency_key": "k1"})
    assert len(simulator.v1.customers.list().data) == 1


def test_refused_parameters_leave_the_key_free(simulator: Simulator) -> None:
    assert simulator.raw("POST", "/v1/customers", "nonsense=1", Idempotency_Key="k1").status_code == 400
    assert simulator.raw("POST", "/v1/customers", "name=Acme", Idempotency_Key="k1").status_code == 200


def test_refusal_of_the_handler_is_stored(simulator: Simulator) -> None:
    first, second = (simulator.raw("POST", "/v1/customers", "test_clock=none", Idempotency_Key="k1") for _ in range(2))
    assert first.status_code == second.status_code == 400
    assert second.headers["idempotent-replayed"] == "true"


def test_key_is_forgotten_after_a_day(simulator: Simulator) -> None:
    simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
    simulator.forward(24 * 3600)
    simulator.v1.customers.create({"name": "Other"}, {"idempotency_key": "k1"})
    assert len(simulator.v1.customers.list().data) == 2


def test_key_in_use_gets_409(simulator: Simulator) -> None:
    simulator.hazard("slow", path="/v1/customers", seconds=0.3, times=1)
    statuses: list[int] = []

    def create() -> None:
        answer = simulator.raw("POST", "/v1/customers", "name=Acme", Idempotency_Key="k1")
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409]
    assert len(simulator.v1.customers.list().data) == 1


def test_client_retries_a_key_in_use_by_itself(simulator: Simulator) -> None:
    simulator.hazard("conflict_409", times=1)
    client = simulator.new_client(retries=1)
    assert client.v1.customers.create({"name": "Acme"}).name == "Acme"
    assert simulator.strikes("conflict_409") == 1


def test_lists_are_paged_by_the_client(simulator: Simulator) -> None:
    made = [simulator.v1.customers.create({"name": str(number)}).id for number in range(5)]
    page = simulator.v1.customers.list({"limit": 2})
    assert page.has_more
    assert [found.id for found in page.auto_paging_iter()] == made[::-1]


def test_expansion_replaces_ids_by_objects(simulator: Simulator) -> None:
    product = simulator.v1.products.create({"name": "Tokens"})
    price = simulator.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 5})
    assert price.product == product.id
    expanded = simulator.v1.prices.retrieve(price.id, {"expand": ["product"]})
    assert expanded.product.name == "Tokens"
    listed = simulator.v1.prices.list({"expand": ["data.product"]})
    assert listed.data[0].product.name == "Tokens"


@pytest.mark.parametrize("path", ["nickname", "nonsense", "product.name", "product.a.b.c.d"])
def test_what_cannot_be_expanded_is_refused(simulator: Simulator, path: str) -> None:
    price = simulator.v1.prices.create({"product_data": {"name": "x"}, "currency": "usd", "unit_amount": 5})
    if path == "nickname":
        simulator.v1.prices.update(price.id, {"nickname": "n"})
    with pytest.raises(stripe.InvalidRequestError, match="expand"):
        simulator.v1.prices.retrieve(price.id, {"expand": [path]})


def test_defect_of_the_simulator_is_a_500_that_names_the_field(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"name": "Acme"})
    simulator.world.objects["customer"][made.id]["balance"] = "much"
    with pytest.raises(stripe.APIError, match=r"customer\.balance"):
        simulator.v1.customers.retrieve(made.id)
    del simulator.world.objects["customer"][made.id]["email"]
    del simulator.world.objects["customer"][made.id]["test_clock"]
    with pytest.raises(stripe.APIError, match="KeyError"):
        simulator.v1.customers.list()
