"""Finds the numbers of columns whose products agree bit for bit, on the machine at hand.

A product `W x` of few columns takes other ways through the libraries than one of
many, with other orders of adding, so a column's last bits may depend on how many
others there are. They do so in classes: on an x86-64 with AVX-512, XLA gives the same
bits for 4, 8, 24, 40, 56 … columns, and others for 16, 32, 48 …. If a model's calls are
padded to numbers of one class, no answer depends on who else is in the batch.

Which class a number is in cannot be read anywhere, so it is tried out: once for each
size of weight, machine and version of TensorFlow, as what was found is kept in a file
beside XLA's compiled code.

Letters: `F` outputs, `D` inputs of a weight, `M` columns.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

CANDIDATES: tuple[int, ...] = (4, 8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 120, 128, 136, 264)
FILE = "product-widths.json"
# A column must come out alike in each place, so all columns are copies of these few.
DISTINCT = 4
# Whether a product is split over threads shows far below; this bounds what the trial takes.
MOST_OUTPUTS = 8192

Product = tuple[int, int]


def agreeing_widths(products: Collection[Product], at_least: int, folder: Path | None = None) -> tuple[int, ...]:
    """Numbers of columns, rising, that agree with each other for every one of these products.

    Of several classes the one with the smallest number that reaches far enough.

    Args:
        products: `(F, D)` of the weights.
        at_least: how many columns the largest number must have; if none has, or no two
            agree, the answer is empty.
        folder: where what was found is kept; None: nowhere.
    """
    found = _groups({(min(rows, MOST_OUTPUTS), columns) for rows, columns in products}, folder)
    classes: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, width in enumerate(CANDIDATES):
        key = tuple(groups[i] for groups in found)
        if -1 not in key:
            classes[key].append(width)
    able = [tuple(widths) for widths in classes.values() if len(widths) > 1 and widths[-1] >= at_least]
    return min(able, key=lambda widths: (widths[0], -len(widths)), default=())


def _groups(products: Iterable[Product], folder: Path | None) -> list[list[int]]:
    """For each product the number of each candidate's group; -1 where places differ."""
    path = None if folder is None else folder / FILE
    known: dict[str, list[int]] = _read(path)
    names = {f"{rows}x{columns}": (rows, columns) for rows, columns in sorted(products)}
    new = {name: _try(*product) for name, product in names.items() if len(known.get(name, ())) != len(CANDIDATES)}
    if new and path is not None:
        _write(path, _read(path) | new)
    known |= new
    return [known[name] for name in names]


def _try(num_outputs: int, num_inputs: int) -> list[int]:
    rng = np.random.default_rng(num_outputs * num_inputs)
    weight = tf.constant(rng.standard_normal((num_outputs, num_inputs)), tf.float32)
    some = rng.standard_normal((num_inputs, DISTINCT)).astype(np.float32)
    inputs = [np.tile(some, -(-width // DISTINCT))[:, :width] for width in CANDIDATES]  # [D, M] each
    # Arguments of their own, so that no compiler makes one product of several.
    run = tf.function(lambda *xs: [tf.matmul(weight, x) for x in xs], jit_compile=True, autograph=False)
    seen: dict[bytes, int] = {}
    groups = []
    arguments = [tf.constant(x) for x in inputs]
    for product in run.get_concrete_function(*arguments)(*arguments):
        y = product.numpy()  # [F, M]
        first = np.ascontiguousarray(y[:, :DISTINCT])
        is_uniform = np.array_equal(y, np.tile(first, -(-y.shape[1] // DISTINCT))[:, : y.shape[1]])
        groups.append(seen.setdefault(first.tobytes(), len(seen)) if is_uniform else -1)
    return groups


def _read(path: Path | None) -> dict[str, list[int]]:
    try:
        found = {} if path is None else json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, found: Mapping[str, list[int]]) -> None:
    # Aside and renamed: two starts at once both write whole files.
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(found))
    aside.replace(path)
