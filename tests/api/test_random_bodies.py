"""Whatever JSON comes, the answer is whole or a well-formed refusal that costs nothing."""

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.api.chat_schemas import ChatBody
from app.api.completion_schemas import CompletionBody
from app.api.schemas import Body
from app.api.text_schemas import ClassificationBody, EmbeddingBody
from tests.api.world import World, error_of

PATHS: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "/v1/completions": (CompletionBody, {"model": "bytes", "prompt": "a"}),
    "/v1/chat/completions": (ChatBody, {"model": "bytes", "messages": [{"role": "user", "content": "a"}]}),
    "/v1/classifications": (ClassificationBody, {"model": "labels", "input": "a"}),
    "/v1/embeddings": (EmbeddingBody, {"model": "vectors", "input": "a"}),
}
TEXT = st.text(max_size=8) | st.sampled_from(
    ["", "\0", "\u2028", "bytes", "labels", "..", "user", "text", "0", "9999999999"]
)
EDGES = st.sampled_from([-1, 0, 1, 2, 0.0, -0.0, 1e308, 5e-324, 2**31 - 1, 2**31, -(2**63), 2**63, 2**64, 10**30])
SCALARS = st.none() | st.booleans() | EDGES | st.integers() | st.floats() | TEXT
NAMES = TEXT | st.sampled_from(["role", "content", "type", "text", "name", "include_usage", "256"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
# Of the right type for most parameters, so that many a body is carried out.
PLAUSIBLE = st.sampled_from([None, True, False, 0, 1, 2, 0.0, 0.5, 1.0, "a", "lo", ["a", "l"], [97, 98], {"97": 1}])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """A path, and a body that is often nearly right."""
    path = draw(st.sampled_from(sorted(PATHS)))
    schema, base = PATHS[path]
    known = st.sampled_from(sorted(schema.model_fields))
    body = base | draw(st.dictionaries(known.filter(lambda name: name not in base), PLAUSIBLE, max_size=3))
    if draw(st.booleans()):
        body |= draw(st.dictionaries(known | NAMES, VALUES, max_size=2))
    if draw(st.integers(0, 9)) == 0:
        del body[draw(st.sampled_from(sorted(body)))]
    return path, draw(VALUES) if draw(st.integers(0, 19)) == 0 else body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=requests())
@example(drawn=("/v1/completions", {"model": "bytes", "prompt": [256], "echo": True, "logprobs": 2, "max_tokens": 0}))
@example(drawn=("/v1/completions", {"model": "bytes", "prompt": ["a", "b"], "n": 2, "best_of": 4, "stop": ["l", "\0"]}))
@example(drawn=("/v1/completions", {"model": "bytes", "prompt": "\0", "stream": True, "user": "\0"}))
async def test_an_answer_or_a_refusal_that_costs_nothing(world: World, drawn: tuple[str, Any]) -> None:
    path, body = drawn
    before = len(await world.usage_rows())
    response = await world.post(path, json.dumps(body).encode())
    billed = len(await world.usage_rows()) - before
    if response.status_code == 200:
        assert billed == 1
        assert response.text.endswith("data: [DONE]\n\n") or response.json()["usage"]
    else:
        assert 400 <= error_of(response)[0] < 500
        assert billed == 0
