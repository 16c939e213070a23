"""The official client against a whole installation with its published models."""

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from app.modeling.registry import ModelCard
from tests.e2e.conftest import models_of
from tests.installation import Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("installation")]


class Play(BaseModel):
    title: Annotated[str, Field(max_length=12)]
    genre: Literal["tragedy", "comedy"]
    acts: Annotated[int, Field(ge=1, le=5)]


def usage(installation: Installation, **parameters: Any) -> list[dict[str, Any]]:
    """The lines of GET /v1/usage."""
    headers = {"authorization": f"Bearer {installation.key}"}
    response = httpx.get(f"{installation.url}/usage", params={"group_by": "model", **parameters}, headers=headers)
    assert response.status_code == 200, response.text
    lines: list[dict[str, Any]] = response.json()["data"]
    return lines


def totals(installation: Installation, model: str) -> tuple[int, int, int]:
    """Requests, input and output tokens of a model so far."""
    mine = [line for line in usage(installation) if line["model"] == model]
    requests, input_tokens, output_tokens = (
        sum(line[name] for line in mine) for name in ("requests", "input_tokens", "output_tokens")
    )
    return requests, input_tokens, output_tokens


@pytest.mark.parametrize("card", models_of("generation"), ids=lambda card: card.name)
def test_each_generation_model_writes_and_is_metered(installation: Installation, card: ModelCard) -> None:
    before = totals(installation, card.name)
    answer = installation.client().completions.create(model=card.name, prompt="The ", max_tokens=12, seed=1)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 12
    after = totals(installation, card.name)
    received = (1, answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert tuple(new - old for new, old in zip(after, before, strict=True)) == received


def test_a_stream_joins_to_the_greedy_answer_and_reports_its_usage(
    installation: Installation, generator: ModelCard
) -> None:
    client = installation.client()
    whole = client.completions.create(model=generator.name, prompt="The king", max_tokens=16, temperature=0)
    stream = client.completions.create(
        model=generator.name,
        prompt="The king",
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    reasons = [str(choice.finish_reason) for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) <= {"None"}
    assert chunks[-1].usage == whole.usage


def test_a_conversation_is_answered(installation: Installation, generator: ModelCard) -> None:
    answer = installation.client().chat.completions.create(
        model=generator.name, messages=[{"role": "user", "content": "Good morrow."}], max_completion_tokens=12
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"stop", "length"}


def test_the_same_seed_gives_the_same_answer(installation: Installation, generator: ModelCard) -> None:
    texts = {
        installation.client()
        .completions.create(model=generator.name, prompt="O ", max_tokens=12, seed=42, temperature=1)
        .choices[0]
        .text
        for _ in range(3)
    }
    assert len(texts) == 1


def test_a_sampled_answer_is_replayed_from_its_row(installation: Installation, generator: ModelCard) -> None:
    completions = installation.client().completions
    sampled: dict[str, Any] = {"temperature": 1.2, "n": 2, "max_tokens": 24, "frequency_penalty": 0.5}
    raw = completions.with_raw_response.create(
        model=generator.name, prompt="O ", **sampled, extra_body={"top_k": 40, "min_tokens": 5}
    )
    response = httpx.get(
        f"{installation.url}/usage/requests/{raw.headers['x-request-id']}",
        headers={"authorization": f"Bearer {installation.key}"},
    )
    row = response.json()
    assert (row["model"], row["model_digest"]) == (generator.name, generator.digest)
    again = completions.create(model=row["model"], prompt="O ", extra_body=row["parameters"])
    texts = [choice.text for choice in raw.parse().choices]
    assert [choice.text for choice in again.choices] == texts
    assert texts[0] != texts[1]


def test_an_answer_is_parsed_as_the_callers_class(installation: Installation, generator: ModelCard) -> None:
    answer = installation.client().chat.completions.parse(
        model=generator.name,
        messages=[{"role": "user", "content": "A play, as JSON."}],
        response_format=Play,
        max_completion_tokens=100,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Play)


def test_a_streamed_answer_is_one_of_a_choice(installation: Installation, generator: ModelCard) -> None:
    choices = [" happy", " undone", " the king"]
    stream = installation.client().completions.create(
        model=generator.name, prompt="I am", max_tokens=16, stream=True, extra_body={"choice": choices}
    )
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) in choices


def test_a_form_that_cannot_be_followed_is_refused(installation: Installation, generator: ModelCard) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        installation.client().completions.create(model=generator.name, prompt="a", extra_body={"regex": "(a"})
    assert refused.value.param == "regex"


def test_a_stop_string_is_not_shown(installation: Installation, generator: ModelCard) -> None:
    answer = installation.client().completions.create(
        model=generator.name, prompt="The ", max_tokens=40, temperature=0, stop=["e"]
    )
    assert "e" not in answer.choices[0].text


def test_a_stream_that_is_left_is_billed_for_what_was_sent(installation: Installation, generator: ModelCard) -> None:
    before = totals(installation, generator.name)
    stream = installation.client().completions.create(
        model=generator.name, prompt="The ", max_tokens=100, stream=True, logit_bias=_never_end(generator)
    )
    next(iter(stream))
    stream.close()
    after = before
    while after[0] == before[0]:
        after = totals(installation, generator.name)
    assert after[2] - before[2] < 100


@pytest.mark.parametrize("card", models_of("classification"), ids=lambda card: card.name)
def test_each_classifier_labels_a_batch(installation: Installation, card: ModelCard) -> None:
    texts = ["Where is my new card?", "I want to close my account."]
    response = httpx.post(
        f"{installation.url}/classifications",
        json={"model": card.name, "input": texts},
        headers={"authorization": f"Bearer {installation.key}"},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    for item in response.json()["data"]:
        assert item["label"] in card.labels
        assert sum(score["score"] for score in item["scores"]) == pytest.approx(1, abs=1e-3)


def test_models_are_listed(installation: Installation) -> None:
    listed = {model.id for model in installation.client().models.list()}
    assert listed == {card.name for card in (*models_of("generation"), *models_of("classification"))}


def test_errors_have_the_clients_classes(installation: Installation, generator: ModelCard) -> None:
    client = installation.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=generator.name, prompt="word " * 5000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model=generator.name, prompt="a", suffix="b")
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "suffix")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="tg_live_nonsense").models.list()


def test_concurrent_requests_all_get_an_answer_and_a_row(installation: Installation, generator: ModelCard) -> None:
    before = totals(installation, generator.name)
    client = installation.client()

    def one(seed: int) -> int:
        answer = client.completions.create(model=generator.name, prompt="The ", max_tokens=8, seed=seed)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(16) as pool:
        received = list(pool.map(one, range(32)))
    after = totals(installation, generator.name)
    assert (after[0] - before[0], after[2] - before[2]) == (32, sum(received))


def _never_end(card: ModelCard) -> dict[str, int]:
    return {str(token): -100 for token in card.eos_token_ids}
