"""Runs the simulator: `python -m simulators.stripe --port 0 --webhook-url http://127.0.0.1:8000/webhooks/stripe`.

Once it listens it prints one line of JSON with its address, and nothing more: `{"url": "http://127.0.0.1:40123"}`.
"""

import json
import socket
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import uvicorn

from simulators.stripe import state, webhook_endpoints
from simulators.stripe.app import create_app
from simulators.stripe.world import World


def main(arguments: list[str] | None = None) -> None:
    """Serve until stopped by a signal."""
    options = _parse(arguments)
    world = World()
    file = Path(options.state) if options.state else None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    host, port = listener.getsockname()
    world.base_url = options.public_url or f"http://{host}:{port}"
    if file is not None:
        _load(world, file)
    if options.webhook_url:
        _add_endpoints(world, options)
    # A lost answer is an error to the server, and its purpose here.
    config = uvicorn.Config(create_app(world, file), log_level="critical", access_log=False, lifespan="on")
    # Whoever reads the address may call at once: until the server accepts, calls wait.
    listener.listen()
    sys.stdout.write(json.dumps({"url": f"http://{host}:{port}"}) + "\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


def _load(world: World, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        state.load(world, file)
    except state.DamagedStateError as error:
        sys.exit(str(error))


def _add_endpoints(world: World, options: Namespace) -> None:
    if not options.webhook_secret:
        sys.exit("--webhook-url needs --webhook-secret: an endpoint checks who calls it")
    webhook_endpoints.start_with(world, options.webhook_url, options.webhook_secret)


def _parse(arguments: list[str] | None) -> Namespace:
    parser = ArgumentParser(prog="python -m simulators.stripe", description="A simulated Stripe; no money moves.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=0, help="port to listen at; 0 takes a free one")
    parser.add_argument("--public-url", help="address that browsers reach it at, if another one")
    parser.add_argument("--webhook-url", help="where every event is posted, thin ones too")
    parser.add_argument("--webhook-secret", help="what they are signed with: whsec_...")
    parser.add_argument("--state", help="file that keeps the account over a restart")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
