"""A trained model as a Hugging Face directory that any reader of its layout can load.

Everything is written into a folder beside the target and moved into place, and what
stood there is moved away before it is deleted, so a reader never sees half a model.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.modeling import checkpoint
from app.modeling.registry import SETTINGS


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from; it stands in the card.

    Attributes:
        data_license: of the training data, which decides what may be done with
            the weights.
    """

    data_name: str
    data_source: str
    data_license: str
    language: str
    description: str


@dataclass(frozen=True, slots=True)
class Artefact:
    """All that is published of one training run."""

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    tokenizer_config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    evaluation: Mapping[str, Any]
    provenance: Provenance


def publish(out: Path, artefact: Artefact) -> None:
    """Write the directory, replacing an earlier one as a whole."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    artefact.tokenizer.save(str(partial / "tokenizer.json"))
    _write_json(partial / "tokenizer_config.json", artefact.tokenizer_config)
    if artefact.generation_config is not None:
        _write_json(partial / "generation_config.json", artefact.generation_config)
    _write_json(partial / "eval.json", artefact.evaluation)
    _write_json(partial / SETTINGS, _settings(artefact.provenance))
    (partial / "MODEL_CARD.md").write_text(_card(out.name, artefact), "utf-8")
    checkpoint.save(partial, artefact.config, artefact.weights)
    _move_into_place(partial, out)


def _move_into_place(partial: Path, out: Path) -> None:
    """Two renames; whoever is killed between them finds the earlier model under its hidden name."""
    replaced = out.with_name(f".{out.name}.replaced")
    if out.exists() or out.is_symlink():
        _remove(replaced)
        out.rename(replaced)
    partial.rename(out)
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_symlink():  # what it points to belongs to somebody else
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _settings(provenance: Provenance) -> dict[str, Any]:
    return {
        "enabled": True,
        "created": int(time.time()),
        "license": provenance.data_license,
        "description": provenance.description,
    }


def _card(name: str, artefact: Artefact) -> str:
    """The model card: what, how good, from what, how made, what not to use it for."""
    origin, evaluation = artefact.provenance, artefact.evaluation
    num_parameters = sum(int(tensor.size) for tensor in artefact.weights.values())
    lines = [
        f"# {name}",
        "",
        origin.description,
        "",
        f"- Task: {evaluation['task']}; language: {origin.language}",
        f"- Layout: {artefact.config['architectures'][0]}, {num_parameters:,} parameters, float32, "
        f"context of {artefact.config['max_position_embeddings']} tokens, "
        f"vocabulary of {artefact.config['vocab_size']:,}",
        f"- Data: {origin.data_name} ({origin.data_source}); licence: {origin.data_license}",
        "- Made with `tollgate train`; every option is in `eval.json`.",
        "",
        "## Evaluation",
        "",
        evaluation["split"]["description"],
        "",
        "| | " + " | ".join(evaluation["metrics"]) + " |",
        "|---|" + "---|" * len(evaluation["metrics"]),
        _row("this model", evaluation["metrics"], evaluation["metrics"]),
        *(_row(name, figures, evaluation["metrics"]) for name, figures in evaluation["baselines"].items()),
        *_abstention(evaluation.get("abstention", [])),
        "",
        "## Limits",
        "",
        "A small model trained from scratch on one data set: it knows that set's language and subject and nothing "
        "else, and repeats its biases. Text that it generates is fiction; labels outside its list do not exist for it.",
        "",
    ]
    return "\n".join(lines)


def _abstention(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    if not rows:
        return []
    shares = ((row["abstain_below"], row["answered"], row["accuracy"]) for row in rows)
    cells = (
        f"| {least} | {answered:.1%} | {'' if right is None else f'{right:.1%}'} |" for least, answered, right in shares
    )
    return ["", "| `abstain_below` | answered | right of those |", "|---|---|---|", *cells]


def _row(name: str, figures: Mapping[str, float], columns: Mapping[str, float]) -> str:
    cells = (f"{figures[column]:.4f}" if column in figures else "" for column in columns)
    return f"| {name} | " + " | ".join(cells) + " |"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n", "utf-8")
