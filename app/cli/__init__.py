"""The ``tollgate`` command.

Each command has an example in its help and imports what is heavy (TensorFlow,
SQLAlchemy, FastAPI) only when it runs. Exit codes: 0 done, 1 failed, 2 wrong usage;
an expected failure is one line on standard error.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from app.cli import bench, billing, db, health, keys, models, orgs, people, serve, training
from app.errors import TollgateError

app = typer.Typer(
    name="tollgate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, serve, meter and bill text models behind an OpenAI-compatible API.",
)
app.command("up", epilog="Example: tollgate up --port 9000")(serve.up)
app.command("api", epilog="Example: tollgate api --host 0.0.0.0 --workers 2")(serve.api)
app.command("engine", epilog="Example: tollgate engine")(serve.engine)
app.command("worker", epilog="Example: tollgate worker")(serve.worker)
app.command("evaluate", epilog="Example: tollgate evaluate shakespeare --data plays.txt")(training.evaluate)
app.add_typer(training.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(orgs.app, name="orgs")
app.add_typer(people.app, name="people")
app.add_typer(keys.app, name="keys")
app.add_typer(billing.app, name="billing")
app.add_typer(db.app, name="db")
app.add_typer(health.app, name="health")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command line; the console script's entry."""
    try:
        app()
    except TollgateError as error:
        sys.stderr.write(f"tollgate: {error.message}\n")
        raise SystemExit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tollgate {version('tollgate')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
