"""One signed call to a customer's address, after Standard Webhooks (standardwebhooks.com).

A customer chooses the address, so it must not reach what only we can: a name is resolved
here, every address of it has to be a public one, and the connection goes to that very
address. Redirects are not followed. Development may call the machine itself.

Nor must it keep us busy: a call has a few seconds altogether, however slowly it is
answered, and names are looked up by threads of their own. A connection serves one call,
since it was opened to one name.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache, partial
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from standardwebhooks.webhooks import Webhook

from app.errors import NotificationFailed

TIMEOUT_S = 10.0
"""Of a call: looking up, connecting and being answered."""
NUM_LOOKUPS = 8
"""Names that are looked up at once."""
# RFC 6052: the addresses that stand for those of IPv4 in a network that has IPv6 only.
_TRANSLATED = IPv6Network("64:ff9b::/96")
# Others in which one of IPv4 may be hidden (RFC 4291, 8215, 3056), and the old private ones (RFC 3879).
_HIDING = tuple(IPv6Network(one) for one in ("::/96", "64:ff9b:1::/48", "2002::/16", "fec0::/10"))


class Caller:
    """Calls customers' addresses; ``aclose`` it.

    Args:
        is_private_allowed: Whether addresses of this network may be called.
    """

    def __init__(self, *, is_private_allowed: bool = False) -> None:
        self._is_private_allowed = is_private_allowed
        self._transport = httpx.AsyncHTTPTransport(
            verify=_authorities(), limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._lookups = ThreadPoolExecutor(NUM_LOOKUPS, thread_name_prefix="webhook-lookup")

    async def call(
        self, url: str, secrets: Sequence[str], event_id: UUID, event: Mapping[str, Any], now: datetime
    ) -> None:
        """Posts an event; returns once it was taken.

        Args:
            url: Absolute.
            secrets: ``whsec_…``; it is signed with each.
            event_id: The same each time that it is sent, so that a receiver knows it again.
            event: Becomes the body.
            now: Dates the signature; receivers refuse one of some minutes ago.

        Raises:
            NotificationFailed: No answer of 200 to 299 came in ``TIMEOUT_S``.
        """
        body = json.dumps(event, separators=(",", ":"))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._post(url, _headers(secrets, f"evt_{event_id.hex}", now, body), body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise NotificationFailed(f"no answer: {type(error).__name__}") from None
        if not answer.is_success:
            # Standard Webhooks: whoever answers 410 wants no more of it.
            is_final = answer.status_code == HTTPStatus.GONE
            raise NotificationFailed(f"it answered {answer.status_code}", is_final=is_final)

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._transport.aclose()
        # Whoever still looks up a name does so for nobody.
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _post(self, url: str, headers: dict[str, str], body: str) -> httpx.Response:
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = await self._resolve(host, parts.port or {"http": 80, "https": 443}[parts.scheme])
        target = httpx.URL(url).copy_with(host=address)
        extensions: dict[str, Any] = {"timeout": httpx.Timeout(TIMEOUT_S).as_dict()}
        if parts.scheme == "https":
            # The certificate has to be the name's, not the address'.
            extensions["sni_hostname"] = host
        request = httpx.Request(
            "POST", target, content=body, headers={**headers, "host": parts.netloc}, extensions=extensions
        )
        response = await self._transport.handle_async_request(request)
        # What it says is of no interest, and may be endless.
        await response.aclose()
        return response

    async def _resolve(self, host: str, port: int) -> str:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        addresses = [str(entry[4][0]) for entry in found]
        if not self._is_private_allowed and not all(is_public(address) for address in addresses):
            raise NotificationFailed("its address is not a public one")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one that everybody reaches, and that can only be what it seems."""
    found = ip_address(address)
    if found in _TRANSLATED:
        found = IPv4Address(int(found) & 0xFFFF_FFFF)
    return found.is_global and not found.is_multicast and not any(found in network for network in _HIDING)


@cache
def _authorities() -> ssl.SSLContext:
    """Whom certificates are believed; to read them takes 20 ms, so a process does it once."""
    return httpx.create_ssl_context(trust_env=False)


def _headers(secrets: Sequence[str], message_id: str, now: datetime, body: str) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": "Tollgate-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, now, body) for secret in secrets),
    }
