"""`tollgate train generation`: from documents to a published decoder."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from tokenizers import Tokenizer

from app.errors import ConfigError
from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.training.architectures import (
    LEARNING_RATES,
    SIZES,
    Architecture,
    build_network,
    complete_sizes,
    decoder_config,
)
from app.training.baselines import ngram_nats_per_character
from app.training.corpus import Corpus, Split, read_corpus, split_corpus
from app.training.language_model import (
    END_OF_TEXT_ID,
    StreamLoss,
    build_optimizer,
    encode_documents,
    measure_stream,
    sample_windows,
)
from app.training.network import Network
from app.training.publish import Artefact, Provenance, publish
from app.training.trainer import Progression, Schedule, Trainer
from app.training.vocabulary import END_OF_TEXT, train_generation_tokenizer

BASELINE_ORDERS = (1, 2, 5)
SIZE_OPTIONS = sorted({option for sizes in SIZES.values() for option in sizes})


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Everything that decides a run; equal options and data give equal weights on one machine.

    Attributes:
        architecture: one of `architectures.ARCHITECTURES`; what is None is as it takes it.
        context: tokens of prompt and output together that will be served.
        window: tokens of a training example; a transformer's is its context.
        batch: windows in a step.
    """

    architecture: Architecture = "transformer"
    text_field: str = "text"
    vocab_size: int = 512
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    embedding: int | None = None
    context: int = 256
    window: int | None = None
    batch: int | None = None
    steps: int = 2500
    eval_every: int = 100
    patience: int = 8
    dropout: float = 0.2
    learning_rate: float | None = None
    test_fraction: float = 0.1
    dev_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        complete_sizes(self.architecture, self._given_sizes)
        if self.vocab_size <= 256 + 1:
            raise ConfigError("--vocab-size must exceed 257: the bytes and the end of text")

    @property
    def sizes(self) -> dict[str, int]:
        """Those that the architecture has, all of them, by option."""
        return complete_sizes(self.architecture, self._given_sizes)

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Windows in a step, and tokens in each."""
        return self.sizes["batch"], self.sizes.get("window", self.context)

    @property
    def peak_learning_rate(self) -> float:
        """As given or else as the architecture takes it."""
        return LEARNING_RATES[self.architecture] if self.learning_rate is None else self.learning_rate

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides the run, defaults filled in."""
        others = {name: value for name, value in asdict(self).items() if name not in self._given_sizes}
        return others | self.sizes | {"learning_rate": self.peak_learning_rate}

    @property
    def _given_sizes(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in SIZE_OPTIONS}


def train_generation(
    options: GenerationOptions, data: Path, out: Path, runs_dir: Path, provenance: Provenance, console: Console
) -> dict[str, Any]:
    """Train, evaluate and publish; continues an unfinished run of the same options and data.

    Returns:
        The evaluation, as in `eval.json`.

    Raises:
        DataError: the data is unusable.
    """
    corpus = read_corpus(data, options.text_field)
    split = split_corpus(corpus, options.test_fraction, options.dev_fraction)
    _report(console, corpus, split)
    tokenizer = train_generation_tokenizer(split.train, options.vocab_size)
    config = decoder_config(
        options.architecture, options.sizes, tokenizer.get_vocab_size(), options.context, END_OF_TEXT_ID
    )
    network = build_network(config, options.dropout, options.seed)
    run_dir = runs_dir / f"{out.name}-{_fingerprint(options, split)}"
    progression = _fit(options, network, tokenizer, split, run_dir, console)
    evaluation = _evaluate(options, network, tokenizer, split, progression)
    publish(out, _artefact(config, network, tokenizer, evaluation, provenance))
    return evaluation


def evaluate_documents(
    predict: Callable[[np.ndarray], tf.Tensor],
    tokenizer: Tokenizer,
    documents: tuple[str, ...],
    context: int,
    begin_id: int = END_OF_TEXT_ID,
    end_id: int = END_OF_TEXT_ID,
) -> dict[str, float]:
    """Nats, bits and perplexity of documents under a model.

    Args:
        predict: tokens `[B, context]` to logits `[B, context, V]`.
        tokenizer: of the model.
        documents: cleaned texts; each counts one separator character.
        context: window in tokens.
        begin_id: stands before every window.
        end_id: stands between documents.
    """
    stream = encode_documents(tokenizer, documents, context, begin_id, end_id)
    num_bytes = sum(len(document.encode()) + 1 for document in documents)
    return _metrics(measure_stream(predict, stream, context), num_bytes)


