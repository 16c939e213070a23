"""`tollgate bench`: how fast a server, the engine and others are, what the way through costs, what a load leaves."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.context import import_tensorflow, model_directory

app = typer.Typer(
    no_args_is_help=True, help="Measure: a running server, the engine alone, others beside it, a long load."
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn.")]
Layers = Annotated[int, typer.Option(min=1, help="Of the random model.")]
Width = Annotated[int, typer.Option(min=8, help="Of the random model.")]
FeedForward = Annotated[int, typer.Option(min=8, help="Inner width of its feed-forward layers.")]
Heads = Annotated[int, typer.Option(min=1, help="Its query heads.")]
KeyHeads = Annotated[int, typer.Option(min=1, help="Its key and value heads.")]
Vocab = Annotated[int, typer.Option(min=2, help="Its tokens.")]
Context = Annotated[int, typer.Option(min=2, help="Its longest prompt and answer together.")]


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


@app.command(epilog="Example: tollgate bench engine --layers 12 --width 768 --batch 1 --batch 8")
def engine(
    model: Annotated[
        str | None, typer.Option(help="A model below MODELS_DIR; without: random weights of the sizes below.")
    ] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Prompt lengths; default 16, 128 and 512.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows of a decode step; default 1, 8, 16 and 32.")] = None,
    at: Annotated[list[int] | None, typer.Option(help="Context of a decode step, tokens; default 128.")] = None,
    slots: Annotated[int, typer.Option(min=0, help="Of the engine; 0: as many as the largest batch.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of which the quickest counts.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts of which the quickest counts.")] = 3,
    weight_bytes: Annotated[float, typer.Option(help="Of a weight on the device: 4 float32, 1 int8.")] = 4.0,
    layers: Layers = 12,
    width: Width = 768,
    feed_forward: FeedForward = 2048,
    heads: Heads = 12,
    key_heads: KeyHeads = 12,
    vocab: Vocab = 32_000,
    context: Context = 1024,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the engine alone, in this process: prefill by length, decode by batch and context.

    Beside each figure stands its share of what the device allows, which is measured
    on the spot. Uses the GPU where TensorFlow finds one.
    """
    import tempfile

    directory = None if model is None else model_directory(model)
    with tempfile.TemporaryDirectory(prefix="tollgate-engine-") as folder:
        from app.engine.device import start_tensorflow

        start_tensorflow(Path(folder) / "xla-cache")
        from app.bench import engine_bench
        from app.bench.random_model import Sizes, write_random_model

        if directory is None:
            directory = Path(folder) / "random"
            write_random_model(directory, Sizes(layers, width, feed_forward, heads, key_heads, vocab, context), seed)
        plan = engine_bench.Plan(
            model=directory,
            data_dir=Path(folder),
            prompts=tuple(prompt or (16, 128, 512)),
            batches=tuple(batch or (1, 8, 16, 32)),
            contexts=tuple(at or (128,)),
            num_steps=steps,
            rounds=rounds,
            num_slots=slots,
            weight_bytes=weight_bytes,
            seed=seed,
        )
        report = engine_bench.measure(plan)
    print(json.dumps(report.as_json()) if as_json else report.as_text())


