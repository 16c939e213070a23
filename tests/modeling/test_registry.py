import subprocess
from pathlib import Path

import pytest

from app.errors import ModelFormatError, NotFound
from app.modeling import registry
from app.modeling.registry import Registry
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
        (
            '{"architectures": ["XForSequenceClassification"], "max_position_embeddings": 8, "vocab_size": 9}',
            "two labels",
        ),
        ('{"architectures": ["XForCausalLM"], "vocab_size": 9}', "max_position_embeddings"),
    ],
)
def test_configuration_that_cannot_be_served_is_refused_by_name(tmp_path: Path, config: str, message: str) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelFormatError, match=message):
        registry.read_card(tmp_path)


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
