import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from app.errors import ModelFormatError
from app.modeling import checkpoint, imports, registry
from app.modeling.registry import INDEX, WEIGHTS
from tests.modeling.checkpoints import write_decoder

FIXTURES = Path(__file__).parent / "fixtures"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def cut(directory: Path) -> Path:
    """A model of two weights files with an index."""
    write_decoder(directory)
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    places = {name: SHARDS[number % 2] for number, name in enumerate(tensors)}
    for shard in SHARDS:
        save_file({name: tensors[name] for name, place in places.items() if place == shard}, directory / shard)
    write_index(directory, places)
    return directory


def write_index(directory: Path, places: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def copied(name: str, to: Path, **changes: Any) -> Path:
    shutil.copytree(FIXTURES / name, to)
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_model_in_shards_is_imported_as_it_stands(tmp_path: Path) -> None:
    whole = write_decoder(tmp_path / "whole")

    imports.import_model(cut(tmp_path / "source"), tmp_path / "models", "mine")

    loaded = checkpoint.load(tmp_path / "models" / "mine")
    assert all(np.array_equal(loaded.weights[name], whole[name]) for name in whole)
    assert set(registry.checksums(tmp_path / "models" / "mine")) >= {INDEX, *SHARDS}


def test_other_copies_of_the_weights_are_left_behind(tmp_path: Path) -> None:
    directory = cut(tmp_path / "source")
    for name in ("consolidated.safetensors", "model-00003-of-00003.safetensors"):
        (directory / name).write_bytes(b"the same once more")

    imports.import_model(directory, tmp_path / "models", "mine")

    weights = sorted(path.name for path in (tmp_path / "models" / "mine").glob("*.safetensors"))
    assert weights == [*SHARDS]
    assert registry.verify(tmp_path / "models" / "mine") == []


def test_index_that_points_out_of_its_folder_copies_nothing_from_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    directory = cut(tmp_path / "source")
    write_index(directory, {"a": "../secret", "b": str(tmp_path / "secret")})

    assert not any(path.name == "secret" for path in registry.served_files(directory))
    with pytest.raises(ModelFormatError, match="secret"):
        imports.import_model(directory, tmp_path / "models", "mine")


def test_folder_of_links_as_a_download_cache_has_it_becomes_a_folder_of_files(tmp_path: Path) -> None:
    store, source = tmp_path / "store", tmp_path / "snapshot"
    cut(store)
    source.mkdir()
    for file in store.iterdir():
        (source / file.name).symlink_to(file)

    imports.import_model(source, tmp_path / "models", "mine")

    assert not any(file.is_symlink() for file in (tmp_path / "models" / "mine").iterdir())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../store/model.safetensors"}, r"lacks \.\./store/model\.safetensors, which model\.safetensors\.index"),
        ({"a": "/etc/passwd"}, "lacks /etc/passwd"),
        ({"a": "model-3.safetensors"}, r"lacks model-3\.safetensors"),
        ({"a": ""}, "lacks "),
        ({}, "has no weight_map"),
        (["model-1.safetensors"], "has no weight_map"),
    ],
)
def test_index_reaches_files_of_its_own_folder_only(tmp_path: Path, places: object, message: str) -> None:
    write_decoder(tmp_path / "store")
    directory = cut(tmp_path / "source")
    write_index(directory, places)

    with pytest.raises(ModelFormatError, match=message):
        checkpoint.load(directory)


def test_shard_that_the_index_forgets_leaves_its_tensors_missing_by_name(tmp_path: Path) -> None:
    directory = cut(tmp_path / "source")
    write_index(directory, {"a": SHARDS[0]})

    with pytest.raises(ModelFormatError, match="lacks model"):
        checkpoint.load(directory)


