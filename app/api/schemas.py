"""What bodies of requests and answers have in common, in OpenAI's wire format; each noun has its own file.

Requests refuse what they do not know: an unknown parameter is an error with its
name, never ignored. ``null`` means the default, as in OpenAI's specification, and every
limit is stated. Answers are written field by field and dumped with ``exclude_unset``, so
that a ``null`` appears exactly where a client expects one.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

MAX_INT = 2**31 - 1
"""The engine counts in 32 bits."""

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# Such lists may fill a body. A fault takes a kilobyte and many microseconds, so the first one is enough.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class Body(BaseModel):
    """A request body: unknown fields and lenient conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


def contradiction(param: str, message: str) -> PydanticCustomError:
    """The error of a parameter that does not go with another one."""
    return PydanticCustomError("contradiction", message, {"param": param})
