"""The pages of the portal, in the order in which its menu names them."""

from dataclasses import dataclass

from app.accounts.permissions import allows


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the menu.

    Attributes:
        path: Of the page; what begins with it belongs to it.
        label: In English; the menu translates it.
        icon: Of ``_icons.html``.
        permission: Who lacks it does not see the line; None: everybody does.
    """

    path: str
    label: str
    icon: str
    permission: str | None

    def is_for(self, role: str) -> bool:
        """Whether people of this role see it."""
        return self.permission is None or allows(role, self.permission)


def _(message: str) -> str:
    """Marks a text for the catalogues."""
    return message


ENTRIES = (
    Entry("/overview", _("Overview"), "overview", "overview.read"),
    Entry("/keys", _("API keys"), "key", "keys.read"),
    Entry("/usage", _("Usage"), "usage", "usage.read"),
    Entry("/playground", _("Playground"), "play", "playground.use"),
    Entry("/billing", _("Plan and billing"), "billing", "billing.read"),
    Entry("/limits", _("Limits"), "limits", "limits.read"),
    Entry("/alerts", _("Alerts"), "alert", "limits.read"),
    Entry("/members", _("Members"), "members", "members.read"),
    Entry("/audit", _("Audit log"), "audit", "audit.read"),
    Entry("/data", _("Data"), "data", "settings.read"),
    Entry("/settings", _("Settings"), "settings", None),
)
