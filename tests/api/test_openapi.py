"""The document and the page describe every route, with examples, and nothing from elsewhere."""

import re
from typing import Any

import pytest

from tests.api.world import World

PUBLIC = {"/v1/leaked-keys"}
MODELS = {"/v1/classifications": "labels", "/v1/embeddings": "vectors"}
ROUTES = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/classifications",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{model_id}",
    "/v1/usage",
    "/v1/usage/requests/{request_id}",
    "/v1/keys",
    "/v1/keys/{key_id}",
    "/v1/keys/{key_id}/rotate",
    "/v1/leaked-keys",
    "/livez",
    "/readyz",
    "/metrics",
}


async def document_of(world: World) -> dict[str, Any]:
    document: dict[str, Any] = (await world.http.get("/openapi.json")).json()
    return document


async def test_every_route_is_described_with_an_example(world: World) -> None:
    document = await document_of(world)
    assert set(document["paths"]) == ROUTES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            if method == "post":
                schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert document["components"]["schemas"][schema]["examples"]
            else:
                assert all("example" in content for content in operation["responses"]["200"]["content"].values()), path


async def test_every_reference_leads_somewhere(world: World) -> None:
    text = (await world.http.get("/openapi.json")).text
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    document = await document_of(world)
    assert names
    assert names <= set(document["components"]["schemas"])


async def test_keyed_routes_say_so_and_no_422_is_promised(world: World) -> None:
    document = await document_of(world)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path.startswith("/v1/") and path not in PUBLIC)
            assert "422" not in operation["responses"], path


async def test_the_examples_of_requests_are_accepted(world: World) -> None:
    document = await document_of(world)
    for path, operations in document["paths"].items():
        if "post" not in operations:
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in document["components"]["schemas"][schema]["examples"]:
            model = {"model": MODELS.get(path, "bytes")} if "model" in example else {}
            response = await world.post(path.format(key_id=await a_key(world)), {**example, **model})
            assert response.status_code == 200, response.text


async def a_key(world: World) -> str:
    return str((await world.post("/v1/keys", {"name": "to rotate"})).json()["id"])


@pytest.mark.parametrize("path", ["/docs", "/", "/login"])
async def test_pages_load_nothing_from_another_host_and_run_only_our_files(world: World, path: str) -> None:
    response = await world.http.get(path)
    assert response.status_code == 200
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", response.text, re.DOTALL)
    assert all('src="/static/' in attributes and not content for attributes, content in scripts)
    assert not re.search(r"<[^>]+\son\w+=", response.text)
    assert not re.search(r'(src|href)="(https?:)?//', response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_the_page_names_every_route_and_parameter(world: World) -> None:
    page = (await world.http.get("/docs")).text
    for path in ROUTES:
        assert path in page
    assert "`" not in page
    assert page.count("response_format") > 4  # the parameter, and a second example that uses it
    assert "<code>data: [DONE]</code>" in page
    for name in ("best_of", "max_completion_tokens", "x-request-timeout-ms", "group_by", "request_id"):
        assert f"<code>{name}</code>" in page
    assert (await world.http.get("/static/site.css")).headers["content-type"].startswith("text/css")
