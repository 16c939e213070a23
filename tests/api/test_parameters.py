"""Each parameter takes effect, and a usage row keeps what replays its answer, but no content."""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from app.api.chat_schemas import ChatBody
from app.api.completion_schemas import CompletionBody
from app.api.parameters import KEPT
from app.api.schemas import Body
from app.api.text_schemas import ClassificationBody, EmbeddingBody
from app.rpc import engine_pb2 as pb
from tests.api.world import LABELS, World, error_of, say

Asked = list[pb.GenerateRequest]
PROMPT = {"prompt": "ab"}
MESSAGES = {"messages": [{"role": "user", "content": "ab"}]}
CONTENT = {"model", "prompt", "messages", "input", "user", "metadata", "stream_options"}
# Kept in another form: a seed always, a grammar by its kind and sha256.
KEPT_OTHERWISE = {"seed", "response_format", "choice", "regex"}

# What is sent, what the engine sees of it, and what that has to be.
BOTH: dict[str, tuple[dict[str, Any], Callable[[Asked], Any], Any]] = {
    "max_tokens": ({"max_tokens": 3}, lambda asked: asked[0].max_tokens, 3),
    "temperature": ({"temperature": 0.5}, lambda asked: asked[0].sampling.temperature, 0.5),
    "top_p": ({"top_p": 0.5}, lambda asked: asked[0].sampling.top_p, 0.5),
    "top_k": ({"top_k": 4}, lambda asked: asked[0].sampling.top_k, 4),
    "min_p": ({"min_p": 0.25}, lambda asked: asked[0].sampling.min_p, 0.25),
    "n": ({"n": 3}, len, 3),
    "seed": ({"seed": 9}, lambda asked: asked[0].sampling.seed, 9),
    "presence_penalty": ({"presence_penalty": 1}, lambda asked: asked[0].sampling.presence_penalty, 1),
    "frequency_penalty": ({"frequency_penalty": -1}, lambda asked: asked[0].sampling.frequency_penalty, -1),
    "logit_bias": ({"logit_bias": {"97": -5}}, lambda asked: dict(asked[0].sampling.logit_bias), {97: -5}),
    "min_tokens": ({"min_tokens": 2}, lambda asked: asked[0].min_tokens, 2),
    "stop_token_ids": ({"stop_token_ids": [5, 256]}, lambda asked: list(asked[0].stop_token_ids), [5, 256]),
    "ignore_eos": ({"ignore_eos": True}, lambda asked: asked[0].ignore_eos, True),
    "response_format": (
        {"response_format": {"type": "json_object"}},
        lambda asked: asked[0].grammar.json_object,
        True,
    ),
    "choice": ({"choice": ["a", "b"]}, lambda asked: list(asked[0].grammar.choice.texts), ["a", "b"]),
    "regex": ({"regex": "a+"}, lambda asked: asked[0].grammar.regex, "a+"),
}
COMPLETIONS = BOTH | {
    "best_of": ({"best_of": 3}, lambda asked: (len(asked), asked[0].logprobs), (3, 0)),
    "logprobs": ({"logprobs": 2}, lambda asked: asked[0].logprobs, 2),
    "echo": ({"echo": True, "logprobs": 0}, lambda asked: asked[0].prompt_logprobs, True),
}
CHAT = BOTH | {
    "max_completion_tokens": ({"max_completion_tokens": 3}, lambda asked: asked[0].max_tokens, 3),
    "logprobs": ({"logprobs": True}, lambda asked: asked[0].HasField("logprobs"), True),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 4}, lambda asked: asked[0].logprobs, 4),
}
# Between the client and the API alone, with tests of their own.
API_ONLY = {"model", "prompt", "messages", "stop", "stream", "stream_options", "user", "metadata"}


@pytest.mark.parametrize(("schema", "known"), [(CompletionBody, COMPLETIONS), (ChatBody, CHAT)])
def test_no_parameter_is_left_out_here(schema: type[Body], known: dict[str, object]) -> None:
    assert {*schema.model_fields} == {*known} | API_ONLY & {*schema.model_fields}


