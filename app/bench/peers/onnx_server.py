"""ONNX Runtime behind FastAPI and uvicorn: the server that one writes for a classifier in an afternoon, with care.

First line: {"model": directory, "threads": number, "batching": "single" or "dynamic"};
once it listens it prints {"url": address}. POST /classifications {"input": text} gives
the best label and the scores by label.

"single": each request is a run of its own, in a pool of threads. "dynamic": what came
while the session was busy runs next, together, at most `MAX_BATCH` padded to the longest;
no timer, so that a lone request does not wait.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onnx_bert import build

MAX_BATCH = 32

Scores = list[list[float]]
Ask = Callable[[str], Awaitable[list[float]]]


class Model:
    """Tokenizer and session."""

    def __init__(self, directory: Path, threads: int) -> None:
        import numpy as np
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._np = np
        self._session = onnxruntime.InferenceSession(build(directory), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_padding()
        by_id = json.loads((directory / "config.json").read_text())["id2label"]
        self.labels = [by_id[number] for number in sorted(by_id, key=int)]

    def run(self, texts: list[str]) -> Scores:
        """A row for each text."""
        encodings = self._tokenizer.encode_batch(texts)
        feed = {
            "input_ids": self._np.array([each.ids for each in encodings], self._np.int32),
            "attention_mask": self._np.array([each.attention_mask for each in encodings], self._np.int32),
        }
        scores: Scores = self._session.run(None, feed)[0].tolist()
        return scores


def single(model: Model, threads: int) -> Ask:
    """A run for each text."""
    pool = ThreadPoolExecutor(threads)

    async def ask(text: str) -> list[float]:
        (row,) = await asyncio.get_running_loop().run_in_executor(pool, model.run, [text])
        return row

    return ask


def dynamic(model: Model, _: int) -> Ask:
    """Runs of whatever waits."""
    pool = ThreadPoolExecutor(1)
    waiting: list[tuple[str, asyncio.Future[list[float]]]] = []
    tasks: set[asyncio.Task[None]] = set()

    async def work() -> None:
        while waiting:
            batch, waiting[:MAX_BATCH] = waiting[:MAX_BATCH], []
            try:
                rows = await asyncio.get_running_loop().run_in_executor(pool, model.run, [text for text, _ in batch])
                for (_text, future), row in zip(batch, rows, strict=True):
                    if not future.done():
                        future.set_result(row)
            finally:  # after a fault nobody may wait
                for _text, future in batch:
                    future.cancel()
        tasks.clear()  # here and not in a callback, before which a text could come that nobody takes

    async def ask(text: str) -> list[float]:
        future = asyncio.get_running_loop().create_future()
        waiting.append((text, future))
        if not tasks:
            tasks.add(asyncio.create_task(work()))
        row: list[float] = await future
        return row

    return ask


def application(model: Model, ask: Ask) -> Any:  # noqa: ANN401 - FastAPI, which mypy finds or not
    """One route."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel

    class Body(BaseModel):
        input: str

    app = FastAPI()

    @app.post("/classifications")
    async def classify(body: Body) -> JSONResponse:
        row = await ask(body.input)
        best = max(range(len(row)), key=row.__getitem__)
        return JSONResponse({"label": model.labels[best], "scores": dict(zip(model.labels, row, strict=True))})

    return app


def main() -> None:
    """Serve until the process is ended."""
    import uvicorn

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = json.loads(sys.stdin.readline())
    model = Model(Path(setup["model"]), setup["threads"])
    ask = {"single": single, "dynamic": dynamic}[setup["batching"]](model, setup["threads"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    answers.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    answers.flush()
    config = uvicorn.Config(application(model, ask), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
