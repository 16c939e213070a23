"""`tollgate train classification`: from labelled texts to a published classifier."""

import hashlib
import json
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
from app.modeling.bert_config import BertConfig
from app.modeling.encoder import EncoderConfig
from app.training.baselines import linear_svm_predictions, majority_accuracy
from app.training.classifier import (
    Tokens,
    build_network,
    build_optimizer,
    cross_entropy,
    encode_texts,
    fit_temperature,
    fold_temperature,
    label_metrics,
    metrics,
    predict_logits,
    sample_batch,
)
from app.training.examples import Example, ExampleSet, LabelledSplit, read_examples, split_examples
from app.training.network import Network
from app.training.publish import Artefact, Provenance, publish
from app.training.trainer import Progression, Schedule, Trainer
from app.training.vocabulary import PADDING, train_classification_tokenizer


@dataclass(frozen=True, slots=True)
class ClassificationOptions:
    """Everything that decides a run; equal options and data give equal weights on one machine."""

    text_field: str = "text"
    label_field: str = "label"
    vocab_size: int = 2048
    width: int = 128
    filters: int = 128
    kernel_sizes: tuple[int, ...] = (1, 2, 3, 4)
    context: int = 128
    batch: int = 64
    epochs: int = 20
    patience: int = 6
    dropout: float = 0.4
    token_dropout: float = 0.1
    label_smoothing: float = 0.1
    learning_rate: float = 2e-3
    test_fraction: float = 0.1
    dev_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size <= 256 + 1:
            raise ConfigError("--vocab-size must exceed 257: the bytes and the padding")


def train_classification(
    options: ClassificationOptions,
    data: Path,
    test: Path | None,
    out: Path,
    runs_dir: Path,
    provenance: Provenance,
    console: Console,
) -> dict[str, Any]:
    """Train, calibrate, evaluate and publish; continues an unfinished run of the same options and data.

    Returns:
        The evaluation, as in `eval.json`.

    Raises:
        DataError: the data is unusable.
    """
    examples = read_examples(data, options.text_field, options.label_field)
    held_out = read_examples(test, options.text_field, options.label_field) if test else None
    split = split_examples(examples, held_out, options.test_fraction, options.dev_fraction, options.seed)
    _report(console, examples, split)
    tokenizer = train_classification_tokenizer((example.text for example in split.train), options.vocab_size)
    config = _encoder_config(options, tokenizer.get_vocab_size(), examples.labels)
    network = build_network(config, options.dropout, options.seed)
    run_dir = runs_dir / f"{out.name}-{_fingerprint(options, split)}"
    progression = _fit(options, config, network, tokenizer, split, run_dir, console)
    temperature = _fit_temperature(config, network, tokenizer, split.dev)
    evaluation = _evaluate(options, config, network, tokenizer, split, progression, temperature)
    publish(
        out,
        _artefact(config, fold_temperature(network.export_weights(), temperature), tokenizer, evaluation, provenance),
    )
    return evaluation


