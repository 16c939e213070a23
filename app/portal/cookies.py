"""Cookies that no other host can plant: in production ours begin with ``__Host-``.

A browser takes such a cookie only over TLS, for this host alone and for every path (RFC 6265bis
section 4.1.3.2), so neither a careless host of the same domain nor somebody on the line can
put a session or a form of theirs into it. One layer adds the prefix on the way out and takes it
off on the way in; what has our names without it is dropped.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OURS = b"tollgate_"
_PREFIX = b"__Host-"


class HostCookies:
    """Gives our cookies their prefix, and our pages cookies without it.

    Args:
        app: The layer below.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other ASGI events pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, _given(value) if name.lower() == b"set-cookie" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        headers = [(name, _taken(value) if name == b"cookie" else value) for name, value in scope["headers"]]
        await self.app({**scope, "headers": headers}, receive, with_prefix)


def _given(cookie: bytes) -> bytes:
    if not cookie.startswith(_OURS):
        return cookie
    # Browsers refuse one that is not marked, also one that ends another.
    return _PREFIX + cookie + (b"" if b"; secure" in cookie.lower() else b"; Secure")


def _taken(header: bytes) -> bytes:
    pairs = [pair.strip() for pair in header.split(b";")]
    return b"; ".join(pair.removeprefix(_PREFIX) for pair in pairs if not pair.startswith(_OURS))
