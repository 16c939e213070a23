"""Which models there are: every directory below MODELS_DIR that holds a `config.json`.

Reads small files only and imports no TensorFlow, so the API may use it. A model
is switched off by `"enabled": false` in its `tollgate.json`. Its digest is the
SHA-256 of its `SHA256SUMS`, so equal digests mean equal weights, configuration
and tokenizer; `verify` recomputes the sums.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.errors import ModelFormatError, NotFound
from app.modeling import bert_config
from app.modeling.labels import read_labels, read_thresholds
from app.modeling.tokenizer import read_chat_template, read_json
from app.telemetry import get_logger

log = get_logger(__name__)

CHECKSUMS = "SHA256SUMS"
SETTINGS = "tollgate.json"
# What a model's behaviour depends on; cards and evaluations may change without a new digest.
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SERVED_FILES = (
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
    bert_config.MODULES,
    bert_config.POOLING,
    bert_config.LENGTHS,
)
CONTEXT_FIELD = "max_position_embeddings"
DIMENSIONS = "matryoshka_dimensions"  # of config.json, as models trained to be cut say it
PRECISIONS = ("float32", "int8")
CONTEXT_FIELDS = {"gpt2": "n_positions"}  # by model_type, where it is called otherwise


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without loading its weights.

    Attributes:
        context_length: tokens of prompt and output together; for classification
            the longest input.
        labels: names of the classes, in the order of the scores.
        embedding_size: numbers in a vector; 0 unless it embeds.
        is_multi_label: scores are each label's own probability.
        thresholds: from which probability on each label of a multi-label model holds.
        dimensions: to how few numbers a vector may be cut; none: it may not.
        precision: "float32" or "int8" where the model's owner wants one; None: the engine's setting.
        created: Unix time of publication, seconds.
    """

    name: str
    kind: str
    path: Path
    digest: str
    context_length: int
    vocab_size: int
    labels: tuple[str, ...]
    embedding_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    created: int
    license: str | None
    description: str
    enabled: bool
    is_multi_label: bool = False
    thresholds: tuple[float, ...] = ()
    dimensions: tuple[int, ...] = ()
    precision: str | None = None


class Registry:
    """The models of one directory, as of the last `refresh`."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._cards: dict[str, ModelCard] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the directory again; a broken model is logged and left out."""
        cards = {}
        for config in sorted(self._models_dir.glob("[!.]*/config.json")):
            try:
                card = read_card(config.parent)
            except ModelFormatError as error:
                log.warning("model.unreadable", model=config.parent.name, reason=error.message)
                continue
            cards[card.name] = card
        self._cards = cards  # at once: another thread may be reading

    def list(self) -> list[ModelCard]:
        """All models, enabled or not, by name."""
        return [*self._cards.values()]

    def get(self, name: str) -> ModelCard:
        """An enabled model.

        Raises:
            NotFound: no such model, or it is switched off (code `model_not_found`).
        """
        card = self._cards.get(name)
        if card is None or not card.enabled:
            raise NotFound(f"The model '{name}' does not exist or is not available.", param="model")
        return card


def read_card(directory: Path) -> ModelCard:
    """Describe the model in a Hugging Face directory.

    Raises:
        ModelFormatError: a file or a field is missing, or is not what it should be.
    """
    try:
        return _read_card(directory)
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        # A field of another type than it has anywhere, or a folder that is being replaced.
        raise ModelFormatError(f"{directory} cannot be read as a model: {type(error).__name__}: {error}") from None


def set_enabled(directory: Path, enabled: bool) -> None:
    """Switch a model on or off; running processes see it when they refresh."""
    settings = read_json(directory / SETTINGS) | {"enabled": enabled}
    partial = directory / f".{SETTINGS}.partial"
    partial.write_text(json.dumps(settings, indent=2) + "\n")
    partial.replace(directory / SETTINGS)  # at once: a server may be reading


