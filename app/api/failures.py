"""Failures as answers: every status of 400 and above has OpenAI's error body.

Foreign exceptions (the framework's 404 and 405, a validation error) are translated
here; nothing of an unexpected exception but its request id leaves the process.
"""

import math
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json, to_json
from starlette.exceptions import HTTPException

from app.errors import AppError, BadRequest, InternalError

_QUERY = "query"
_OPENING = "Input should be "


def error_response(error: AppError) -> Response:
    """The JSON answer for ``error``."""
    return Response(to_json(error.body()), error.status, error.headers, "application/json")


async def answer_app_error(_: Request, error: Exception) -> Response:
    """Answers an ``AppError`` that a handler or dependency raised."""
    assert isinstance(error, AppError)
    return error_response(error)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answers what the framework refused: an unknown route or a wrong method."""
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == HTTPStatus.NOT_FOUND:
        failure = AppError(f"Unknown request URL: {request.method} {request.url.path}.", code="unknown_url")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        failure = AppError(f"The method {request.method} is not allowed here.", code="method_not_allowed")
    else:
        failure = AppError(str(error.detail), code="invalid_request_error")
    failure.status, failure.type = error.status_code, "invalid_request_error"
    failure.headers.update(headers or {})
    return error_response(failure)


async def answer_query_error(_: Request, error: Exception) -> Response:
    """Answers wrong query or path parameters: 400 as everywhere, never the framework's 422."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != _QUERY)
    if first["type"] == "extra_forbidden":
        return error_response(_unknown_parameter(param))
    return error_response(BadRequest(f"Invalid value for '{param}': {_sentence(first['msg'])}", param=param))


def unexpected() -> InternalError:
    """What a client is told about a fault of ours."""
    return InternalError("The server had an error while processing your request; it is logged under its request id.")


def body_error(error: ValidationError, raw: bytes) -> BadRequest:
    """What is wrong with a request body, in one sentence and with the parameter's name.

    Args:
        error: From validating ``raw``.
        raw: The body; only read to find which part of a path exists in it.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {_json_problem(first)}.", code="invalid_json")
    unknown = next((problem for problem in problems if problem["type"] == "extra_forbidden"), None)
    if unknown is not None:
        return _unknown_parameter(_locate(unknown, from_json(raw))[0])
    if first["type"] == "contradiction":
        return BadRequest(first["msg"], param=first["ctx"]["param"])
    if not first["loc"]:
        return BadRequest("The body must be a JSON object.")
    body = from_json(raw)
    if first["type"] == "missing":
        param, _ = _locate(first, body)
        return BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    param, message = _explain([problem for problem in problems if problem["loc"][0] == first["loc"][0]], body)
    return BadRequest(f"Invalid value for '{param}': {_sentence(message)}", param=param)


def _unknown_parameter(param: str) -> BadRequest:
    return BadRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")


def _json_problem(problem: ErrorDetails) -> str:
    return str(problem.get("ctx", {}).get("error", "it cannot be read"))


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:] + "."


def _explain(problems: Sequence[ErrorDetails], body: object) -> tuple[str, str]:
    """The path of one parameter's problem, and what is wrong there.

    A union reports the problems of each of its branches. The branch that the caller
    meant is taken to be one of those that fit best: not of another type altogether,
    with the fewest problems, and of those the one that fits furthest into the body.
    """
    branches: dict[str | None, list[ErrorDetails]] = {}
    for problem in problems:
        branches.setdefault(_locate(problem, body)[1], []).append(problem)
    fitting = [
        group for branch, group in branches.items() if branch is None or group[0]["loc"][-1] != branch or _fits(group)
    ]
    groups = fitting or list(branches.values())
    fewest = min(len(group) for group in groups)
    closest = [group[0] for group in groups if len(group) == fewest]
    path, _ = _locate(max(closest, key=_progress), body)
    messages = dict.fromkeys(problem["msg"] for problem in closest if _locate(problem, body)[0] == path)
    first, *others = [*messages][:2]
    # "Input should be a valid string or a valid array", not the same opening twice.
    return path, " or ".join([first, *(other.removeprefix(_OPENING) for other in others)])


def _fits(group: Sequence[ErrorDetails]) -> bool:
    return not group[0]["type"].endswith("_type")


def _progress(problem: ErrorDetails) -> list[float]:
    """Up to which item of each list all was well; the items of one that is too long all are."""
    items: list[float] = [part for part in problem["loc"] if isinstance(part, int)]
    return [*items, math.inf] if problem["type"] == "too_long" else items


def _locate(problem: ErrorDetails, body: object) -> tuple[str, str | None]:
    """``messages[0].content`` for a problem, and the branch of a union that it is about."""
    path, branch = "", None
    for part in problem["loc"]:
        if isinstance(part, int) and isinstance(body, list):
            path, body = f"{path}[{part}]", body[part]
        elif isinstance(body, dict) and (part in body or problem["type"] == "missing"):
            path, body = f"{path}.{part}" if path else str(part), body.get(part)
        elif branch is None:
            branch = str(part)
    return path, branch
