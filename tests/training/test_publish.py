import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.modeling import registry
from app.modeling.registry import Registry
from app.training import publish
from app.training.publish import Artefact, Provenance
from app.training.vocabulary import train_classification_tokenizer
from tests.modeling.checkpoints import TEXTS, encoder_config, random_weights


def artefact(seed: int = 0) -> Artefact:
    return Artefact(
        config=encoder_config().to_hf(),
        weights=random_weights(encoder_config().shapes, seed),
        tokenizer=train_classification_tokenizer(TEXTS, 300),
        tokenizer_config={},
        generation_config=None,
        evaluation={"task": "classification", "split": {"description": ""}, "metrics": {}, "baselines": {}},
        provenance=Provenance("moods", "made here", "none", "English", "Tells moods."),
    )


def test_a_model_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    publish.publish(tmp_path / "moods", artefact())
    before = registry.read_card(tmp_path / "moods").digest
    (tmp_path / "moods" / "old-shard.safetensors").write_bytes(b"")

    publish.publish(tmp_path / "moods", artefact(seed=1))

    assert [path.name for path in tmp_path.iterdir()] == ["moods"]
    assert registry.verify(tmp_path / "moods") == []
    assert registry.read_card(tmp_path / "moods").digest != before


def test_nobody_sees_half_of_the_model_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish.publish(tmp_path / "moods", artefact())
    seen: list[list[str]] = []
    remove = shutil.rmtree

    def look_and_remove(path: Path, **options: Any) -> None:
        served = Registry(tmp_path).list()
        seen.append([card.name for card in served if not registry.verify(card.path)])
        for folder, _, files in os.walk(path):
            for file in files:
                os.unlink(Path(folder) / file)
                served = Registry(tmp_path).list()
                seen.append([card.name for card in served if not registry.verify(card.path)])
        remove(path, **options)

    monkeypatch.setattr("app.training.publish.shutil.rmtree", look_and_remove)

    publish.publish(tmp_path / "moods", artefact(seed=1))

    assert len(seen) > 3
    assert all(names == ["moods"] for names in seen)


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish.publish(tmp_path / "store", artefact())
    models.mkdir()
    (models / "moods").symlink_to(tmp_path / "store")

    publish.publish(models / "moods", artefact(seed=1))

    assert [path.name for path in models.iterdir()] == ["moods"]
    assert not (models / "moods").is_symlink()
    assert np.array_equal(registry.verify(tmp_path / "store"), [])
