"""What an API key may do, and what no key can have.

No database here: ``app.keys`` writes and reads it, ``app.auth`` judges requests by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from app.accounts.orgs import checked_name
from app.auth import DEFAULT_SCOPES, SCOPES, Network
from app.errors import BadRequest

MAX_MODELS = 100
MAX_MODEL_LENGTH = 128
MAX_NETWORKS = 100
MAX_PER_MINUTE = 2**31 - 1
MAX_MONTHLY_CAP = 9_000_000 * 10**12
"""10^-12 USD; what fits a bigint."""
_MAX_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key may do. None: no limit of its own.

    Attributes:
        name: 1 to 100 printable characters.
        scopes: Of ``auth.SCOPES``, at least one.
        allowed_models: Names; they need not exist yet.
        ip_allow: Networks it may be used from.
        requests_per_minute: Above 0.
        tokens_per_minute: Above 0.
        monthly_cap: What it may cost in a calendar month (UTC), in 10^-12 USD.
        expires_at: Aware; from then on it is refused.
    """

    name: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    allowed_models: tuple[str, ...] | None = None
    ip_allow: tuple[Network, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    monthly_cap: int | None = None
    expires_at: datetime | None = None

    @property
    def told(self) -> dict[str, Any]:
        """By name, for the audit log."""
        return {name: getattr(self, name) for name in self.__slots__}


def checked(terms: Terms) -> Terms:
    """The terms with duplicates and blanks removed.

    Raises:
        BadRequest: No key can have these; says which.
    """
    _check_scopes(terms.scopes)
    _check_models(terms.allowed_models)
    if terms.ip_allow is not None and not 1 <= len(terms.ip_allow) <= MAX_NETWORKS:
        raise BadRequest("A list of networks has 1 to %(most)s.", values={"most": MAX_NETWORKS}, param="ip_allow")
    for param in ("requests_per_minute", "tokens_per_minute"):
        limit = getattr(terms, param)
        if limit is not None and not 1 <= limit <= MAX_PER_MINUTE:
            raise BadRequest("A limit is from 1 to %(most)s a minute.", values={"most": MAX_PER_MINUTE}, param=param)
    if terms.monthly_cap is not None and not 0 <= terms.monthly_cap <= MAX_MONTHLY_CAP:
        raise BadRequest("A cap is from 0 to 9,000,000 USD a month.", param="monthly_cap")
    return replace(
        terms,
        name=checked_name(terms.name),
        scopes=_distinct(terms.scopes),
        allowed_models=None if terms.allowed_models is None else _distinct(terms.allowed_models),
    )


def require_future(expires_at: datetime) -> None:
    """Passes if a key that expires then is good for anything.

    Raises:
        BadRequest: It is past.
    """
    if expires_at <= datetime.now(UTC):
        raise BadRequest("A key must expire in the future.", param="expires_at")


def parse_networks(values: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; a lone address is a network of one.

    Raises:
        BadRequest: One is no network, or has bits beyond its mask.
    """
    return tuple(_network(value) for value in values)


def _check_scopes(scopes: Sequence[str]) -> None:
    if not scopes:
        raise BadRequest("A key needs at least one scope.", param="scopes")
    for scope in scopes:
        if scope not in SCOPES:
            values = {"scope": scope, "scopes": ", ".join(SCOPES)}
            raise BadRequest("The scope '%(scope)s' is not one of %(scopes)s.", values=values, param="scopes")


def _check_models(models: Sequence[str] | None) -> None:
    if models is None:
        return
    if not 1 <= len(models) <= MAX_MODELS:
        raise BadRequest(
            "A list of models has 1 to %(most)s names.", values={"most": MAX_MODELS}, param="allowed_models"
        )
    if not all(0 < len(model) <= MAX_MODEL_LENGTH and model.isprintable() for model in models):
        raise BadRequest(
            "A model's name has 1 to %(most)s printable characters.",
            values={"most": MAX_MODEL_LENGTH},
            param="allowed_models",
        )


def _distinct(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _network(value: str) -> Network:
    try:
        return ip_network(value)
    except ValueError:
        shown = {"network": value[:_MAX_SHOWN]}
    try:
        meant = ip_network(value, strict=False)
    except ValueError:
        raise BadRequest(
            "'%(network)s' is not a network such as 192.0.2.0/24.", values=shown, param="ip_allow"
        ) from None
    raise BadRequest(
        "%(network)s has bits beyond its mask; the network is %(meant)s.",
        values=shown | {"meant": meant},
        param="ip_allow",
    )