def evaluate_examples(
    predict: Callable[[Tokens], tf.Tensor],
    tokenizer: Tokenizer,
    config: EncoderConfig | BertConfig,
    examples: tuple[Example, ...],
) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error and loss of a calibrated model on labelled texts."""
    inputs = encode_texts(tokenizer, [example.text for example in examples], config.context_length)
    return metrics(predict_logits(predict, inputs), _classes(config, examples))


def _encoder_config(options: ClassificationOptions, vocab_size: int, labels: tuple[str, ...]) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=options.width,
        num_filters=options.filters,
        kernel_sizes=options.kernel_sizes,
        context_length=options.context,
        labels=labels,
    )


def _fit(
    options: ClassificationOptions,
    config: EncoderConfig,
    network: Network,
    tokenizer: Tokenizer,
    split: LabelledSplit,
    run_dir: Path,
    console: Console,
) -> Progression:
    inputs = encode_texts(tokenizer, [example.text for example in split.train], options.context)
    targets = np.eye(len(config.labels), dtype=np.float32)[_classes(config, split.train)]
    dev_inputs = encode_texts(tokenizer, [example.text for example in split.dev], options.context)
    dev_classes = _classes(config, split.dev)
    steps_per_epoch = max(1, len(split.train) // options.batch)
    steps = options.epochs * steps_per_epoch
    network.compile(
        build_optimizer(options.learning_rate, steps),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=options.label_smoothing),
        jit_compile="auto" if tf.config.list_physical_devices("GPU") else False,
    )
    network.optimizer.build(network.trainable_variables)
    predict = network.predictor()

    def dev_loss() -> float:
        """At the best temperature, so that smoothing and confidence do not decide which step is best."""
        logits = predict_logits(predict, dev_inputs)
        return cross_entropy(logits / fit_temperature(logits, dev_classes), dev_classes)

    return Trainer(
        network,
        batches=lambda step: sample_batch(inputs, targets, options.batch, options.token_dropout, options.seed, step),
        evaluate=dev_loss,
        schedule=Schedule(steps, steps_per_epoch, options.patience),
        run_dir=run_dir,
        items_per_batch=options.batch,
        unit="texts",
        console=console,
    ).fit()


def _fit_temperature(config: EncoderConfig, network: Network, tokenizer: Tokenizer, dev: tuple[Example, ...]) -> float:
    inputs = encode_texts(tokenizer, [example.text for example in dev], config.context_length)
    return fit_temperature(predict_logits(network.predictor(), inputs), _classes(config, dev))


def _evaluate(
    options: ClassificationOptions,
    config: EncoderConfig,
    network: Network,
    tokenizer: Tokenizer,
    split: LabelledSplit,
    progression: Progression,
    temperature: float,
) -> dict[str, Any]:
    predict = network.predictor()
    return {
        "task": "classification",
        "split": {
            "description": f"Held out: {len(split.test):,} texts, none of them in training; "
            "accuracy and F1 higher, calibration error and loss lower is better.",
            "train_texts": len(split.train),
            "dev_texts": len(split.dev),
            "test_texts": len(split.test),
            "labels": len(config.labels),
        },
        "metrics": evaluate_examples(lambda inputs: predict(inputs) / temperature, tokenizer, config, split.test),
        "baselines": _baselines(config, split),
        "training": {
            "options": asdict(options),
            "temperature": round(temperature, 4),
            "best_step": progression.best_step,
            "seconds": round(progression.seconds),
            "history": progression.history,
        },
    }


def _baselines(config: EncoderConfig, split: LabelledSplit) -> dict[str, dict[str, float]]:
    """Trained on train and development together, as they need no early stopping."""
    known = (*split.train, *split.dev)
    predicted = linear_svm_predictions([(e.text, e.label) for e in known], [e.text for e in split.test])
    place = {label: index for index, label in enumerate(config.labels)}
    majority = majority_accuracy([e.label for e in known], [e.label for e in split.test])
    return {
        "majority label": {"accuracy": round(majority, 4)},
        "linear SVM": label_metrics(np.array([place[label] for label in predicted]), _classes(config, split.test)),
    }


def _artefact(
    config: EncoderConfig,
    weights: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    evaluation: dict[str, Any],
    provenance: Provenance,
) -> Artefact:
    return Artefact(
        config=config.to_hf(),
        weights=weights,
        tokenizer=tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PADDING,
            "model_max_length": config.context_length,
            "clean_up_tokenization_spaces": False,
        },
        generation_config=None,
        evaluation=evaluation,
        provenance=provenance,
    )


def _classes(config: EncoderConfig | BertConfig, examples: tuple[Example, ...]) -> np.ndarray:
    place = {label: index for index, label in enumerate(config.labels)}
    return np.array([place[example.label] for example in examples], np.int64)


def _fingerprint(options: ClassificationOptions, split: LabelledSplit) -> str:
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    for example in (*split.train, *split.dev):
        digest.update(f"{example.label}\0{example.text}\0".encode())
    return digest.hexdigest()[:12]


def _report(console: Console, data: ExampleSet, split: LabelledSplit) -> None:
    console.print(
        f"{data.num_read:,} examples of {len(data.labels)} labels read; {data.num_duplicates:,} duplicates, "
        f"{data.num_conflicts:,} with contradicting labels and {split.num_leaked:,} that are test texts left out: "
        f"{len(split.train):,} to train, {len(split.dev):,} for development, {len(split.test):,} held out"
    )
