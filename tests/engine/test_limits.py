from typing import Any

import pytest

from app.engine.limits import check_request
from app.engine.sequence import Request, Sampling
from app.errors import BadRequest, ContextLengthExceeded


def check(**fields: Any) -> None:
    asked: dict[str, Any] = {"request_id": "r", "prompt": (1, 2), "max_tokens": 4}
    check_request(Request(**asked | fields), 16, 100)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 14},
        {"max_tokens": 0, "logprobs": 0, "prompt_logprobs": True},
        {"logprobs": 20},
        {"end_token_ids": frozenset({99})},
        {"sampling": Sampling(2.0, 0.01, 5, 1.0, -2.0, 2.0, {99: -100.0}, 2**64 - 1)},
    ],
)
def test_what_lies_on_the_border_passes(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": ()}, "token"),
        ({"prompt": (100,)}, "100"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"end_token_ids": frozenset({100})}, "stop_token_ids"),
        ({"end_token_ids": frozenset(range(65))}, "stop_token_ids"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature"),
        ({"sampling": Sampling(temperature=float("inf"))}, "temperature"),
        ({"sampling": Sampling(top_p=0)}, "top_p"),
        ({"sampling": Sampling(top_p=1.1)}, "top_p"),
        ({"sampling": Sampling(top_p=float("nan"))}, "top_p"),
        ({"sampling": Sampling(min_p=1.1)}, "min_p"),
        ({"sampling": Sampling(top_k=2**31)}, "top_k"),
        ({"sampling": Sampling(presence_penalty=2.1)}, "presence"),
        ({"sampling": Sampling(frequency_penalty=-2.1)}, "frequency"),
        ({"sampling": Sampling(logit_bias={100: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={1: 101.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias=dict.fromkeys(range(301), 1.0))}, "logit_bias"),
    ],
)
def test_what_lies_beyond_it_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        check(**fields)


@pytest.mark.parametrize("fields", [{"max_tokens": 15}, {"prompt": (1,) * 16, "max_tokens": 1}])
def test_too_much_for_the_context_has_an_error_of_its_own(fields: dict[str, Any]) -> None:
    with pytest.raises(ContextLengthExceeded):
        check(**fields)
