import inspect
import re

import pytest

from app import errors
from app.errors import AppError, DataError, QuotaExceeded, RateLimited, TollgateError

TREE = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, AppError)]


@pytest.mark.parametrize("error", TREE)
def test_each_error_says_its_status_and_a_snake_case_code(error: type[AppError]) -> None:
    raised = error("A message.", param="model")
    assert 400 <= raised.status < 600
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", raised.code)
    assert raised.body() == {
        "error": {"message": "A message.", "type": raised.type, "param": "model", "code": raised.code}
    }


def test_the_drawing_names_every_error() -> None:
    drawn = set(re.findall(r"── (\w+)", errors.__doc__ or ""))
    classes = {error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, TollgateError)}
    assert {error.__name__ for error in classes} - {"TollgateError", "RetryableError"} == drawn


def test_the_drawing_names_the_right_status_and_code() -> None:
    for name, status, code in re.findall(r"── (\w+) +(\d{3}) (\w+)", errors.__doc__ or ""):
        error = getattr(errors, name)("A message.")
        assert (error.status, error.code) == (int(status), code)


def test_a_rate_limit_says_when_to_come_back() -> None:
    headers = RateLimited("Slow down.", retry_after_s=1.2).headers
    assert headers == {"retry-after": "2", "retry-after-ms": "1200"}


def test_a_wait_of_nearly_nothing_is_still_a_wait() -> None:
    headers = RateLimited("Slow down.", retry_after_s=0.0001).headers
    assert headers == {"retry-after": "1", "retry-after-ms": "1"}


def test_a_used_up_quota_is_never_retried() -> None:
    assert QuotaExceeded("Nothing left.").headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [("a.csv", 7, "a.csv:7: no label"), ("a.csv", None, "a.csv: no label"), (None, None, "no label")],
)
def test_a_data_error_says_where(path: str | None, line: int | None, message: str) -> None:
    assert str(DataError("no label", path, line)) == message
