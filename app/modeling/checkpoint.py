"""Hugging Face directories, in and out: `config.json`, safetensors, checked tensor by tensor.

Names and shapes are checked against the layout, from the files' headers, before any
tensor is read and anything is compiled, so a wrong file is refused with the tensor's
name instead of failing in the device. What a layout stores fused or turned is taken
apart here, once; faults are reported under the names that the file uses.

Pickled weights (`pytorch_model.bin`) are never read: they may run code.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from app.errors import ModelFormatError
from app.modeling import bert_config, gru
from app.modeling.bert_config import BertConfig
from app.modeling.decoder_config import DecoderConfig
from app.modeling.encoder import EncoderConfig
from app.modeling.gru import GruConfig
from app.modeling.layouts import LAYOUTS, TensorNames
from app.modeling.registry import INDEX, WEIGHTS, weight_names, write_checksums
from app.modeling.tokenizer import read_json

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names to NumPy's

# Names are made for every layer before a file is read; no published network has a tenth of these.
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers")
MOST_LAYERS = 10_000

Config = DecoderConfig | GruConfig | EncoderConfig | BertConfig
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's sizes and its tensors by our name.

    Attributes:
        weights: float32, whatever the files hold.
        stored_dtype: what the files hold: float32, bfloat16 or float16.
    """

    config: Config
    weights: dict[str, np.ndarray]
    stored_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file, as its header describes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def load(directory: Path) -> Checkpoint:
    """Read a model directory, of one weights file or several.

    Raises:
        ModelFormatError: the layout is unknown, a file is missing, or a tensor is
            missing, left over, or of another shape or type; names it.
    """
    raw = read_json(directory / "config.json")
    config, names = read_config(raw, directory), tensor_names(raw)
    wanted = _wanted(config.shapes, names)
    stored = _stored(directory, names)
    _check(directory, names, wanted, stored, config.shapes)
    weights: dict[str, np.ndarray] = {}
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, framework="np") as tensors:
            for in_file, parts in wanted.items():
                if stored[in_file].file == file:
                    whole = _upright(tensors.get_tensor(stored[in_file].name), names.is_transposed(in_file))
                    weights |= _split(whole, {name: config.shapes[name] for name in parts})
    first = names.in_file(next(iter(config.shapes)))
    return Checkpoint(config, {name: weights[name] for name in config.shapes}, DTYPES[stored[first].dtype])