def _metrics(loss: StreamLoss, num_bytes: int) -> dict[str, float]:
    return {
        "nats_per_character": round(loss.nats_per_character, 4),
        "bits_per_character": round(loss.nats_per_character / math.log(2), 4),
        "bits_per_byte": round(loss.total_nats / num_bytes / math.log(2), 4),
        "perplexity_per_token": round(math.exp(loss.nats_per_token), 3),
    }


def _fit(
    options: GenerationOptions, network: Network, tokenizer: Tokenizer, split: Split, run_dir: Path, console: Console
) -> Progression:
    batch, window = options.batch_shape
    train = encode_documents(tokenizer, split.train, window)
    dev = encode_documents(tokenizer, split.dev, options.context)
    if not len(train.entries):
        option = "window" if "window" in options.sizes else "context"
        raise ConfigError(f"the training text is shorter than one {option} of {window} tokens; lower --{option}")
    network.compile(
        build_optimizer(options.peak_learning_rate, options.steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile="auto" if tf.config.list_physical_devices("GPU") else False,
    )
    network.optimizer.build(network.trainable_variables)
    predict = network.predictor()
    return Trainer(
        network,
        batches=lambda step: sample_windows(train, batch, window, options.seed, step),
        evaluate=lambda: measure_stream(predict, dev, options.context).nats_per_character,
        schedule=Schedule(options.steps, options.eval_every, options.patience),
        run_dir=run_dir,
        items_per_batch=batch * window,
        unit="tokens",
        console=console,
    ).fit()


def _evaluate(
    options: GenerationOptions, network: Network, tokenizer: Tokenizer, split: Split, progression: Progression
) -> dict[str, Any]:
    train, test = "\n".join((*split.dev, *split.train)), "\n".join(split.test)
    return {
        "task": "generation",
        "split": {
            "description": f"Held out: the last {options.test_fraction:.0%} of the characters, in order "
            f"({len(test):,} of {len(train) + len(test):,}); lower is better.",
            "train_characters": len("\n".join(split.train)),
            "dev_characters": len("\n".join(split.dev)),
            "test_characters": len(test),
        },
        "metrics": evaluate_documents(network.predictor(), tokenizer, split.test, options.context),
        "baselines": {
            f"character {order}-gram": {"nats_per_character": round(ngram_nats_per_character(train, test, order), 4)}
            for order in BASELINE_ORDERS
        },
        "training": {
            "options": options.recorded,
            "best_step": progression.best_step,
            "seconds": round(progression.seconds),
            "history": progression.history,
        },
    }


def _artefact(
    config: DecoderConfig | GruConfig,
    network: Network,
    tokenizer: Tokenizer,
    evaluation: dict[str, Any],
    provenance: Provenance,
) -> Artefact:
    return Artefact(
        config=config.to_hf(),
        weights=network.export_weights(),
        tokenizer=tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": config.context_length,
            "clean_up_tokenization_spaces": False,
        },
        generation_config={"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "do_sample": True},
        evaluation=evaluation,
        provenance=provenance,
    )


def _fingerprint(options: GenerationOptions, split: Split) -> str:
    digest = hashlib.sha256(json.dumps(options.recorded, sort_keys=True).encode())
    for document in (*split.dev, "", *split.train):
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()[:12]


def _report(console: Console, corpus: Corpus, split: Split) -> None:
    parts = (sum(len(document) + 1 for document in part) for part in (split.train, split.dev, split.test))
    train, dev, test = (f"{count:,}" for count in parts)
    console.print(
        f"{corpus.num_read:,} documents read; {corpus.num_empty:,} empty and {corpus.num_duplicates:,} duplicate left "
        f"out. Characters: {train} to train, {dev} for development, {test} held out."
    )
