"""`tollgate models`: what is there to serve."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.context import import_tensorflow, model_directory, settings_for_command
from app.errors import ModelFormatError

app = typer.Typer(no_args_is_help=True, help="The models below MODELS_DIR.")

Name = Annotated[str, typer.Argument(help="A model below MODELS_DIR.")]


@app.command("list", epilog="Example: tollgate models list")
def list_models() -> None:
    """List every model with its task, context and digest."""
    from app.modeling.registry import Registry

    cards = Registry(settings_for_command(log_level="warning").models_dir).list()
    width = max([len(card.name) for card in cards] + [4])
    print(f"{'name':{width}}  {'kind':14}  {'context':>7}  {'digest':12}  {'enabled':7}  description")
    for card in cards:
        enabled = "yes" if card.enabled else "no"
        known = f"{card.name:{width}}  {card.kind:14}  {card.context_length:7}  {card.digest[:12]}"
        print(f"{known}  {enabled:7}  {card.description}")


@app.command("import", epilog="Example: tollgate models import ~/checkpoints/llama --name llama")
def import_model(
    directory: Annotated[Path, typer.Argument(help="A Hugging Face directory.", exists=True, file_okay=False)],
    name: Annotated[str, typer.Option(help="How the API will call it.")],
) -> None:
    """Check a Hugging Face directory and copy it below MODELS_DIR."""
    models_dir = settings_for_command(log_level="warning").models_dir
    import_tensorflow()
    from app.modeling import imports

    result = imports.import_model(directory, models_dir, name)
    print(f"Imported {name}: {result.num_parameters:,} parameters; first output {result.summary!r}.")


@app.command(epilog="Example: tollgate models verify shakespeare")
def verify(name: Name) -> None:
    """Compare a model's files with its checksums and run it once."""
    directory = model_directory(name)
    import_tensorflow()
    from app.modeling import imports, registry

    changed = registry.verify(directory)
    if changed:
        raise ModelFormatError(f"{name}: these files differ from {registry.CHECKSUMS}: {', '.join(changed)}")
    result = imports.smoke_run(directory)
    print(f"{name}: files match {registry.CHECKSUMS}.")
    print(f"{result.num_parameters:,} parameters; first output {result.summary!r}.")


@app.command(epilog="Example: tollgate models disable shakespeare")
def disable(name: Name) -> None:
    """Stop serving a model from the next start on."""
    _set_enabled(name, enabled=False)


@app.command(epilog="Example: tollgate models enable shakespeare")
def enable(name: Name) -> None:
    """Serve a model again from the next start on."""
    _set_enabled(name, enabled=True)


def _set_enabled(name: str, *, enabled: bool) -> None:
    directory = model_directory(name)
    from app.modeling import registry

    registry.set_enabled(directory, enabled)
    print(f"{name} is {'enabled' if enabled else 'disabled'}; restart the engine and the API to apply.")
