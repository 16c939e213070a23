"""`tollgate train` and `tollgate evaluate`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.context import import_tensorflow, model_directory, require_extras, settings_for_command
from app.errors import ConfigError
from app.modeling.registry import PRECISIONS

if TYPE_CHECKING:
    from rich.console import Console

    from app.training.publish import Provenance

app = typer.Typer(no_args_is_help=True, help="Train a model on your own data and publish it to be served.")

Data = Annotated[Path, typer.Option("--data", help="File or folder with the training data.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to publish to, for example models/my-model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is already there.")]
TextField = Annotated[str, typer.Option("--text-field", help="Field or column that holds the text.")]
LabelField = Annotated[str, typer.Option("--label-field", help="Field or column that holds the label.")]
DataName = Annotated[str, typer.Option("--data-name", help="For the model card: what the data is called.")]
DataSource = Annotated[str, typer.Option("--data-source", help="For the model card: where it comes from.")]
DataLicense = Annotated[str, typer.Option("--license", help="For the model card: the data's licence.")]
Language = Annotated[str, typer.Option("--language", help="For the model card: the language of the text.")]
Description = Annotated[str, typer.Option("--description", help="For the model card: what the model does.")]


@app.command(epilog="Example: tollgate train generation --data plays.txt --out models/plays")
def generation(
    data: Data,
    out: Out,
    architecture: Annotated[Literal["transformer", "gru"], typer.Option(help="Attention, or recurrent.")] = (
        "transformer"
    ),
    text_field: TextField = "text",
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 512,
    layers: Annotated[int | None, typer.Option(min=1, show_default="6; gru: 2", help="Layers of the decoder.")] = None,
    width: Annotated[
        int | None, typer.Option(min=1, show_default="192; gru: 256", help="Width of the decoder.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, show_default="3", help="Attention heads; transformer only.")
    ] = None,
    feed_forward: Annotated[
        int | None, typer.Option(min=1, show_default="512", help="Width of the feed-forward layers; transformer only.")
    ] = None,
    embedding: Annotated[
        int | None, typer.Option(min=1, show_default="128", help="Width of the embeddings; gru only.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Longest prompt and answer together, tokens.")] = 256,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="64", help="Tokens of a training window, gru only; a transformer's is its context."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, show_default="16; gru: 64", help="Windows in a step.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps at most.")] = 2500,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between looks at the development set.")] = 100,
    patience: Annotated[int, typer.Option(min=1, help="Looks without progress before stopping early.")] = 8,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of activations dropped in training.")] = 0.2,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, show_default="0.003; gru: 0.01", help="At its highest.")
    ] = None,
    test_fraction: Annotated[float, typer.Option(min=0.01, max=0.5, help="Held out for testing.")] = 0.1,
    dev_fraction: Annotated[float, typer.Option(min=0.01, max=0.5, help="Of the rest, for early stopping.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    data_name: DataName = "not named",
    data_source: DataSource = "not stated",
    data_license: DataLicense = "not stated",
    language: Language = "not stated",
    description: Description = "A text generation model.",
    overwrite: Overwrite = False,
) -> None:
    """Train a decoder on texts (.txt, .jsonl, .json, or a folder of them).

    Cleans and de-duplicates, holds out the end, trains a byte-level BPE and a
    decoder, Llama-layout or recurrent (GRU), stops early, and publishes a Hugging Face directory with
    a model card and eval.json. The same command continues a run that was killed.
    """
    options = _fields(locals(), "data", "out", "overwrite", *PROVENANCE)
    _prepare(out, overwrite)
    import_tensorflow()
    from app.training.generation import GenerationOptions, train_generation

    provenance = _provenance(locals())
    evaluation = train_generation(GenerationOptions(**options), data, out, _runs_dir(), provenance, _console())
    _show(evaluation, f"Published {out}.")


@app.command(epilog="Example: tollgate train classification --data tickets.csv --out models/tickets")
def classification(
    data: Data,
    out: Out,
    test: Annotated[Path | None, typer.Option(help="Test set of its own; otherwise a share is held out.")] = None,
    text_field: TextField = "text",
    label_field: LabelField = "label",
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 2048,
    width: Annotated[int, typer.Option(min=1, help="Width of the embeddings.")] = 128,
    filters: Annotated[int, typer.Option(min=1, help="Filters of each kernel size.")] = 128,
    context: Annotated[int, typer.Option(min=1, help="Longest text, tokens.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data at most.")] = 20,
    patience: Annotated[int, typer.Option(min=1, help="Passes without progress before stopping early.")] = 6,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of activations dropped in training.")] = 0.4,
    token_dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of tokens blanked in training.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="At its highest.")] = 2e-3,
    test_fraction: Annotated[float, typer.Option(min=0.01, max=0.5, help="Held out where there is no --test.")] = 0.1,
    dev_fraction: Annotated[float, typer.Option(min=0.01, max=0.5, help="Of the rest, for early stopping.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    data_name: DataName = "not named",
    data_source: DataSource = "not stated",
    data_license: DataLicense = "not stated",
    language: Language = "not stated",
    description: Description = "A text classification model.",
    overwrite: Overwrite = False,
) -> None:
    """Train a classifier on labelled texts (.jsonl, .csv, .tsv, or a folder of them).

    Cleans and de-duplicates, trains a convolutional encoder, stops early,
    calibrates its scores, and publishes a Hugging Face directory with a model
    card and eval.json. Where labels are lists (.jsonl), any number of them may
    hold for a text, each from a threshold of its own on. The same command continues a run that was killed.
    """
    options = _fields(locals(), "data", "test", "out", "overwrite", *PROVENANCE)
    _prepare(out, overwrite)
    require_extras("sklearn", "scipy")
    import_tensorflow()
    from app.training.classification import ClassificationOptions, train_classification

    chosen, provenance = ClassificationOptions(**options), _provenance(locals())
    _show(train_classification(chosen, data, test, out, _runs_dir(), provenance, _console()), f"Published {out}.")


def evaluate(
    name: Annotated[str, typer.Argument(help="A model below MODELS_DIR.")],
    data: Annotated[Path, typer.Option("--data", help="Texts, or labelled texts for a classifier.")],
    text_field: TextField = "text",
    label_field: LabelField = "label",
    precision: Annotated[str, typer.Option(help="float32, or int8: as an engine of that precision computes.")] = (
        "float32"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a published model on data of your own."""
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(PRECISIONS)}", param_hint="--precision")
    directory = model_directory(name)
    require_extras("sklearn", "scipy")
    import_tensorflow()
    from app.training.evaluation import evaluate_model

    figures = evaluate_model(directory, data, text_field, label_field, precision)
    if as_json:
        print(json.dumps(figures))
        return
    for metric, value in figures.items():
        print(f"{metric:24}{value:10.4f}")


