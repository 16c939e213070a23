"""The OpenAPI document: request bodies, answers and errors of each route, with examples.

Handlers read their bodies themselves (after the key is checked, with errors in
OpenAI's shape), so the framework cannot derive their schemas; they are named here
and added to the document's components.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.chat_schemas import ChatBody
from app.api.completion_schemas import CompletionBody
from app.api.key_schemas import CreateKeyBody, LeakBody, RotateKeyBody, UpdateKeyBody
from app.api.schemas import ErrorBody
from app.api.text_schemas import ClassificationBody, EmbeddingBody

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    CompletionBody,
    ChatBody,
    ClassificationBody,
    EmbeddingBody,
    CreateKeyBody,
    UpdateKeyBody,
    RotateKeyBody,
    LeakBody,
)
_ERRORS: dict[int, tuple[str, dict[str, str | None]]] = {
    400: (
        "A parameter is wrong, unknown, or does not fit the model.",
        {
            "message": "Unknown parameter: 'temprature'.",
            "type": "invalid_request_error",
            "param": "temprature",
            "code": "unknown_parameter",
        },
    ),
    401: (
        "No key, or one that is malformed, unknown, expired or revoked.",
        {
            "message": "Incorrect API key provided.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        },
    ),
    403: (
        "The key lacks the scope, or its organisation is suspended.",
        {
            "message": "This API key does not have the scope 'generation'.",
            "type": "invalid_request_error",
            "param": None,
            "code": "permission_denied",
        },
    ),
    404: (
        "No such model, or no such request or key of yours.",
        {
            "message": "The model 'gpt-5' does not exist or is not available.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
    ),
    409: (
        "The API key's present state does not allow it, or the `Idempotency-Key` was used with another request.",
        {
            "message": "This key is revoked; a revoked key stays as it is.",
            "type": "invalid_request_error",
            "param": None,
            "code": "key_revoked",
        },
    ),
    413: (
        "The body is larger than 4 MiB.",
        {
            "message": "The request body is larger than 4 MiB.",
            "type": "invalid_request_error",
            "param": None,
            "code": "request_too_large",
        },
    ),
    429: (
        "A rate is used up; `Retry-After` and `retry-after-ms` say when to come back.",
        {
            "message": "Rate limit reached for shakespeare: 12000 requests per minute. Please try again in 5ms.",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        },
    ),
    503: (
        "The engine's queue is full, or the engine or the database is away; `Retry-After` says when to come back.",
        {
            "message": "The inference engine is not reachable; try again in a moment.",
            "type": "server_error",
            "param": None,
            "code": "engine_unavailable",
        },
    ),
    504: (
        "The deadline of `x-request-timeout-ms` passed.",
        {
            "message": "The request's deadline passed.",
            "type": "server_error",
            "param": None,
            "code": "deadline_exceeded",
        },
    ),
}
_READ_ERRORS = (400, 401, 403, 404, 429, 503)
_WORK_ERRORS = (*_READ_ERRORS, 409, 413, 504)
_WRITE_ERRORS = (*_READ_ERRORS, 409, 413)
_PUBLIC_ERRORS = (400, 413, 429, 503)
_TIMEOUT_PARAMETER = {
    "name": "x-request-timeout-ms",
    "in": "header",
    "required": False,
    "description": "The answer must be complete after so many milliseconds; at most and by default 600,000.",
    "schema": {"type": "integer", "minimum": 1},
}

_IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "Up to 255 characters of your choice, another for each request. Sent again with the same key within 24 hours,"
        " the request is not run again: you get its answer, also while it is still being made, and it is billed once."
        " The request goes on if you disconnect. A repeated answer has `idempotent-replayed: true`; another body with"
        " the same key is refused with 409. An error is not kept."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def body_of(schema: type[BaseModel], *, is_public: bool = False) -> dict[str, Any]:
    """Route arguments that describe a JSON body which the handler reads itself."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=schema.__name__)}}}
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": content}}
    if not is_public:
        extra |= {"parameters": [_TIMEOUT_PARAMETER], "security": [{"key": []}]}
    return {"openapi_extra": extra}


def responses(answer: type[BaseModel], *, streams: bool = False) -> dict[str, Any]:
    """Route arguments that describe the answer of a POST and its errors."""
    ok: dict[str, Any] = {"model": answer, "description": "The answer."}
    if streams:
        ok["description"] = "The answer; with `stream` one event per piece of it, the last one `data: [DONE]`."
        ok["content"] = {"text/event-stream": {"example": "data: {…}\n\ndata: [DONE]\n\n"}}
    return {"response_model": None, "responses": {200: ok, **_errors(_WORK_ERRORS)}}


def read_responses(answer: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Route arguments that describe the answer of a GET and its errors."""
    ok = {"model": answer, "description": "The answer.", "content": {"application/json": {"example": example}}}
    return {
        "response_model": None,
        "responses": {200: ok, **_errors(_READ_ERRORS)},
        "openapi_extra": {"security": [{"key": []}]},
    }


def write_responses(answer: type[BaseModel], example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Route arguments that describe the answer of a change and its errors."""
    ok: dict[str, Any] = {"model": answer, "description": "The answer."}
    if example is not None:
        ok["content"] = {"application/json": {"example": example}}
    return {"response_model": None, "responses": {200: ok, **_errors(_WRITE_ERRORS)}}


def public_responses(answer: type[BaseModel]) -> dict[str, Any]:
    """Route arguments that describe the answer of a POST that needs no key."""
    ok = {"model": answer, "description": "The answer."}
    return {"response_model": None, "responses": {200: ok, **_errors(_PUBLIC_ERRORS)}}


def complete(app: FastAPI) -> None:
    """Adds the request bodies and the key to the document of ``app``."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derive()
            components = document.setdefault("components", {})
            _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REF)
            components.setdefault("schemas", {}).update(bodies["$defs"])
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: `tg_live_…`."}
            }
            _drop_framework_errors(document)
            _offer_idempotency(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_framework_errors(document: dict[str, Any]) -> None:
    """The framework promises a 422 wherever there is a parameter; this interface answers 400."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _offer_idempotency(document: dict[str, Any]) -> None:
    """Every POST with a key takes the header, by a layer that the routes know nothing of."""
    for operations in document["paths"].values():
        if "security" in operations.get("post", {}):
            operations["post"].setdefault("parameters", []).append(_IDEMPOTENCY_PARAMETER)


def _errors(statuses: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    return {
        status: {
            "model": ErrorBody,
            "description": _ERRORS[status][0],
            "content": {"application/json": {"example": {"error": _ERRORS[status][1]}}},
        }
        for status in statuses
    }
