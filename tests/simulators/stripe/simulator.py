"""The simulator behind a socket, the real client in front of it, and an endpoint that its events go to."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import stripe
import uvicorn

from simulators.stripe import webhook_endpoints
from simulators.stripe.app import create_app
from simulators.stripe.world import World
from tests.serving import Server

SECRET = "whsec_test"
API_KEY = "sk_test_simulated"


class Receiver:
    """A webhook endpoint: keeps what it got, and answers with the statuses it is told, then with 200."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, str]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((body, self.headers["Stripe-Signature"]))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body, _ in self.received]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Simulator:
    """A running simulator."""

    def __init__(self, url: str, world: World, receiver: Receiver) -> None:
        self.url = url
        self.world = world
        self.receiver = receiver
        self._connections: list[stripe.HTTPXClient] = []
        # Untyped, because tests pass parameters that the types refuse, and know which of hundreds of events they got.
        self.client: Any = self.new_client()
        self._http = httpx.Client(base_url=url)

    @property
    def v1(self) -> Any:
        """The services of the client under `/v1`."""
        return self.client.v1

    def new_client(self, retries: int = 0) -> stripe.StripeClient:
        connections = stripe.HTTPXClient(allow_sync_methods=True)
        self._connections.append(connections)
        return stripe.StripeClient(
            API_KEY,
            base_addresses={"api": self.url, "meter_events": self.url},
            http_client=connections,
            max_network_retries=retries,
        )

    def control(self, verb: str, path: str = "", /, **body: Any) -> dict[str, Any]:
        """A call of the simulator's own controls; fails on an error."""
        answer = self._http.request(verb, f"/_control/api{path}", json=body)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def hazard(self, name: str, **settings: Any) -> None:
        self.control("POST", "/hazards", name=name, **settings)

    def strikes(self, name: str) -> int:
        return next(int(found["strikes"]) for found in self.control("GET", "/hazards")["on"] if found["name"] == name)

    def flush(self) -> dict[str, Any]:
        """Have everything delivered that waits."""
        return self.control("POST", "/flush")

    def forward(self, seconds: int) -> None:
        self.control("POST", "/clock", seconds=seconds)

    def raw(self, verb: str, path: str, body: str = "", **headers: str) -> httpx.Response:
        """A call without the client's help; header names with underscores."""
        given = {"Authorization": f"Bearer {API_KEY}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self._http.request(verb, path, content=body, headers=given)

    def close(self) -> None:
        self._http.close()
        for connections in self._connections:
            connections.close()  # type: ignore[no-untyped-call]


@contextmanager
def running(world: World | None = None, **options: Any) -> Iterator[Simulator]:
    """A simulator that runs while it is entered; its events go to `receiver`."""
    world = world or World()
    receiver = Receiver()
    webhook_endpoints.start_with(world, receiver.url, SECRET)
    listener = socket.create_server(("127.0.0.1", 0))
    world.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(uvicorn.Config(create_app(world, **options), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    simulator = Simulator(world.base_url, world, receiver)
    try:
        yield simulator
    finally:
        simulator.close()
        server.end()
        thread.join()
        receiver.close()
