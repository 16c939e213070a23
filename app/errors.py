"""Every error that Tollgate raises on purpose, each with a status and a stable code.

    TollgateError                      one line a person can act on
    ├── ConfigError                    a setting is missing or wrong; the CLI exits 1
    ├── DataError                      a line of a data file is wrong (path and line)
    ├── ModelFormatError               a model directory cannot be read
    ├── NotificationFailed             a mail or a customer's webhook was not taken; tried again
    └── AppError                       has an HTTP status; becomes the error body
        ├── BadRequest                 400 invalid_request_error
        │   └── ContextLengthExceeded  400 context_length_exceeded
        ├── AuthenticationFailed       401 invalid_api_key
        ├── PaymentRequired            402 insufficient_quota
        ├── PermissionDenied           403 permission_denied
        ├── NotFound                   404 model_not_found
        ├── Conflict                   409 conflict
        ├── StripeRefused              409 stripe_refused         (402 where a card was declined)
        ├── PayloadTooLarge            413 request_too_large
        ├── RateLimited                429 rate_limit_exceeded    (Retry-After)
        ├── QuotaExceeded              429 insufficient_quota     (never retried)
        ├── InternalError              500 internal_error
        ├── Overloaded                 503 overloaded             (Retry-After)
        ├── EngineUnavailable          503 engine_unavailable     (Retry-After)
        ├── DatabaseUnavailable        503 database_unavailable   (Retry-After)
        ├── StripeUnavailable          503 stripe_unavailable     (Retry-After)
        ├── MailUnavailable            503 mail_unavailable       (Retry-After)
        └── DeadlineExceeded           504 deadline_exceeded

Knows nothing of the web framework: the API turns an ``AppError`` into a response,
the command line prints any ``TollgateError`` as one line. Messages are shown to
customers, so they hold no secrets and no foreign exception text. A page translates them:
a message with values in it is written ``BadRequest("At most %(most)s names.", values={"most": 100})``.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar


class TollgateError(Exception):
    """An expected failure whose message is one clear line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(TollgateError):
    """A setting, an option or the machine itself does not fit."""


class ModelFormatError(TollgateError):
    """A model directory is incomplete, damaged or of an unknown layout."""


class DataError(TollgateError):
    """A data file is unusable.

    Args:
        message: What is wrong, without the position.
        path: The file, where known.
        line: 1-based line number, where the fault has one.
    """

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        position = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(f"{position}{message}")
        self.path = path
        self.line = line


class NotificationFailed(TollgateError):
    """Whoever was to be told did not take it.

    Args:
        message: Why.
        is_final: Nor will they ever: it is not tried again.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class AppError(TollgateError):
    """An answer other than success on the HTTP interface.

    Attributes:
        template: The message with ``%(name)s`` in the places of ``values``: what is translated.
        status: HTTP status.
        code: Stable snake_case name that programs may branch on.
        type: OpenAI's coarse class of the error.
        param: Name of the offending request field, if one is to blame.
        headers: Sent with the response.
    """

    default_status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    default_type: ClassVar[str] = "server_error"
    default_headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        values: Mapping[str, object] | None = None,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message % values if values else message)
        self.template = message
        self.values = dict(values or {})
        self.param = param
        self.code = code or self.default_code
        self.status = status or self.default_status
        self.type = type or self.default_type
        self.headers: dict[str, str] = {**self.default_headers, **(headers or {})}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body, in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(AppError):
    """The request itself is wrong; sending it again cannot help."""

    default_status = 400
    default_code = "invalid_request_error"
    default_type = "invalid_request_error"


class ContextLengthExceeded(BadRequest):
    """Prompt, or prompt plus the asked output, exceeds the model's context."""

    default_code = "context_length_exceeded"


class AuthenticationFailed(AppError):
    """No key, a malformed one, or one that is unknown, expired or revoked."""

    default_status = 401
    default_code = "invalid_api_key"
    default_type = "invalid_request_error"


class PaymentRequired(AppError):
    """The organisation owes money or has no entitlement left."""

    default_status = 402
    default_code = "insufficient_quota"
    default_type = "insufficient_quota"


class PermissionDenied(AppError):
    """The key or user is known but may not do this."""

    default_status = 403
    default_code = "permission_denied"
    default_type = "invalid_request_error"


class NotFound(AppError):
    """The named thing does not exist for this caller; most often a model."""

    default_status = 404
    default_code = "model_not_found"
    default_type = "invalid_request_error"


class Conflict(AppError):
    """The request contradicts what already exists; OpenAI's client would send a 409 twice more."""

    default_status = 409
    default_code = "conflict"
    default_type = "invalid_request_error"
    default_headers = MappingProxyType({"x-should-retry": "false"})


class PayloadTooLarge(AppError):
    """The body exceeds the stated limit."""

    default_status = 413
    default_code = "request_too_large"
    default_type = "invalid_request_error"


class RetryableError(AppError):
    """A refusal that a later attempt may pass; says when.

    Args:
        message: What is full or away.
        retry_after_s: Seconds until a retry is sensible, > 0.
        param: As in ``AppError``.
        code: As in ``AppError``.
    """

    default_status = 503
    default_code = "overloaded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        # Retry-After knows whole seconds only; OpenAI's client prefers the
        # millisecond header, and rounding up never sends it back too early.
        headers = {
            "retry-after": str(max(1, math.ceil(retry_after_s))),
            "retry-after-ms": str(max(1, math.ceil(retry_after_s * 1000))),
        }
        super().__init__(message, param=param, code=code, headers=headers)
        self.retry_after_s = retry_after_s


class RateLimited(RetryableError):
    """A bucket of requests or tokens per minute is empty."""

    default_status = 429
    default_code = "rate_limit_exceeded"
    default_type = "rate_limit_error"


class QuotaExceeded(AppError):
    """A budget or quota is used up: waiting a moment does not help.

    OpenAI's client retries every 429 twice unless told not to.
    """

    default_status = 429
    default_code = "insufficient_quota"
    default_type = "insufficient_quota"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code, headers={"x-should-retry": "false"})


class InternalError(AppError):
    """A fault of ours; the details are in the log under the request id."""


class Overloaded(RetryableError):
    """A bounded queue is full."""


class EngineUnavailable(RetryableError):
    """The engine is away, draining, or went away in mid-answer."""

    default_code = "engine_unavailable"


class DatabaseUnavailable(RetryableError):
    """PostgreSQL does not answer."""

    default_code = "database_unavailable"


class StripeUnavailable(RetryableError):
    """Stripe is not set up, does not answer, is busy or failed: whether it did what it was asked is not known."""

    default_code = "stripe_unavailable"


class MailUnavailable(RetryableError):
    """The mail server did not take a mail."""

    default_code = "mail_unavailable"


class StripeRefused(AppError):
    """Stripe understood and does not do it; asking again cannot help.

    Attributes:
        stripe_status: HTTP status of its answer.
        stripe_code: Its code, such as ``resource_missing``; None where it gave none.
        decline_code: Why the bank refused a card; None where it was no card.
    """

    default_status = 409
    default_code = "stripe_refused"
    default_type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        stripe_status: int = 400,
        stripe_code: str | None = None,
        param: str | None = None,
        decline_code: str | None = None,
    ) -> None:
        status = 402 if stripe_status == 402 else None
        super().__init__(message, param=param, status=status)
        self.stripe_status = stripe_status
        self.stripe_code = stripe_code
        self.decline_code = decline_code


class DeadlineExceeded(AppError):
    """The request's deadline passed before the answer was complete."""

    default_status = 504
    default_code = "deadline_exceeded"
