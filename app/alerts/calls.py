"""One signed call to a customer's address, after Standard Webhooks (standardwebhooks.com).

A customer chooses the address, so it must not reach what only we can: a name is resolved
here, every address of it has to be a public one, and the connection goes to that very
address. Redirects are not followed. Development may call the machine itself.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from standardwebhooks.webhooks import Webhook

from app.errors import NotificationFailed

TIMEOUT_S = 10.0


class Caller:
    """Calls customers' addresses; ``aclose`` it.

    Args:
        is_private_allowed: Whether addresses of this network may be called.
    """

    def __init__(self, *, is_private_allowed: bool = False) -> None:
        self._is_private_allowed = is_private_allowed
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)

    async def call(self, url: str, secret: str, event_id: UUID, event: Mapping[str, Any], now: datetime) -> None:
        """Posts an event; returns once it was taken.

        Args:
            url: Absolute.
            secret: ``whsec_…``.
            event_id: The same each time that it is sent, so that a receiver knows it again.
            event: Becomes the body.
            now: Dates the signature.

        Raises:
            NotificationFailed: No answer of 200 to 299 came.
        """
        body = json.dumps(event, separators=(",", ":"))
        try:
            answer = await self._post(url, _headers(secret, f"evt_{event_id.hex}", now, body), body)
        except (httpx.HTTPError, OSError) as error:
            raise NotificationFailed(f"no answer: {type(error).__name__}") from None
        if not answer.is_success:
            raise NotificationFailed(f"it answered {answer.status_code}")

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def _post(self, url: str, headers: dict[str, str], body: str) -> httpx.Response:
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = await self._resolve(host, parts.port or {"http": 80, "https": 443}[parts.scheme])
        target = httpx.URL(url).copy_with(host=address)
        # The certificate has to be the name's, not the address'.
        extensions = {"sni_hostname": host} if parts.scheme == "https" else {}
        request = self._client.build_request(
            "POST", target, content=body, headers={**headers, "host": parts.netloc}, extensions=extensions
        )
        response = await self._client.send(request, stream=True)
        # What it says is of no interest, and may be endless.
        await response.aclose()
        return response

    async def _resolve(self, host: str, port: int) -> str:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not self._is_private_allowed and not all(ip_address(address).is_global for address in addresses):
            raise NotificationFailed("its address is not a public one")
        return addresses[0]


def _headers(secret: str, message_id: str, now: datetime, body: str) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": "Tollgate-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }
