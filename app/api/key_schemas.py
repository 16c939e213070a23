"""Bodies of requests and answers about API keys.

As `schemas.py`. In a change, what is left out stays and ``null`` takes a limit away.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from app.accounts.orgs import MAX_NAME_LENGTH
from app.api.schemas import Answer, Body
from app.api.usage_schemas import Money
from app.auth import SCOPES
from app.key_terms import MAX_MODEL_LENGTH, MAX_MODELS, MAX_NETWORKS, MAX_PER_MINUTE

MAX_OVERLAP_S = 366 * 86_400

Scope = Literal["generation", "classification", "embedding", "usage", "keys"]
State = Literal["active", "expired", "revoked"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH)]
Model = Annotated[str, StringConstraints(min_length=1, max_length=MAX_MODEL_LENGTH)]
PerMinute = Annotated[int, Field(ge=1, le=MAX_PER_MINUTE)]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]


class Amount(Body):
    """Money in a request: at most 9,000,000 USD, to the micro-unit."""

    value: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,7}(\.[0-9]{1,6})?$")] = Field(
        description="A decimal number as a string."
    )
    currency: Literal["usd"]


class KeyTerms(Body):
    """What a key may do."""

    scopes: Scopes | None = Field(
        None,
        description="Default: all but `keys`. A key with `keys` manages every key of the organisation, itself included,"
        " whatever its own limits are.",
    )
    allowed_models: Annotated[list[Model], Field(min_length=1, max_length=MAX_MODELS)] | None = Field(
        None, description="Names of models, at most 100; they need not exist yet. `null`: every model."
    )
    ip_allow: Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(min_length=1)] | None = Field(
        None,
        max_length=MAX_NETWORKS,
        description="Networks in CIDR notation or lone addresses, at most 100. `null`: from anywhere.",
    )
    requests_per_minute: PerMinute | None = Field(None, description="`null`: the plan's.")
    tokens_per_minute: PerMinute | None = Field(
        None, description="Prompt and largest possible output. `null`: the plan's."
    )
    monthly_cap: Amount | None = Field(
        None, description="What it may cost in a calendar month (UTC). `null`: no limit but the organisation's."
    )
    expires_at: AwareDatetime | None = Field(
        None, description="ISO 8601 with a zone, in the future. `null`: it does not expire."
    )


class CreateKeyBody(KeyTerms):
    """POST /v1/keys."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "laptop"},
                {
                    "name": "production",
                    "scopes": ["generation"],
                    "allowed_models": ["shakespeare"],
                    "ip_allow": ["192.0.2.0/24", "2001:db8::/32"],
                    "requests_per_minute": 600,
                    "monthly_cap": {"value": "25.00", "currency": "usd"},
                    "expires_at": "2036-01-31T00:00:00Z",
                },
            ]
        }
    )

    name: Name = Field(description="What it is for, in your words.")


class UpdateKeyBody(KeyTerms):
    """PATCH /v1/keys/{key_id}."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests_per_minute": 60, "monthly_cap": None}, {"name": "old laptop"}]}
    )

    name: Name | None = Field(None, description="What it is for, in your words.")


class RotateKeyBody(Body):
    """POST /v1/keys/{key_id}/rotate."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"overlap_s": 259200}]})

    overlap_s: int | None = Field(
        None,
        ge=0,
        le=MAX_OVERLAP_S,
        description="For so many seconds both keys work, at most 366 days; 0 ends the old one at once."
        " Default 86,400: a day.",
    )


class LeakBody(Body):
    """POST /v1/leaked-keys."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"key": "tg_live_0123456789ABCDEFGHIJabcdefghij4Us3aw"}]})

    key: Annotated[str, StringConstraints(max_length=256)] = Field(description="The key, in full.")


class ApiKeyAnswer(Answer):
    """A key as it may be shown: never the key itself."""

    id: str
    object: Literal["key"]
    name: str
    prefix: str
    last4: str
    state: State
    scopes: list[str]
    allowed_models: list[str] | None
    ip_allow: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    monthly_cap: Money | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    revoke_reason: Literal["revoked", "leaked", "rotated"] | None
    replaced_by: str | None
    last_used_at: datetime | None


class CreatedKey(ApiKeyAnswer):
    """A key that was just made; ``key`` is shown this once."""

    key: str


class KeyList(Answer):
    """Answer of GET /v1/keys; ``next`` is the ``after`` of the following page."""

    object: Literal["list"]
    data: list[ApiKeyAnswer]
    has_more: bool
    next: str | None


class LeakReceipt(Answer):
    """Answer to every report of a well-formed key."""

    object: Literal["leak_report"]
    status: Literal["received"]