@pytest.mark.parametrize(
    ("path", "prompt", "name", "case"),
    [
        *(("/v1/completions", PROMPT, name, case) for name, case in COMPLETIONS.items()),
        *(("/v1/chat/completions", MESSAGES, name, case) for name, case in CHAT.items()),
    ],
)
async def test_it_reaches_the_engine(
    world: World,
    path: str,
    prompt: dict[str, Any],
    name: str,
    case: tuple[dict[str, Any], Callable[[Asked], Any], Any],
) -> None:
    sent, seen, expected = case
    assert name in sent
    assert (await world.post(path, {"model": "bytes", **prompt})).status_code == 200
    world.engine.requests.sort(key=lambda request: request.sampling.seed)
    assert seen(world.engine.requests) != expected  # so that a default cannot pass
    world.engine.requests.clear()
    assert (await world.post(path, {"model": "bytes", **prompt, **sent})).status_code == 200
    assert seen(world.engine.requests) == expected


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"min_tokens": 1.5}, "min_tokens"),
        ({"stop_token_ids": [257]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(33))}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop": "a\0"}, "stop"),
    ],
)
async def test_what_is_out_of_bounds_is_refused_by_name(world: World, sent: dict[str, object], param: str) -> None:
    response = await world.post("/v1/completions", {"model": "bytes", **PROMPT, **sent})
    assert error_of(response) == (400, "invalid_request_error", param)
    assert world.engine.requests == []


async def test_no_stop_string_ends_the_answer_before_the_least(world: World) -> None:
    world.engine.answer = lambda _: say("a,b,c,d")
    body = {"model": "bytes", **PROMPT, "stop": ",", "min_tokens": 4}
    choice = (await world.post("/v1/completions", body)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a,b,c", "stop")


@pytest.mark.parametrize("schema", [CompletionBody, ChatBody, ClassificationBody, EmbeddingBody])
def test_each_parameter_is_kept_or_is_content(schema: type[Body]) -> None:
    assert {*schema.model_fields} - {*KEPT} - KEPT_OTHERWISE <= CONTENT
    assert not {*KEPT} & CONTENT


SAMPLED: list[dict[str, Any]] = [
    {},
    {"seed": -1},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.05, "n": 3},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"97": -5, "98": 1.5}, "max_tokens": 9},
    {"stop": ["1", "a"], "min_tokens": 3, "stop_token_ids": [4], "ignore_eos": True},
    {"response_format": {"type": "json_object"}, "temperature": 1, "n": 1},
]


@pytest.mark.parametrize("sent", [*SAMPLED, {"best_of": 4, "n": 2}, {"prompt": ["ab", "c"], "n": 2, "echo": True}])
async def test_a_completion_is_replayed_from_its_row(world: World, sent: dict[str, Any]) -> None:
    await check_replay(world, "/v1/completions", {"model": "bytes", **PROMPT, **sent})


@pytest.mark.parametrize("sent", [*SAMPLED, {"max_completion_tokens": 5}])
async def test_a_chat_is_replayed_from_its_row(world: World, sent: dict[str, Any]) -> None:
    await check_replay(world, "/v1/chat/completions", {"model": "bytes", **MESSAGES, **sent})


async def check_replay(world: World, path: str, body: dict[str, Any]) -> None:
    """The parameters as the row has them, with the same prompt, give the same answer; without them they do not."""
    world.engine.answer = drawn
    first = await world.post(path, body)
    kept = (await receipt(world, first))["parameters"]
    prompt = {name: body[name] for name in ("model", "prompt", "messages") if name in body}
    again = await world.post(path, prompt | kept)
    assert texts(again) == texts(first)
    assert (await receipt(world, again))["parameters"] == kept
    another = await world.post(path, prompt | kept | {"seed": kept["seed"] + 1})
    assert texts(another) != texts(first)


