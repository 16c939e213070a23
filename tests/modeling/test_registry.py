import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.errors import ModelFormatError, NotFound
from app.modeling import imports, registry
from app.modeling.registry import Registry
from app.modeling.tokenizer import read_json
from tests.modeling.checkpoints import write_decoder, write_encoder, write_gru


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_decoder(tmp_path / "poet")
    write_encoder(tmp_path / "judge")
    return tmp_path


def test_cards_say_what_a_caller_needs(models: Path) -> None:
    judge, poet = Registry(models).list()

    assert (poet.name, poet.kind, poet.context_length, poet.eos_token_ids) == ("poet", "generation", 64, (0,))
    assert (judge.name, judge.kind, judge.labels) == ("judge", "classification", ("no", "yes"))
    assert len(poet.digest) == 64


def test_recurrent_model_is_a_generation_model(tmp_path: Path) -> None:
    write_gru(tmp_path / "bard")

    (bard,) = Registry(tmp_path).list()

    assert (bard.kind, bard.context_length, bard.vocab_size, bard.eos_token_ids) == ("generation", 64, 300, (0,))


def test_model_switched_off_is_not_found(models: Path) -> None:
    registry.set_enabled(models / "poet", enabled=False)

    with pytest.raises(NotFound) as error:
        Registry(models).get("poet")

    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_model_that_appears_later_is_found_after_a_refresh(models: Path) -> None:
    known = Registry(models)
    write_decoder(models / "late")
    with pytest.raises(NotFound):
        known.get("late")

    known.refresh()

    assert known.get("late").name == "late"


def test_broken_model_does_not_hide_the_others(models: Path) -> None:
    (models / "poet" / "config.json").write_text("{")

    assert [card.name for card in Registry(models).list()] == ["judge"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "no config.json"),
        ('{"architectures": ["Painter"]}', "architecture 'Painter'"),
        ('{"architectures": ["XForCausalLM"], "vocab_size": 9}', "max_position_embeddings"),
    ],
)
def test_configuration_that_cannot_be_served_is_refused_by_name(tmp_path: Path, config: str, message: str) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelFormatError, match=message):
        registry.read_card(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"architectures": [5]}),
        ("config.json", {"architectures": 5}),
        ("config.json", {"id2label": {"0": "no", "1": "yes", "seven": "seven"}}),
        ("config.json", {"id2label": ["no", "yes"]}),
        ("config.json", {"eos_token_id": "</s>"}),
        ("config.json", {"eos_token_id": [1, None]}),
        ("config.json", {"problem_type": "multi_label_classification", "label_thresholds": {"no": "half"}}),
        ("config.json", {"problem_type": "multi_label_classification", "label_thresholds": {"no": 7}}),
        ("config.json", {"problem_type": "multi_label_classification", "label_thresholds": [0.5]}),
        ("tollgate.json", {"created": "yesterday"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
    ],
)
def test_field_of_an_odd_type_hides_only_its_own_model(models: Path, file: str, changes: dict[str, Any]) -> None:
    path = models / "judge" / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | changes))

    assert [card.name for card in Registry(models).list()] == ["poet"]


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000])
def test_file_that_is_no_text_hides_only_its_own_model(models: Path, content: bytes) -> None:
    name = "chat_template.jinja" if content == b"\xff" else "config.json"
    (models / "judge" / name).write_bytes(content)

    assert [card.name for card in Registry(models).list()] == ["poet"]


def test_folder_that_goes_while_it_is_read_hides_only_its_own_model(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_late(path: Path) -> dict[str, Any]:
        value = read_json(path)
        if path.name == "tollgate.json" and path.parent.name == "judge":
            shutil.rmtree(path.parent)
        return value

    monkeypatch.setattr(registry, "read_json", read_late)

    assert [card.name for card in Registry(models).list()] == ["poet"]


@pytest.mark.parametrize(
    ("by_id", "message"),
    [
        ({"0": "only"}, "fewer than two labels"),
        ({"0": "no", "2": "yes"}, "does not number the labels"),
        ({}, "does not number the labels"),
    ],
)
def test_labels_that_do_not_fit_the_scores_are_refused(models: Path, by_id: dict[str, str], message: str) -> None:
    path = models / "judge" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": by_id}))

    with pytest.raises(ModelFormatError, match=message):
        registry.read_card(models / "judge")


def test_two_labels_without_names_are_called_as_hugging_face_does(models: Path) -> None:
    path = models / "judge" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "id2label"}))

    assert registry.read_card(models / "judge").labels == ("LABEL_0", "LABEL_1")
    assert imports.smoke_run(models / "judge").summary in {"LABEL_0", "LABEL_1"}


@pytest.mark.parametrize(
    ("generation", "ids"), [({"eos_token_id": [3, 7]}, (3, 7)), ({"eos_token_id": None}, (0,)), ({}, (0,))]
)
def test_answers_end_as_the_generation_file_says_or_else_the_configuration(
    models: Path, generation: dict[str, Any], ids: tuple[int, ...]
) -> None:
    (models / "poet" / "generation_config.json").write_text(json.dumps(generation))

    assert registry.read_card(models / "poet").eos_token_ids == ids


def test_end_token_outside_of_the_vocabulary_is_refused(models: Path) -> None:
    (models / "poet" / "generation_config.json").write_text('{"eos_token_id": [0, 300]}')

    with pytest.raises(ModelFormatError, match="eos_token_id 300 is not below vocab_size 300"):
        registry.read_card(models / "poet")


def test_weights_without_checksums_are_summed_once_while_they_stay_the_same(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("judge", "poet"):
        (models / name / registry.CHECKSUMS).unlink()
    digest = Registry(models).get("poet").digest
    read: list[str] = []
    sum_of = registry._sha256

    def note(path: Path) -> str:
        read.append(path.name)
        return sum_of(path)

    monkeypatch.setattr(registry, "_sha256", note)

    assert Registry(models).get("poet").digest == digest
    assert read == []

    write_decoder(models / "poet", tied=False)
    (models / "poet" / registry.CHECKSUMS).unlink()
    read.clear()
    assert Registry(models).get("poet").digest != digest
    assert "model.safetensors" in read


def test_digest_follows_the_weights_and_not_the_card(models: Path) -> None:
    before = registry.read_card(models / "poet").digest
    (models / "poet" / "MODEL_CARD.md").write_text("new words")
    registry.write_checksums(models / "poet")
    assert registry.read_card(models / "poet").digest == before

    with (models / "poet" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")

    assert registry.verify(models / "poet") == ["model.safetensors"]
    (models / "poet" / registry.CHECKSUMS).unlink()
    assert registry.read_card(models / "poet").digest != before
    with pytest.raises(ModelFormatError, match="SHA256SUMS"):
        registry.verify(models / "poet")


def test_checksums_are_those_of_sha256sum(models: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", registry.CHECKSUMS], cwd=models / "poet", check=False)

    assert done.returncode == 0
