import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from app.engine import widths
from app.engine.widths import CANDIDATES, FILE, agreeing_widths

PRODUCT = (96, 64)


def test_a_column_of_agreeing_widths_is_the_same_bit_for_bit() -> None:
    found = agreeing_widths({PRODUCT}, 16)
    assert found, "no two widths agree on this machine: every call would have all rows"
    rng = np.random.default_rng(5)
    weight, x = rng.standard_normal(PRODUCT).astype(np.float32), rng.standard_normal((64, 264)).astype(np.float32)
    product = tf.function(lambda columns: tf.matmul(weight, columns), jit_compile=True)
    firsts = {product(tf.constant(x[:, :width])).numpy()[:, 0].tobytes() for width in found}
    assert len(firsts) == 1
    assert found[-1] >= 16
    assert set(found) <= set(CANDIDATES)


def test_what_was_found_is_kept_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = agreeing_widths({PRODUCT}, 16, tmp_path)
    assert list(json.loads((tmp_path / FILE).read_text())) == ["96x64"]

    def fail(*_: int) -> list[int]:
        raise AssertionError("tried again")

    monkeypatch.setattr(widths, "_try", fail)
    assert agreeing_widths({PRODUCT}, 16, tmp_path) == found


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"96x64": [0]}'])
def test_a_damaged_or_older_file_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert agreeing_widths({PRODUCT}, 16, tmp_path)
    assert len(json.loads((tmp_path / FILE).read_text())["96x64"]) == len(CANDIDATES)


def groups(**of: tuple[int, ...]) -> dict[str, list[int]]:
    """A file's content: for each product the group of each candidate by the sets named."""
    return {name: [0 if width in members else 1 for width in CANDIDATES] for name, members in of.items()}


def test_widths_must_agree_for_every_product(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(groups(**{"1x1": (4, 8, 24, 40), "2x2": (8, 16, 24, 40)})))
    assert agreeing_widths({(1, 1), (2, 2)}, 24, tmp_path) == (8, 24, 40)


def test_the_class_that_begins_lowest_and_reaches_far_enough_is_taken(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(groups(**{"1x1": (4, 8)})))
    assert agreeing_widths({(1, 1)}, 8, tmp_path) == (4, 8)
    assert agreeing_widths({(1, 1)}, 16, tmp_path)[0] == 16


def test_widths_whose_places_differ_are_never_used(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"1x1": [-1] * len(CANDIDATES)}))
    assert agreeing_widths({(1, 1)}, 4, tmp_path) == ()
