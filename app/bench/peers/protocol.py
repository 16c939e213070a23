"""How a peer talks to whoever measures it: one JSON object a line, in and out.

The first line of standard input says what to load, each further one is a batch of
prompts; after each comes one line back. What libraries print goes to standard error.
Runs with the peer's own Python, so it needs the standard library alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], list[list[int]]]
Prepare = Callable[[list[list[int]], list[int], dict[str, Any]], Run]


def serve(load: Callable[[dict[str, Any]], Prepare], *, compiles_by_shape: bool = False) -> None:
    """Answer until standard input ends.

    Args:
        load: Takes the first line; gives what takes a batch, prompts and how many
            tokens each wants, and gives what runs it. Only the last is timed.
        compiles_by_shape: it compiles each new shape before it is timed, so that a
            shorter batch to warm up would be compiled in vain.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        prepare = load(json.loads(sys.stdin.readline()))
        _answer(answers, {"ready": True, "compiles_by_shape": compiles_by_shape})
        for line in sys.stdin:
            job = json.loads(line)
            run = prepare(job["prompts"], job["outputs"], job)
            started = time.perf_counter()
            tokens = run()
            _answer(answers, {"seconds": time.perf_counter() - started, "tokens": tokens})


def _answer(answers: Any, body: dict[str, Any]) -> None:  # noqa: ANN401 - a text file
    answers.write(json.dumps(body) + "\n")
    answers.flush()
