"""``tollgate up`` and the roles it is made of."""

from typing import Annotated

import typer

from app.cli.context import settings_for_command

Host = Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).", show_default=False)]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port to listen on (default: 8000); 0 picks one.", show_default=False),
]
Stub = Annotated[
    bool,
    typer.Option(
        "--stub", help="Answer by simple arithmetic instead of the models' weights: quick, and needs no TensorFlow."
    ),
]
StepMs = Annotated[float, typer.Option(min=0.0, help="With --stub: milliseconds of each step.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Processes that answer HTTP.")]


def up(
    host: Host = None,
    port: Port = None,
    workers: Workers = 1,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show each role's log, not only warnings.")] = False,
    stub: Stub = False,
    step_ms: StepMs = 0.0,
) -> None:
    """Run everything on this machine: database, engine, API and worker.

    The first run creates an organisation, a login and a key, and shows them once.
    Everything is kept in TOLLGATE_DATA_DIR (./.tollgate). Ctrl-C stops all of it.
    """
    from app import up as whole

    settings = settings_for_command(host=host, port=port)
    whole.run(settings, workers, verbose=verbose, stub=stub, step_ms=step_ms)


def api(
    host: Host = None,
    port: Port = None,
    workers: Workers = 1,
    fd: Annotated[int | None, typer.Option(hidden=True, help="An inherited socket that listens already.")] = None,
) -> None:
    """Answer HTTP: the API and the portal."""
    from app.main import serve

    serve(settings_for_command(host=host, port=port), workers, fd)


def engine(stub: Stub = False, step_ms: StepMs = 0.0) -> None:
    """Run the models of MODELS_DIR behind gRPC."""
    from app.up import require_tensorflow

    if not stub:
        require_tensorflow()
    from app.engine.command import serve

    serve(settings_for_command(), stub=stub, step_ms=step_ms)


def worker() -> None:
    """Run the periodic jobs: partitions ahead, expired logins, last use of keys."""
    from app.worker import run

    run(settings_for_command())
