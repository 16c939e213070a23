"""Hugging Face directories, in and out: `config.json`, safetensors, checked tensor by tensor.

Shapes are checked against the layout before anything is compiled, so a wrong
file is refused with the tensor's name instead of failing in the device.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from app.errors import ModelFormatError
from app.modeling.decoder_config import DecoderConfig
from app.modeling.encoder import EncoderConfig
from app.modeling.registry import write_checksums
from app.modeling.tokenizer import read_json

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's sizes and its tensors by Hugging Face name."""

    config: DecoderConfig | EncoderConfig
    weights: dict[str, np.ndarray]


def load(directory: Path) -> Checkpoint:
    """Read a model directory.

    Raises:
        ModelFormatError: the layout is unknown, or a tensor is missing, left
            over or of another shape; names it.
    """
    raw = read_json(directory / "config.json")
    config = read_config(raw)
    weights = _read_tensors(directory)
    _check(config.shapes, weights, directory)
    return Checkpoint(config, {name: np.asarray(weights[name], np.float32) for name in config.shapes})


def save(directory: Path, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Write `config.json`, `model.safetensors` and their checksums; float32."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n")
    save_file(dict(weights), directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors writes 0600, which other users of a server cannot read
    write_checksums(directory)


def read_config(raw: Mapping[str, Any]) -> DecoderConfig | EncoderConfig:
    """The sizes that a `config.json` describes.

    Raises:
        ModelFormatError: the layout is unknown.
    """
    if raw.get("model_type") == "llama":
        return DecoderConfig.from_hf(raw)
    if raw.get("model_type") == "textcnn":
        return EncoderConfig.from_hf(raw)
    raise ModelFormatError(f"config.json: model_type {raw.get('model_type')!r} is not supported")


def _read_tensors(directory: Path) -> dict[str, np.ndarray]:
    path = directory / WEIGHTS
    if not path.is_file():
        raise ModelFormatError(f"{directory} has no {WEIGHTS}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"{path} is not a safetensors file: {error}") from None


def _check(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray], directory: Path) -> None:
    missing = sorted(shapes.keys() - weights.keys())
    if missing:
        raise ModelFormatError(f"{directory / WEIGHTS} lacks {_names(missing)}")
    left_over = sorted(name for name in weights.keys() - shapes.keys() if name != "lm_head.weight")
    if left_over:
        raise ModelFormatError(f"{directory / WEIGHTS} has unknown tensors {_names(left_over)}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ModelFormatError(
                f"{directory / WEIGHTS}: {name} has shape {list(weights[name].shape)}, expected {list(shape)}"
            )


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
