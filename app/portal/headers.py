"""What every page forbids a browser: foreign content, framing, guessing of types, keeping a customer's data.

Answers of the API under /v1 pass untouched. An answer's own headers win, so a page may
be stricter, or name where its forms lead.
"""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_API = ("/v1/", "/webhooks/", "/metrics", "/livez", "/readyz")
_YEAR_S = 31_536_000


def content_policy(form_targets: Sequence[str] = ()) -> str:
    """The Content-Security-Policy of a page: our own files, nothing inline, nobody's frame.

    Args:
        form_targets: Origins to which the answer of one of its forms may redirect;
            browsers hold redirects after a form to ``form-action`` as well.
    """
    targets = " ".join(("'self'", *form_targets))
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        f" form-action {targets}; base-uri 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "content-security-policy": content_policy(),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Pages show a customer's data.
    "cache-control": "no-store",
}
"""Of every answer outside the API that does not say otherwise."""


class SecurityHeaders:
    """Adds ``HEADERS`` to what is shown to people.

    Args:
        app: The layer below.
        is_https: Always reached by TLS: browsers are told to use nothing else for a year.
    """

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self.app = app
        self._headers = HEADERS | ({"strict-transport-security": f"max-age={_YEAR_S}"} if is_https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other ASGI events pass."""
        if scope["type"] != "http" or scope["path"].startswith(_API):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in self._headers.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
            await send(message)

        await self.app(scope, receive, with_headers)
