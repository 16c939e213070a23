"""What a login came from, in a few words out of what the browser says of itself.

A ``User-Agent`` proves nothing; the words are there to tell one's own sessions apart.
"""

import re

# More than one of these names is in most texts: the first that is there is meant.
_BROWSERS = (
    ("Edge", r"Edg(?:e|A|iOS)?/(\d+)"),
    ("Opera", r"OPR/(\d+)"),
    ("Firefox", r"(?:Firefox|FxiOS)/(\d+)"),
    ("Chrome", r"(?:Headless)?(?:Chrome|CriOS)/(\d+)"),
    ("Safari", r"Version/(\d+)\S* .*Safari/"),
)
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("macOS", "Mac OS X"),
    ("Linux", "Linux"),
)
_SHOWN_AS_IT_IS = 60


def device_name(user_agent: str | None) -> str | None:
    """Such as ``Firefox 140, Windows``; of a program that is no known browser the beginning of what it says."""
    if not user_agent:
        return None
    browser = next((f"{name} {found[1]}" for name, form in _BROWSERS if (found := re.search(form, user_agent))), None)
    if browser is None:
        return user_agent[:_SHOWN_AS_IT_IS]
    system = next((name for name, mark in _SYSTEMS if mark in user_agent), None)
    return f"{browser}, {system}" if system else browser
