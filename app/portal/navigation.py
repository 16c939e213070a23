"""The pages of the portal, in the order in which its menu names them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the menu.

    Attributes:
        path: Of the page; what begins with it belongs to it.
        label: In English; the menu translates it.
        icon: Of ``_icons.html``.
        permission: Who lacks it does not see the line.
    """

    path: str
    label: str
    icon: str
    permission: str


def _(message: str) -> str:
    """Marks a text for the catalogues."""
    return message


ENTRIES = (
    Entry("/overview", _("Overview"), "overview", "overview.read"),
    Entry("/keys", _("API keys"), "key", "keys.read"),
    Entry("/usage", _("Usage"), "usage", "usage.read"),
    Entry("/limits", _("Limits"), "limits", "limits.read"),
    Entry("/settings", _("Settings"), "settings", "settings.read"),
)