def test_tensor_that_is_in_two_shards_is_refused_by_name(tmp_path: Path) -> None:
    directory = cut(tmp_path / "source")
    tensors = load_file(directory / SHARDS[1])
    save_file(tensors | {"model.norm.weight": np.zeros(32, np.float32)}, directory / SHARDS[1])
    tensors = load_file(directory / SHARDS[0])
    save_file(tensors | {"model.norm.weight": np.ones(32, np.float32)}, directory / SHARDS[0])

    with pytest.raises(ModelFormatError, match=r"has model\.norm\.weight twice, in .*00001.* and in .*00002"):
        checkpoint.load(directory)


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float64, "F64"), (np.int8, "I8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")]
)
def test_tensor_of_another_type_is_refused_by_name(tmp_path: Path, dtype: Any, name: str) -> None:
    write_decoder(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors | {"model.norm.weight": np.ones(32).astype(dtype)}, tmp_path / WEIGHTS)

    with pytest.raises(ModelFormatError, match=rf"model\.norm\.weight is {name}, not one of F32, BF16, F16"):
        checkpoint.load(tmp_path)


def test_half_precision_is_read_as_the_numbers_that_it_holds(tmp_path: Path) -> None:
    weights = write_decoder(tmp_path)
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    save_file(half, tmp_path / WEIGHTS)

    loaded = checkpoint.load(tmp_path)

    assert loaded.stored_dtype == "float16"
    assert all(np.array_equal(loaded.weights[name], half[name].astype(np.float32)) for name in half)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",  # a header larger than the file, and than any memory
        struct.pack("<Q", 2) + b"{}"[:1],
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,1000000]}}    ',
        b"",
    ],
    ids=["huge", "cut", "beyond", "empty"],
)
def test_header_that_lies_is_refused_with_its_file(tmp_path: Path, content: bytes) -> None:
    write_decoder(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)

    with pytest.raises(ModelFormatError, match=r"model\.safetensors is not a safetensors file"):
        checkpoint.load(tmp_path)


def test_head_that_a_tied_model_carries_besides_is_not_used(tmp_path: Path) -> None:
    weights = write_decoder(tmp_path, tied=True)
    save_file(weights | {"lm_head.weight": np.zeros((300, 32), np.float32)}, tmp_path / WEIGHTS)

    assert checkpoint.load(tmp_path).weights.keys() == weights.keys()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling .*yarn"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_scaling .*dynamic"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "'linear' has no 'factor'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 0}}, "'factor' 0"),
        ("llama", {"rope_parameters": [5]}, r"config\.json"),
        ("llama-scaled", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0,
          "high_freq_factor": 2.0}}, "high_freq_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"num_key_value_heads": 3}, "4 heads do not share 3 key heads"),
        ("llama", {"head_dim": 7}, "head_dim 7 is odd"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers '2' is not a positive integer"),
        ("llama", {"num_hidden_layers": 3}, r"lacks model\.layers\.2"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is more than"),
        ("llama", {"hidden_size": 10**15}, "has shape"),
        ("llama", {"rms_norm_eps": "small"}, r"config\.json"),
        ("llama", {"model_type": ["llama"]}, r"config\.json"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt2", {"n_layer": 10**9}, "n_layer 1000000000 is more than"),
        ("mistral", {"sliding_window": -5}, "sliding_window -5"),
        ("mistral", {"sliding_window": "near"}, "sliding_window 'near'"),
        ("qwen2-bfloat16", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types .*chunked"),
        ("qwen2-bfloat16", {"layer_types": ["full_attention"]}, "layer_types"),
        ("bert-classifier", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is more than"),
        ("bert-classifier", {"vocab_size": "many"}, "vocab_size 'many' is not a positive integer"),
        ("bert-classifier", {"num_attention_heads": 0}, "num_attention_heads 0 is not a positive integer"),
        ("roberta-classifier", {"pad_token_id": "one"}, r"config\.json"),
        ("distilbert-classifier", {"n_layers": None}, "no field 'n_layers'"),
    ],
)  # fmt: skip
def test_what_is_not_computed_or_makes_no_sense_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFormatError, match=message):
        checkpoint.load(copied(name, tmp_path / "model", **changes))


def test_no_window_is_no_window(tmp_path: Path) -> None:
    config = checkpoint.load(copied("mistral", tmp_path / "model", sliding_window=None)).config

    assert config.windows == ()  # type: ignore[union-attr]
