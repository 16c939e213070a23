"""LiteLLM's upstream in the place of the proxy as well; its setup says how it misbehaves."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2] / "app" / "bench" / "peers"))
from litellm_proxy import Upstream


async def main() -> None:
    setup = json.loads(sys.stdin.readline())
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(Upstream("m", 128), lifespan="off", log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    upstream = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    url = "http://127.0.0.1:1/v1" if setup.get("is_gone") else upstream
    sys.stdout.write(json.dumps({"url": url, "upstream": upstream, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    await serving


asyncio.run(main())
