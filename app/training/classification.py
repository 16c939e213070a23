"""`tollgate train classification`: from labelled texts to a published classifier.

Whether one label of a text holds or any number of them, the data says; the pipeline is
the same, and what differs is in `scoring.py`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from tokenizers import Tokenizer

from app.errors import ConfigError
from app.modeling.encoder import EncoderConfig
from app.modeling.labels import DEFAULT_THRESHOLD
from app.training.baselines import commonest_labels, linear_svm_predictions, majority_accuracy
from app.training.classifier import (
    build_network,
    build_optimizer,
    encode_texts,
    fold_temperature,
    predict_logits,
    sample_batch,
)
from app.training.examples import Example, ExampleSet, LabelledSplit, read_examples, split_examples
from app.training.network import Network
from app.training.publish import Artefact, Provenance, publish
from app.training.scoring import (
    OneLabel,
    Scoring,
    SeveralLabels,
    abstention,
    fit_temperature,
    fit_thresholds,
    label_metrics,
    set_metrics,
)
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
    config = _encoder_config(options, tokenizer.get_vocab_size(), examples)
    network = build_network(config, options.dropout, options.seed)
    run_dir = runs_dir / f"{out.name}-{_fingerprint(options, config, split)}"
    progression = _fit(options, config, network, tokenizer, split, run_dir, console)
    config, temperature = _calibrate(config, network, tokenizer, split.dev)
    evaluation = _evaluate(options, config, network, tokenizer, split, progression, temperature)
    publish(
        out,
        _artefact(config, fold_temperature(network.export_weights(), temperature), tokenizer, evaluation, provenance),
    )
    return evaluation


def scoring_of(thresholds: tuple[float, ...]) -> Scoring:
    """How a model is judged; thresholds are those of a multi-label model, others have none."""
    return SeveralLabels(thresholds) if thresholds else OneLabel()


def targets_of(labels: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
    """Which labels hold, `[N, L]` float32."""
    place = {label: index for index, label in enumerate(labels)}
    targets = np.zeros((len(examples), len(labels)), np.float32)
    for row, example in enumerate(examples):
        targets[row, [place[label] for label in example.labels]] = 1.0
    return targets


def _encoder_config(options: ClassificationOptions, vocab_size: int, examples: ExampleSet) -> EncoderConfig:
    labels = examples.labels
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=options.width,
        num_filters=options.filters,
        kernel_sizes=options.kernel_sizes,
        context_length=options.context,
        labels=labels,
        thresholds=(DEFAULT_THRESHOLD,) * len(labels) if examples.is_multi_label else (),
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
    targets = targets_of(config.labels, split.train)
    dev_inputs = encode_texts(tokenizer, [example.text for example in split.dev], options.context)
    dev_targets = targets_of(config.labels, split.dev)
    scoring = scoring_of(config.thresholds)
    steps_per_epoch = max(1, len(split.train) // options.batch)
    steps = options.epochs * steps_per_epoch
    network.compile(
        build_optimizer(options.learning_rate, steps),
        _loss(options, config),
        jit_compile="auto" if tf.config.list_physical_devices("GPU") else False,
    )
    network.optimizer.build(network.trainable_variables)
    predict = network.predictor()

    def dev_loss() -> float:
        """At the best temperature, so that smoothing and confidence do not decide which step is best."""
        logits = predict_logits(predict, dev_inputs)
        return scoring.loss(logits / fit_temperature(scoring, logits, dev_targets), dev_targets)

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


def _loss(options: ClassificationOptions, config: EncoderConfig) -> keras.losses.Loss:
    if config.is_multi_label:  # unsmoothed: rare labels would be drawn up, which no temperature mends
        return keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=options.label_smoothing)


def _calibrate(
    config: EncoderConfig, network: Network, tokenizer: Tokenizer, dev: tuple[Example, ...]
) -> tuple[EncoderConfig, float]:
    """The temperature, and the configuration with the thresholds that are best after it."""
    inputs = encode_texts(tokenizer, [example.text for example in dev], config.context_length)
    logits, targets = predict_logits(network.predictor(), inputs), targets_of(config.labels, dev)
    temperature = fit_temperature(scoring_of(config.thresholds), logits, targets)
    thresholds = fit_thresholds(logits / temperature, targets) if config.is_multi_label else ()
    return replace(config, thresholds=thresholds), temperature


def _evaluate(
    options: ClassificationOptions,
    config: EncoderConfig,
    network: Network,
    tokenizer: Tokenizer,
    split: LabelledSplit,
    progression: Progression,
    temperature: float,
) -> dict[str, Any]:
    inputs = encode_texts(tokenizer, [example.text for example in split.test], config.context_length)
    logits = predict_logits(network.predictor(), inputs) / temperature
    scoring, targets = scoring_of(config.thresholds), targets_of(config.labels, split.test)
    return {
        "task": "classification",
        "split": {
            "description": f"Held out: {len(split.test):,} texts, none of them in training; "
            "accuracy and F1 higher, calibration error and loss lower is better."
            + (" Accurate is a text with all its labels right." if config.is_multi_label else ""),
            "train_texts": len(split.train),
            "dev_texts": len(split.dev),
            "test_texts": len(split.test),
            "labels": len(config.labels),
        },
        "metrics": scoring.metrics(logits, targets),
        "baselines": _baselines(config, split),
        "abstention": abstention(scoring, logits, targets),
        "training": {
            "options": asdict(options),
            "temperature": round(temperature, 4),
            "thresholds": dict(zip(config.labels, config.thresholds, strict=False)),
            "best_step": progression.best_step,
            "seconds": round(progression.seconds),
            "history": progression.history,
        },
    }


def _baselines(config: EncoderConfig, split: LabelledSplit) -> dict[str, dict[str, float]]:
    """Trained on train and development together, as they need no early stopping."""
    known, texts = (*split.train, *split.dev), [example.text for example in split.test]
    train, truths = targets_of(config.labels, known), targets_of(config.labels, split.test)
    known_texts = [example.text for example in known]
    if config.is_multi_label:
        commonest = np.tile(commonest_labels(train), (len(texts), 1))
        return {
            "commonest labels": set_metrics(commonest, truths),
            "linear SVM": set_metrics(linear_svm_predictions(known_texts, train, texts), truths),
        }
    classes, majority = train.argmax(axis=1), majority_accuracy(train, truths)
    predicted = linear_svm_predictions(known_texts, classes, texts)
    return {
        "majority label": {"accuracy": round(majority, 4)},
        "linear SVM": label_metrics(predicted, truths.argmax(axis=1)),
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


def _fingerprint(options: ClassificationOptions, config: EncoderConfig, split: LabelledSplit) -> str:
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    digest.update(b"any number of labels" if config.is_multi_label else b"")
    for example in (*split.train, *split.dev):
        digest.update(f"{chr(31).join(example.labels)}\0{example.text}\0".encode())
    return digest.hexdigest()[:12]


def _report(console: Console, data: ExampleSet, split: LabelledSplit) -> None:
    console.print(
        f"{data.num_read:,} examples of {len(data.labels)} labels read; {data.num_duplicates:,} duplicates, "
        f"{data.num_conflicts:,} with contradicting labels and {split.num_leaked:,} that are test texts left out: "
        f"{len(split.train):,} to train, {len(split.dev):,} for development, {len(split.test):,} held out"
    )
