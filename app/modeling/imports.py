"""Bring a Hugging Face directory into MODELS_DIR, and try a model out.

An import is checked before it is kept: tokenizer, configuration, every tensor's
name and shape, and one run of the network. Nothing of it is changed.
"""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from app.errors import ConfigError, ModelFormatError
from app.modeling import bert, checkpoint, encoder, registry
from app.modeling.bert_config import BertConfig
from app.modeling.decoder_config import DecoderConfig
from app.modeling.family import family_of
from app.modeling.gru import GruConfig
from app.modeling.tokenizer import Tokenizer

SMOKE_TOKENS = 8
SMOKE_NUMBERS = 3


@dataclass(frozen=True, slots=True)
class SmokeRun:
    """What a model did with one short input.

    Attributes:
        summary: the text that it continued with, the label that it chose, or how its vector begins.
        num_parameters: of all tensors.
    """

    summary: str
    num_parameters: int


def import_model(source: Path, models_dir: Path, name: str) -> SmokeRun:
    """Copy the served files of a model to `models_dir / name`, with checksums.

    Raises:
        ConfigError: the name is taken or not usable as a folder's name.
        ModelFormatError: the directory is not a model that can be served; names the fault.
    """
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise ConfigError(f"'{name}' is not a usable name: letters, digits, '-', '_' and '.' only")
    target = models_dir / name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another --name or remove it first")
    partial = models_dir / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file in registry.served_files(source):
            copy = partial / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(file, copy)
        result = smoke_run(partial)
        settings = {
            "enabled": True,
            "created": int(time.time()),
            "license": None,
            "description": f"Imported as {name}.",
        }
        (partial / registry.SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        registry.write_checksums(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def smoke_run(directory: Path) -> SmokeRun:
    """Load everything and run the network once, without compiling it.

    Raises:
        ModelFormatError: something does not fit, or the result is not finite.
    """
    card = registry.read_card(directory)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > card.vocab_size:
        raise ModelFormatError(f"tokenizer.json numbers {tokenizer.vocab_size} tokens, config.json {card.vocab_size}")
    tokenizer.check_chat_template()
    model = checkpoint.load(directory)
    num_parameters = sum(int(value.size) for value in model.weights.values())
    if isinstance(model.config, BertConfig):
        model = replace(model, weights=bert.prepare(model.config, model.weights))
    weights = {name: tf.constant(value) for name, value in model.weights.items()}
    if isinstance(model.config, BertConfig):
        return SmokeRun(_read(model.config, weights, tokenizer), num_parameters)
    if isinstance(model.config, encoder.EncoderConfig):
        return SmokeRun(_classify(model.config, weights, tokenizer), num_parameters)
    return SmokeRun(_generate(model.config, weights, tokenizer, card), num_parameters)


def _classify(config: encoder.EncoderConfig, weights: dict[str, tf.Tensor], tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode("Hello")[: config.context_length] or [encoder.PAD_ID]
    logits = encoder.classify(config, weights, tf.constant([ids]), tf.constant([len(ids)]))
    return config.labels[int(np.argmax(_finite(logits)))]


def _read(config: BertConfig, weights: dict[str, tf.Tensor], tokenizer: Tokenizer) -> str:
    """The chosen label, or the beginning of an embedding."""
    ids = tokenizer.encode("Hello")[: config.context_length] or [0]
    run = bert.embed if config.pooling else bert.classify
    row = _finite(run(config, weights, tf.constant([ids]), tf.constant([len(ids)])))[0]
    if config.pooling is None:
        return config.labels[int(np.argmax(row))]
    return " ".join(f"{value:.3f}" for value in row[:SMOKE_NUMBERS]) + " …"


def _generate(
    config: DecoderConfig | GruConfig, weights: dict[str, tf.Tensor], tokenizer: Tokenizer, card: registry.ModelCard
) -> str:
    forward = family_of(config).forward
    prompt = tokenizer.encode("") or [card.bos_token_id or 0]
    ids = list(prompt)
    for _ in range(SMOKE_TOKENS):
        logits = forward(config, weights, tf.constant([ids]))
        ids.append(int(np.argmax(_finite(logits)[0, -1])))
    return tokenizer.decode(ids[len(prompt) :])


def _finite(logits: tf.Tensor) -> np.ndarray:
    values = np.asarray(logits)
    if not np.isfinite(values).all():
        raise ModelFormatError("the network's output is not finite; the weights are damaged")
    return values