def write_checksums(directory: Path) -> None:
    """Write `SHA256SUMS` of the served files, in the format of `sha256sum --check`."""
    sums = checksums(directory)
    (directory / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def verify(directory: Path) -> list[str]:
    """Names of served files that differ from `SHA256SUMS`, are missing, or are not in it.

    Raises:
        ModelFormatError: there is no `SHA256SUMS`.
    """
    path = directory / CHECKSUMS
    if not path.is_file():
        raise ModelFormatError(f"{directory} has no {CHECKSUMS}")
    lines = (line.partition("  ") for line in path.read_text("utf-8", errors="replace").splitlines())
    expected = {name: digest for digest, _, name in lines}
    found = checksums(directory)
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def checksums(directory: Path) -> dict[str, str]:
    """SHA-256 by name of every file that decides what the model answers."""
    return {path.relative_to(directory).as_posix(): _sha256(path) for path in served_files(directory)}


def served_files(directory: Path) -> list[Path]:
    """The files that decide what a model answers, by name."""
    weights = (directory / name for name in weight_names(directory) if Path(name).name == name)
    described = (path for pattern in SERVED_FILES for path in directory.glob(pattern))
    return sorted({*described, *(path for path in weights if path.is_file())})


def weight_names(directory: Path) -> list[str]:
    """The files that hold the weights, as the directory itself says; other copies may lie beside them.

    Not checked: an index may name anything.
    """
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    places = read_json(directory / INDEX).get("weight_map")
    return sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []


def token_ids(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - JSON's
    """Hugging Face writes one id, a list of ids, or nothing.

    Raises:
        ModelFormatError: it is none of these.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and each >= 0 for each in ids):
        raise ModelFormatError(f"token ids are not {value!r}")
    return tuple(ids)


def _read_card(directory: Path) -> ModelCard:
    config = read_json(directory / "config.json")
    if not config:
        raise ModelFormatError(f"{directory} has no config.json")
    generation = read_json(directory / "generation_config.json")
    settings = read_json(directory / SETTINGS)
    kind = _kind(config, directory)
    vocab_size = _integer(config, "vocab_size", directory)
    labels = read_labels(config) if kind == "classification" else ()
    is_multi_label = kind == "classification" and config.get("problem_type") == bert_config.MULTI_LABEL
    return ModelCard(
        name=directory.name,
        kind=kind,
        path=directory,
        digest=_digest(directory),
        context_length=_context_length(config, directory),
        vocab_size=vocab_size,
        labels=labels,
        embedding_size=_embedding_size(config, directory) if kind == "embedding" else 0,
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=_end_token_ids(config, generation, vocab_size),
        chat_template=read_chat_template(directory),
        created=int(settings.get("created") or (directory / "config.json").stat().st_mtime),
        license=settings.get("license"),
        description=str(settings.get("description", "")),
        enabled=bool(settings.get("enabled", True)),
        is_multi_label=is_multi_label,
        thresholds=read_thresholds(config, labels) if is_multi_label else (),
        dimensions=tuple(config.get(DIMENSIONS) or ()) if kind == "embedding" else (),
        precision=_precision(settings, directory),
    )


def _end_token_ids(config: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Those of `generation_config.json`, which chat models end their turns with, or else of `config.json`."""
    given = generation.get("eos_token_id")
    ids = token_ids(config.get("eos_token_id") if given is None else given)
    if max(ids, default=0) >= vocab_size:
        raise ModelFormatError(f"eos_token_id {max(ids)} is not below vocab_size {vocab_size}")
    return ids


def _kind(config: Mapping[str, Any], directory: Path) -> str:
    architecture = next(iter(config.get("architectures") or ()), "")
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "generation"
    if architecture.endswith("Model"):
        return "embedding"
    raise ModelFormatError(
        f"{directory / 'config.json'}: architecture {architecture!r} neither generates, classifies nor embeds"
    )


def _precision(settings: Mapping[str, Any], directory: Path) -> str | None:
    precision = settings.get("precision")
    if precision not in (None, *PRECISIONS):
        raise ModelFormatError(f"{directory / SETTINGS}: precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def _context_length(config: Mapping[str, Any], directory: Path) -> int:
    if config.get("model_type") in bert_config.LAYOUTS:
        return bert_config.context_length(config, directory)
    return _integer(config, CONTEXT_FIELDS.get(config.get("model_type", ""), CONTEXT_FIELD), directory)


def _embedding_size(config: Mapping[str, Any], directory: Path) -> int:
    return _integer(config, "dim" if config.get("model_type") == "distilbert" else "hidden_size", directory)


def _integer(config: Mapping[str, Any], field: str, directory: Path) -> int:
    value = config.get(field)
    if not isinstance(value, int):
        raise ModelFormatError(f"{directory / 'config.json'}: {field} is missing or not an integer")
    return value


def _digest(directory: Path) -> str:
    """From the recorded sums where they exist: hashing large weights at every start costs minutes."""
    path = directory / CHECKSUMS
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    sums = ((file.relative_to(directory).as_posix(), file.stat()) for file in served_files(directory))
    listing = "".join(
        f"{_sha256_while(directory / name, stat.st_size, stat.st_mtime_ns)}  {name}\n" for name, stat in sums
    )
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1024)
def _sha256_while(path: Path, size: int, changed_ns: int) -> str:
    """Remembered while the file stays as it is: a server reads its models again every few seconds."""
    del size, changed_ns
    return _sha256(path)
