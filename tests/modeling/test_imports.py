import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers

from app.errors import ConfigError, ModelFormatError
from app.modeling import checkpoint, gru, imports, registry
from app.modeling.tokenizer import Tokenizer
from tests.modeling.checkpoints import gru_config, write_decoder, write_encoder, write_gru
from tests.oracles import oracle

FIXTURES = Path(__file__).parent / "fixtures"


def change_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("write", [write_decoder, write_encoder, write_gru])
def test_imported_model_is_in_the_registry_with_the_files_unchanged(tmp_path: Path, write: object) -> None:
    write(tmp_path / "source")  # type: ignore[operator]
    published = tmp_path / "models"

    imports.import_model(tmp_path / "source", published, "mine")

    assert registry.Registry(published).get("mine").enabled
    assert registry.verify(published / "mine") == []
    assert registry.checksums(published / "mine") == registry.checksums(tmp_path / "source")


def test_real_checkpoint_imports_as_it_stands(tmp_path: Path) -> None:
    result = imports.import_model(oracle("stories260K"), tmp_path, "stories")

    assert result.num_parameters == 260_032
    assert result.summary.startswith("Once upon")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "lacks model.norm.weight"),
        ({"model.extra": np.zeros(3, np.float32)}, "unknown tensors model.extra"),
        ({"model.norm.weight": np.ones(7, np.float32)}, r"model.norm.weight has shape \[7\], expected \[32\]"),
        ({"model.norm.weight": np.full(32, np.nan, np.float32)}, "not finite"),
    ],
)
def test_odd_tensors_are_refused_by_name_and_nothing_is_left_behind(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_decoder(tmp_path / "source")
    change_tensors(tmp_path / "source", **changes)

    with pytest.raises(ModelFormatError, match=message):
        imports.import_model(tmp_path / "source", tmp_path / "models", "mine")

    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.1.recurrent.bias": None}, "lacks model.layers.1.recurrent.bias"),
        ({"lm_head.bias": None}, "lacks lm_head.bias"),
        ({"model.layers.2.input.bias": np.zeros(72, np.float32)}, "unknown tensors model.layers.2.input.bias"),
        (
            {"model.layers.1.input.weight": np.zeros((72, 16), np.float32)},
            r"model.layers.1.input.weight has shape \[72, 16\], expected \[72, 24\]",
        ),
        ({"model.embed_tokens.weight": np.full((300, 16), np.nan, np.float32)}, "not finite"),
    ],
)
def test_odd_tensors_of_a_recurrent_model_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_gru(tmp_path / "source")
    change_tensors(tmp_path / "source", **changes)

    with pytest.raises(ModelFormatError, match=message):
        imports.import_model(tmp_path / "source", tmp_path / "models", "mine")

    assert list((tmp_path / "models").iterdir()) == []


def test_smoke_run_continues_as_the_recurrent_network_does(tmp_path: Path) -> None:
    weights = write_gru(tmp_path)
    ids = [0]
    for _ in range(imports.SMOKE_TOKENS):
        ids.append(int(np.argmax(gru.forward(gru_config(), weights, tf.constant([ids]))[0, -1])))

    result = imports.smoke_run(tmp_path)

    assert result.summary == Tokenizer.load(tmp_path).decode(ids[1:])
    assert result.num_parameters == sum(weight.size for weight in weights.values())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"not tensors", "not a safetensors file"),
        ("model.safetensors", None, "no model.safetensors"),
        (
            "config.json",
            b'{"architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": 300, '
            b'"max_position_embeddings": 8}',
            "model_type 'mamba'",
        ),
    ],
)
def test_file_that_does_not_fit_is_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_decoder(tmp_path / "source")
    if content is None:
        (tmp_path / "source" / file).unlink()
    else:
        (tmp_path / "source" / file).write_bytes(content)

    with pytest.raises(ModelFormatError, match=message):
        imports.import_model(tmp_path / "source", tmp_path / "models", "mine")


def test_tokenizer_larger_than_the_network_is_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path / "source")
    config = (tmp_path / "source" / "config.json").read_text().replace('"vocab_size": 300', '"vocab_size": 200')
    (tmp_path / "source" / "config.json").write_text(config)

    with pytest.raises(ModelFormatError, match="300 tokens"):
        imports.smoke_run(tmp_path / "source")


def test_a_single_token_behind_the_network_is_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path / "source")
    path = tmp_path / "source" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"] = {token: 305 if i == 299 else i for token, i in raw["model"]["vocab"].items()}
    path.write_text(json.dumps(raw))

    with pytest.raises(ModelFormatError, match=r"tokenizer\.json numbers 306 tokens, config\.json 300"):
        imports.smoke_run(tmp_path / "source")


def test_chat_template_that_is_none_is_refused_before_anybody_chats(tmp_path: Path) -> None:
    write_decoder(tmp_path / "source")
    (tmp_path / "source" / "chat_template.jinja").write_text("{% for %}")

    with pytest.raises(ModelFormatError, match="chat template is not valid"):
        imports.import_model(tmp_path / "source", tmp_path / "models", "mine")


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", ""])
def test_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="usable name"):
        imports.import_model(tmp_path, tmp_path / "models", name)


def test_model_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    write_decoder(tmp_path / "mine")

    with pytest.raises(ConfigError, match="exists"):
        imports.import_model(tmp_path / "mine", tmp_path, "mine")


@pytest.mark.parametrize(
    "directory", [path for path in sorted(FIXTURES.iterdir()) if path.is_dir()], ids=lambda p: p.name
)
def test_every_layout_is_imported_and_run_once(tmp_path: Path, directory: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(directory, source)
    words = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(90)}, unk_token="w5"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(source / "tokenizer.json"))

    result = imports.import_model(source, tmp_path / "models", "mine")

    [card] = registry.Registry(tmp_path / "models").list()
    assert registry.verify(card.path) == []
    assert result.num_parameters == sum(w.size for w in checkpoint.load(directory).weights.values())
    if card.kind == "classification":
        assert result.summary in card.labels
    elif card.kind == "embedding":
        assert len(result.summary.split()) == imports.SMOKE_NUMBERS + 1
    else:
        assert set(result.summary.split()) <= {f"w{i}" for i in range(90)}
