"""The form of a key: what was typed in, and what it means."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from starlette.datastructures import FormData

from app.auth import DEFAULT_SCOPES
from app.billing.amounts import written
from app.errors import BadRequest
from app.key_terms import Terms, parse_networks
from app.portal.forms import text_of, texts_of, usd_of, whole_of

_MINUTE = "%Y-%m-%dT%H:%M"


@dataclass(frozen=True, slots=True)
class KeyFields:
    """The fields as a person sees them; names as in ``Terms``, empty: no limit."""

    name: str = ""
    scopes: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = ()
    ip_allow: str = ""
    requests_per_minute: str = ""
    tokens_per_minute: str = ""
    monthly_cap: str = ""
    expires_at: str = ""

    @classmethod
    def of(cls, terms: Terms) -> "KeyFields":
        """Those of a key that exists."""
        return cls(
            name=terms.name,
            scopes=terms.scopes,
            allowed_models=terms.allowed_models or (),
            ip_allow="\n".join(str(network) for network in terms.ip_allow or ()),
            requests_per_minute="" if terms.requests_per_minute is None else str(terms.requests_per_minute),
            tokens_per_minute="" if terms.tokens_per_minute is None else str(terms.tokens_per_minute),
            monthly_cap="" if terms.monthly_cap is None else written(terms.monthly_cap),
            expires_at="" if terms.expires_at is None else terms.expires_at.astimezone(UTC).strftime(_MINUTE),
        )

    @property
    def has_limits(self) -> bool:
        """Whether anything is limited that the form folds away."""
        limits = (self.allowed_models, self.ip_allow, self.requests_per_minute, self.tokens_per_minute)
        return any((*limits, self.monthly_cap, self.expires_at))


DEFAULTS = KeyFields(scopes=DEFAULT_SCOPES)


def fields_of(form: FormData) -> KeyFields:
    """What was typed in, as it was."""
    return KeyFields(
        name=text_of(form, "name"),
        scopes=texts_of(form, "scopes"),
        allowed_models=texts_of(form, "allowed_models"),
        ip_allow=text_of(form, "ip_allow"),
        requests_per_minute=text_of(form, "requests_per_minute"),
        tokens_per_minute=text_of(form, "tokens_per_minute"),
        monthly_cap=text_of(form, "monthly_cap"),
        expires_at=text_of(form, "expires_at"),
    )


def read_terms(form: FormData, before: Terms) -> Terms:
    """The terms that a form asks for; ``app.keys`` judges whether a key can have them.

    Args:
        form: The fields.
        before: Those of the key so far; an end that was left as it was shown is not moved by its seconds.

    Raises:
        BadRequest: A field cannot be read; ``param`` names it.
    """
    fields = fields_of(form)
    cap = usd_of(form, "monthly_cap")
    networks = fields.ip_allow.replace(",", " ").split()
    return replace(
        before,
        name=fields.name,
        scopes=fields.scopes,
        allowed_models=fields.allowed_models or None,
        ip_allow=parse_networks(networks) if networks else None,
        requests_per_minute=whole_of(form, "requests_per_minute"),
        tokens_per_minute=whole_of(form, "tokens_per_minute"),
        monthly_cap=cap,
        expires_at=_end(fields.expires_at, before),
    )


def _end(text: str, before: Terms) -> datetime | None:
    if not text:
        return None
    if text == KeyFields.of(before).expires_at:
        return before.expires_at
    try:
        return datetime.strptime(text, _MINUTE).replace(tzinfo=UTC)
    except ValueError:
        raise BadRequest("Please enter a date and a time.", param="expires_at") from None