def save(directory: Path, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Write `config.json`, `model.safetensors` and their checksums; float32."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n")
    save_file(dict(weights), directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors writes 0600, which other users of a server cannot read
    write_checksums(directory)


def read_config(raw: Mapping[str, Any], directory: Path) -> Config:
    """The sizes that a `config.json`, and what lies beside it, describes.

    Raises:
        ModelFormatError: the layout is unknown, or a field is not what it should be.
    """
    for field in LAYER_FIELDS:
        if isinstance(raw.get(field), int) and raw[field] > MOST_LAYERS:
            raise ModelFormatError(f"config.json: {field} {raw[field]} is more than {MOST_LAYERS}")
    try:
        return _config_of(raw, directory)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # A field of another type than it has anywhere; those that are known to vary are refused by name.
        raise ModelFormatError(f"{directory / 'config.json'}: {type(error).__name__}: {error}") from None


def tensor_names(raw: Mapping[str, Any]) -> TensorNames:
    """How the files of a `config.json`'s layout name their tensors; as we do where nothing else is known."""
    if raw.get("model_type") in bert_config.LAYOUTS:
        return bert_config.tensor_names(raw)
    if raw.get("model_type") == gru.MODEL_TYPE:
        return TensorNames()
    layout = LAYOUTS.get(raw.get("model_type", ""))
    return layout.names if layout else TensorNames(prefix="")


def _config_of(raw: Mapping[str, Any], directory: Path) -> Config:
    if raw.get("model_type") == "textcnn":
        return EncoderConfig.from_hf(raw)
    if raw.get("model_type") == gru.MODEL_TYPE:
        return GruConfig.from_hf(raw)
    if raw.get("model_type") in bert_config.LAYOUTS:
        return BertConfig.from_hf(raw, directory)
    return DecoderConfig.from_hf(raw)


def _wanted(shapes: Shapes, names: TensorNames) -> dict[str, list[str]]:
    """Every tensor of the file, without prefix, with those of ours that lie in it, in order."""
    wanted: dict[str, list[str]] = {}
    for name in shapes:
        wanted.setdefault(names.in_file(name), []).append(name)
    return wanted


def _stored(directory: Path, names: TensorNames) -> dict[str, Stored]:
    """Every tensor of the files that is not to be ignored, by name without prefix."""
    stored: dict[str, Stored] = {}
    for name, tensor in _list_tensors(directory, names):
        if name in stored:  # in two shards, or with and without the prefix: nothing says which one is meant
            raise ModelFormatError(
                f"{directory} has {tensor.name} twice, in {stored[name].file.name} and in {tensor.file.name}"
            )
        if not names.is_ignored(name):
            stored[name] = tensor
    return stored


def _list_tensors(directory: Path, names: TensorNames) -> Iterator[tuple[str, Stored]]:
    """What the headers say, by name without prefix."""
    for file in _weight_files(directory):
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    header = tensors.get_slice(name)
                    yield (
                        name.removeprefix(names.prefix),
                        Stored(file, name, tuple(header.get_shape()), header.get_dtype()),
                    )
        except (SafetensorError, OSError) as error:
            raise ModelFormatError(f"{file} is not a safetensors file: {error}") from None


def _weight_files(directory: Path) -> list[Path]:
    files = weight_names(directory)
    if not files:
        has_index = (directory / INDEX).is_file()
        raise ModelFormatError(
            f"{directory / INDEX} has no weight_map" if has_index else f"{directory} has no {WEIGHTS} and no {INDEX}"
        )
    missing = [name for name in files if Path(name).name != name or not (directory / name).is_file()]
    if missing:
        raise ModelFormatError(f"{directory} lacks {_some(missing)}, which {INDEX} names")
    return [directory / name for name in files]


def _check(
    directory: Path,
    names: TensorNames,
    wanted: Mapping[str, list[str]],
    stored: Mapping[str, Stored],
    shapes: Shapes,
) -> None:
    missing = sorted(names.full(in_file) for in_file in wanted if in_file not in stored)
    if missing:
        raise ModelFormatError(f"{directory} lacks {_some(missing)}")
    # A tied model may carry its output head all the same.
    left_over = sorted(t.name for in_file, t in stored.items() if in_file not in wanted and in_file != "lm_head.weight")
    if left_over:
        raise ModelFormatError(f"{directory} has unknown tensors {_some(left_over)}")
    for in_file, parts in wanted.items():
        tensor, expected = stored[in_file], _shape_in_file([shapes[p] for p in parts], names.is_transposed(in_file))
        if tensor.shape != expected:
            raise ModelFormatError(
                f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
        if tensor.dtype not in DTYPES:
            raise ModelFormatError(f"{tensor.file}: {tensor.name} is {tensor.dtype}, not one of {', '.join(DTYPES)}")


def _shape_in_file(parts: list[tuple[int, ...]], is_transposed: bool) -> tuple[int, ...]:
    whole = (sum(shape[0] for shape in parts), *parts[0][1:])
    return whole[::-1] if is_transposed else whole


def _upright(tensor: np.ndarray, is_transposed: bool) -> np.ndarray:
    """Float32, `[out, in]`."""
    return np.ascontiguousarray(tensor.T if is_transposed else tensor, np.float32)


def _split(whole: np.ndarray, parts: Shapes) -> dict[str, np.ndarray]:
    """The parts that lie one above the other in a tensor."""
    ends = np.cumsum([shape[0] for shape in parts.values()])
    return dict(zip(parts, np.split(whole, ends[:-1]), strict=True))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