PROVENANCE = ("data_name", "data_source", "data_license", "language", "description")


def _fields(given: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in without}


def _provenance(given: dict[str, Any]) -> "Provenance":
    from app.training.publish import Provenance

    return Provenance(**{name: given[name] for name in PROVENANCE})


def _prepare(out: Path, overwrite: bool) -> None:
    """Fail before an hour of training rather than after it."""
    settings_for_command(log_level="warning")
    if out.name in {"", ".."} or out.name.startswith("."):
        raise ConfigError(f"--out {out} must end in the model's name, which does not begin with a dot")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out or give --overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise ConfigError(f"{out} is no model, so it is not overwritten; choose another --out")
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise ConfigError(f"--out {out} cannot be written: {parent} is no folder of yours")


def _runs_dir() -> Path:
    return settings_for_command(log_level="warning").data_dir / "runs"


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _show(evaluation: dict[str, Any], closing: str) -> None:
    rows = {"this model": evaluation["metrics"], **evaluation["baselines"]}
    columns = list(evaluation["metrics"])
    print(f"{'':18}" + "".join(f"{column:>22}" for column in columns))
    for name, figures in rows.items():
        print(f"{name:18}" + "".join(f"{figures[c]:22.4f}" if c in figures else " " * 22 for c in columns))
    print(closing)