@app.command(epilog="Example: tollgate bench peers --python ~/peers/bin/python --quick")
def peers(
    python: Annotated[
        Path | None, typer.Option(help="Python of the environment that the peers are installed in; without: no peer.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="One of transformers, llama.cpp, keras-hub, 'llama.cpp q8_0', 'onnx single', 'onnx dynamic'"
            " (default all of these), 'transformers static', 'llama.cpp plain'."
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="One of agreement, throughput, mixed, first-token, classification; default all."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model and short answers: does everything work?")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Keep each figure here as it is made; the same command goes on from it.")
    ] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests at once; default 1, 8 and 32.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of which the quickest counts.")] = 3,
    case_seconds: Annotated[float, typer.Option(min=0, help="No further round of a case begins after these.")] = 60.0,
    slots: Annotated[int, typer.Option(min=1, help="Of our engine.")] = 32,
    mixed_batch: Annotated[int, typer.Option(min=1, help="Rows of a static batch.")] = 32,
    int8: Annotated[str | None, typer.Option(help="NAME=VALUE that makes our engine use int8.")] = None,
    layers: Layers = 12,
    width: Width = 768,
    feed_forward: FeedForward = 2048,
    heads: Heads = 12,
    key_heads: KeyHeads = 12,
    vocab: Vocab = 32_000,
    context: Context = 1024,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare a whole installation with other ways to run the same weights.

    Ours is asked over HTTP with key, admission and metering on. Sides take turns, the
    quickest round of each counts, and targets stand beside the ratios. Exits 1 if a
    peer failed; the others are measured all the same.
    """
    import_tensorflow()
    from app.bench import compare
    from app.bench.finding import Record, report
    from app.bench.random_model import Sizes

    plan = compare.Plan(
        python=python,
        peers=tuple(peer or compare.PEERS),
        scenarios=tuple(scenario or compare.SCENARIOS),
        sizes=Sizes(layers, width, feed_forward, heads, key_heads, vocab, context),
        concurrencies=tuple(concurrency or (1, 8, 32)),
        rounds=rounds,
        case_seconds=case_seconds,
        num_slots=slots,
        mixed_batch=mixed_batch,
        int8=int8,
        seed=seed,
    )
    if quick:
        plan = compare.quick(plan)
    record = Record(out, plan.settings)
    compare.compare(plan, record)
    findings = [finding.as_json() for finding in record.findings]
    print(json.dumps(findings) if as_json else report(record.findings))
    if any(finding.failure for finding in record.findings):
        raise typer.Exit(1)


@app.command(epilog="Example: tollgate bench gateway --python ~/litellm/bin/python")
def gateway(
    python: Annotated[
        Path | None, typer.Option(help="Python of the environment that LiteLLM is installed in; without: ours alone.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Of each kind, for processor time.")] = 300,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each load.")] = 6.0,
    callers: Annotated[int, typer.Option(min=1, help="At once, for the most requests a second.")] = 16,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what the API itself costs a request, beside the LiteLLM proxy without a database.

    Ours has key, admission and ledger on, in front of an engine that computes nothing.
    Targets stand beside the figures. Exits 1 if LiteLLM failed.
    """
    import_tensorflow()
    from app.bench import gateway as gateways
    from app.bench.finding import report

    findings = gateways.gateway(gateways.Plan(python, rounds, requests, seconds, callers, seed))
    print(json.dumps([finding.as_json() for finding in findings]) if as_json else report(findings))
    if any(finding.failure for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: tollgate bench soak --minutes 2")
def soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="Of load.")] = 20.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers, each with one request at a time.")] = 32,
    models: Annotated[
        Path | None, typer.Option(help="Folder of what is served; default MODELS_DIR.", show_default=False)
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="A small decoder and a BERT-mini of random weights instead.")
    ] = False,
    slots: Annotated[int, typer.Option(min=1, help="Of the engine, for each generation model.")] = 16,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Load an installation of its own with everything that customers do, and look for what is left.

    Streams, whole answers, chats, classifications, callers that leave, deadlines, wrong
    requests. Exits 1 unless every slot is free again, nothing was compiled, memory is
    level and the ledger is what the callers counted.
    """
    import tempfile

    from app.bench import soak as soaking
    from app.cli.context import settings_for_command

    with tempfile.TemporaryDirectory(prefix="tollgate-soak-") as folder:
        models_dir = models or settings_for_command(log_level="warning").models_dir
        if random:
            import_tensorflow()
            from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model

            models_dir = Path(folder)
            models_dir.chmod(0o711)
            write_random_model(models_dir / "writer", Sizes(4, 256, 768, 4, 4, 4096, 512), seed)
            write_random_classifier(models_dir / "reader", TextSizes(), seed)
        plan = soaking.Plan(models_dir, minutes * 60, concurrency, slots, seed)
        report = soaking.soak(plan)
    print(json.dumps(report.as_json()) if as_json else report.as_text())
    if report.problems:
        raise typer.Exit(1)
