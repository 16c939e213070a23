"""What goes wrong, in the shape in which Stripe says it.

    StripeError                 any type, by its fields
    ├── invalid(...)            400 invalid_request_error that names a parameter
    ├── missing(...)            resource_missing: 404 for what a path names, 400 for what a parameter names
    └── declined(...)           402 card_error with a decline code

One class, because Stripe distinguishes its errors by `type` and `code` and not by shape.
"""

from collections.abc import Mapping
from typing import Any, Literal

ErrorType = Literal["api_error", "card_error", "idempotency_error", "invalid_request_error"]


class StripeError(Exception):
    """An answer other than 2xx; raise it anywhere in a handler and nothing more happens.

    What the handler had changed by then stays changed, so check first and change after. The one use of that is a
    charge that fails: its invoice and its payment intent are kept, as at Stripe.

    Args:
        message: For a person.
        status: HTTP status.
        type: Family of the error; the client library picks its exception by status and type.
        code: Stable snake_case code, if Stripe documents one.
        param: Name of the parameter at fault, as the caller wrote it (`items[0][price]`).
        extra: More fields of the error object, such as `decline_code` or `payment_intent`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: ErrorType = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.extra = dict(extra or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON, without the fields that are not set."""
        fields = {"type": self.type, "code": self.code, "message": self.message, "param": self.param, **self.extra}
        return {"error": {name: value for name, value in fields.items() if value is not None}}


def invalid(param: str, message: str, code: str | None = None) -> StripeError:
    """A 400 that blames one parameter."""
    return StripeError(message, param=param, code=code)


def missing(kind: str, id: str, param: str = "id") -> StripeError:
    """For an object that there is not, or not any more: a 404, which `calls` turns into a 400 for a parameter's."""
    noun = kind.rsplit(".", 1)[-1]
    return StripeError(f"No such {noun}: '{id}'", status=404, code="resource_missing", param=param)


def declined(message: str, decline_code: str, code: str = "card_declined", **extra: Any) -> StripeError:  # noqa: ANN401
    """A 402: the bank refused. `extra` names the objects concerned, such as `payment_intent`."""
    return StripeError(message, status=402, type="card_error", code=code, extra={"decline_code": decline_code, **extra})
