"""Everything that the portal shows to be copied runs as it is printed, whatever text is in it."""

import asyncio
import html
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright._impl._driver import compute_driver_executable

from app.portal.page import STATIC_DIR
from app.rpc import engine_pb2 as pb
from tests.api.world import BOS, World
from tests.factories import make_key
from tests.portal.visiting import Browser

AWKWARD = 'It\'s "quoted", $HOME, `id`, ${x}, %s, \\n and \\,\nsecond line\t你好 \u2028é</script>'
GENERATION = {"model": "bytes", "max_tokens": 8, "temperature": 0.8, "top_p": 1, "seed": -3}
REQUESTS = {
    "/completions": GENERATION | {"prompt": AWKWARD},
    "/chat/completions": GENERATION | {"messages": [{"role": "user", "content": AWKWARD}]},
    "/classifications": {"model": "labels", "input": AWKWARD, "top_k": 2},
}
# In place of the npm package: says what it was asked.
OPENAI = """
export default class {
  constructor(options) { this.options = options; }
  completions = { create: (body) => this.post("/completions", { body }) };
  chat = { completions: { create: (body) => this.post("/chat/completions", { body }) } };
  async post(path, { body }) {
    console.log(JSON.stringify({ ...this.options, path, body }));
    return { choices: [{ text: "", message: { content: "" } }] };
  }
}
"""


@pytest.fixture
def node() -> str:
    """Playwright's own."""
    return str(compute_driver_executable()[0])


async def run(arguments: Sequence[str], key: str = "none") -> str:
    """What a program prints that finds an API key in its environment."""
    environment = {"PATH": os.environ["PATH"], "TOLLGATE_API_KEY": key}  # noqa: TID251 - the shell's own
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    told, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    return told.decode()


async def in_a_shell(command: str, key: str) -> Any:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    answer = json.loads(await run(["bash", "-c", command], key))
    assert "error" not in answer
    return answer


async def test_the_quick_start_runs_as_it_is_printed(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme)
    snippets = re.findall(r"<code>(export|curl|import)(.*?)</code>", (await owner.get("/guide")).text, re.DOTALL)
    _, completion, program, classification, usage = (html.unescape(start + rest) for start, rest in snippets)
    assert (await in_a_shell(completion, key))["choices"][0]["text"] == "Hello"
    assert await run([sys.executable, "-c", program], key) == "Hello"
    assert len((await in_a_shell(classification, key))["data"][0]["scores"]) == 3
    (row, *_) = await world.usage_rows()
    assert (await in_a_shell(usage.replace("REQUEST_ID", str(row.id)), key))["output_tokens"] == 5


async def test_the_first_steps_run_as_they_are_printed(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme)
    (command,) = re.findall(r"<code>(curl.*?)</code>", (await owner.get("/overview")).text, re.DOTALL)
    assert (await in_a_shell(html.unescape(command), key))["choices"][0]["text"] == "Hello"


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_request_of_the_playground_as_code_asks_the_same(
    world: World, node: str, tmp_path: Path, path: str
) -> None:
    classified: list[str] = []

    async def classify(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        classified.extend(bytes(token for token in text.ids if token != BOS).decode() for text in request.inputs)
        return pb.ClassifyResponse(results=[pb.LabelScores(scores=[0.25, 0.5, 0.25])])

    world.engine.classify = classify
    code = await written(node, tmp_path, f"{world.url}/v1", path)
    await in_a_shell(code["curl"], world.key)
    await run([sys.executable, "-c", code["python"]], world.key)
    asked = classified or [
        bytes(token for token in request.prompt_tokens if token != BOS).decode() for request in world.engine.requests
    ]
    assert len(asked) == 2
    assert all(AWKWARD in text for text in asked)
    (tmp_path / "code.mjs").write_text(code["javascript"])
    told = await run([node, str(tmp_path / "code.mjs")], world.key)
    assert json.loads(told.partition("\n")[0]) == {
        "baseURL": f"{world.url}/v1",
        "apiKey": world.key,
        "path": path,
        "body": REQUESTS[path],
    }


async def written(node: str, folder: Path, base_url: str, path: str) -> dict[str, str]:
    """The request as the page's own module writes it."""
    shutil.copy(STATIC_DIR / "request-code.js", folder / "request-code.mjs")
    package = folder / "node_modules" / "openai"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "openai", "type": "module", "main": "index.js"}')
    (package / "index.js").write_text(OPENAI)
    arguments = ", ".join(json.dumps(one) for one in (base_url, path, REQUESTS[path]))
    (folder / "write.mjs").write_text(
        'import { curl, python, javascript } from "./request-code.mjs";\n'
        f"const write = (one) => one({arguments});\n"
        "console.log(JSON.stringify({ curl: write(curl), python: write(python), javascript: write(javascript) }));\n"
    )
    code: dict[str, str] = json.loads(await run([node, str(folder / "write.mjs")]))
    return code