@pytest.mark.parametrize(
    ("sent", "kept", "written"),
    [
        ({"choice": ["ja", "né"]}, {"choice": {}}, '["ja","né"]'),
        ({"regex": "[ab] {3}"}, {"regex": {}}, "[ab] {3}"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": {"type": "object", "required": ["b", "a"]}},
                }
            },
            {"response_format": {"type": "json_schema"}},
            '{"type":"object","required":["b","a"]}',
        ),
    ],
)
async def test_a_callers_form_is_kept_as_its_sha256_and_replayed_with_it(
    world: World, sent: dict[str, Any], kept: dict[str, dict[str, str]], written: str
) -> None:
    world.engine.answer = drawn
    body = {"model": "bytes", **PROMPT, **sent}
    first = await world.post("/v1/completions", body)
    parameters = (await receipt(world, first))["parameters"]
    (name,) = kept
    assert parameters.keys() == {name, "seed"}
    assert parameters[name] == kept[name] | {"sha256": hashlib.sha256(written.encode()).hexdigest()}
    again = await world.post("/v1/completions", {"model": "bytes", **PROMPT, **parameters, **sent})
    assert texts(again) == texts(first)


@pytest.mark.parametrize(
    ("path", "body", "kept"),
    [
        ("/v1/completions", {"model": "bytes", **PROMPT, "seed": 1, "temperature": 1.0, "stop": []}, {"seed": 1}),
        (
            "/v1/completions",
            {
                "model": "bytes",
                **PROMPT,
                "seed": 1,
                "logprobs": 0,
                "stream": False,
                "response_format": {"type": "text"},
            },
            {"seed": 1, "logprobs": 0},
        ),
        (
            "/v1/classifications",
            {"model": "labels", "input": "a", "top_k": 2, "abstain_below": 0},
            {"top_k": 2, "abstain_below": 0},
        ),
        ("/v1/classifications", {"model": "labels", "input": "a"}, {}),
        (
            "/v1/embeddings",
            {"model": "vectors", "input": "a", "dimensions": 2, "encoding_format": "float"},
            {"dimensions": 2},
        ),
    ],
)
async def test_defaults_are_not_kept(world: World, path: str, body: dict[str, Any], kept: dict[str, Any]) -> None:
    assert (await receipt(world, await world.post(path, body)))["parameters"] == kept


async def test_a_seed_of_ours_is_one_that_any_client_can_send(world: World) -> None:
    seeds = [
        (await receipt(world, await world.post("/v1/completions", {"model": "bytes", **PROMPT})))["parameters"]["seed"]
        for _ in range(3)
    ]
    assert len({*seeds}) == 3
    assert all(0 <= seed < 2**53 for seed in seeds)


async def test_a_row_keeps_no_text_of_the_caller(world: World) -> None:
    secret = "the-quick-brown-fox"
    assert secret not in LABELS
    callers = {"user": secret, "metadata": {secret: secret}}
    schema = {"name": secret, "description": secret, "schema": {"const": secret}}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "bytes", "prompt": secret, "regex": secret, **callers}),
        ("/v1/completions", {"model": "bytes", "prompt": [secret], "choice": [secret], **callers}),
        (
            "/v1/chat/completions",
            {
                "model": "bytes",
                "messages": [{"role": "user", "content": secret, "name": secret}],
                "response_format": {"type": "json_schema", "json_schema": schema},
                **callers,
            },
        ),
        ("/v1/classifications", {"model": "labels", "input": secret}),
        ("/v1/embeddings", {"model": "vectors", "input": [secret], "user": secret}),
    ]
    for path, body in bodies:
        assert (await world.post(path, body)).status_code == 200
    rows = await world.usage_rows()
    assert len(rows) == len(bodies)
    assert secret not in str(rows)


async def drawn(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
    """A text that follows from all that was asked, and from nothing else."""
    asked = pb.GenerateRequest()
    asked.CopyFrom(request)
    asked.request_id, asked.deadline_ms = "", 0
    text = hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[: request.max_tokens].encode()
    logprobs = [pb.TokenLogprob(token=byte, logprob=-byte) for byte in text] if request.HasField("logprobs") else []
    yield pb.GenerateChunk(tokens=text, logprobs=logprobs, finish_reason="stop")


async def receipt(world: World, answer: httpx.Response) -> dict[str, Any]:
    """The row behind an answer."""
    assert answer.status_code == 200, answer.text
    response = await world.get(f"/v1/usage/requests/{answer.headers['x-request-id']}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def texts(answer: httpx.Response) -> list[str]:
    """What was said in each choice."""
    return [choice.get("text") or choice["message"]["content"] for choice in answer.json()["choices"]]
