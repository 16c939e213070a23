"""`tollgate bench`: how fast a running server, the engine alone, and others on the same weights are."""

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure: a running server, the engine alone, others beside it.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn.")]


@app.command(epilog="Example: tollgate bench serve --api-key KEY --model shakespeare --concurrency 8 --requests 64")
def serve(
    model: Annotated[str, typer.Option(help="A generation model of the server.", show_default=False)],
    base_url: Annotated[str, typer.Option(help="Any OpenAI-compatible server.")] = "http://127.0.0.1:8000/v1",
    api_key: Annotated[str, typer.Option(help="Empty: none is sent.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Callers, each with one request at a time.")] = 1,
    rate: Annotated[float | None, typer.Option(help="Requests per second instead of callers; Poisson.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="How many; default 32 unless --duration.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds after which no request is started.")] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before, together; not counted.")] = 1,
    input_len: Annotated[str, typer.Option(help="Prompt tokens: 128, or 16:512 for a range.")] = "128",
    output_len: Annotated[str, typer.Option(help="Answer tokens at most, as --input-len.")] = "128",
    vocab: Annotated[int, typer.Option(min=2, help="Prompts are token ids below this number.")] = 256,
    shared_prefix: Annotated[int, typer.Option(min=0, help="First tokens that all prompts have in common.")] = 0,
    stream: Annotated[bool, typer.Option(help="Without a stream only whole answers are timed.")] = True,
    min_tokens: Annotated[bool, typer.Option("--min-tokens", help="Ask for the whole length by min_tokens.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Ask for it by ignore_eos; vLLM knows it.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Load a running server over HTTP and report latencies and throughput.

    Lengths are exact, because prompts are token ids; answers are greedy and may end
    early where the model samples an end token. Exits 1 if any request failed.
    """
    import asyncio

    from app.bench import load as loads
    from app.bench.http import HttpClient
    from app.bench.serve_report import ServeReport
    from app.bench.workload import Lengths

    load = loads.Load(
        model=model,
        input_len=Lengths.parse(input_len),
        output_len=Lengths.parse(output_len),
        concurrency=concurrency,
        rate=rate,
        num_requests=32 if requests is None and duration is None else requests,
        duration_s=duration,
        num_warm_up=warm_up,
        seed=seed,
        vocab_size=vocab,
        shared_prefix=shared_prefix,
        is_streamed=stream,
        fills_output=min_tokens,
        options=(("ignore_eos", True),) if ignore_eos else (),
    )

    async def measure() -> loads.Measured:
        client = HttpClient(base_url, api_key)
        try:
            return await loads.run(client, load)
        finally:
            await client.aclose()

    report = ServeReport.of(asyncio.run(measure()))
    print(json.dumps(report.as_json()) if as_json else report.as_text())
    if report.errors:
        raise typer.Exit(1)
