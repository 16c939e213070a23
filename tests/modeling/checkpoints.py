"""Tiny random models in Hugging Face layout, made on the spot."""

from pathlib import Path
from typing import Literal

import numpy as np

from app.modeling import checkpoint
from app.modeling.bert_config import BertConfig
from app.modeling.decoder_config import DecoderConfig
from app.modeling.encoder import EncoderConfig
from app.modeling.gru import GruConfig
from app.training.vocabulary import train_classification_tokenizer, train_generation_tokenizer

TEXTS = ("the quick brown fox jumps over the lazy dog", "床前明月光，疑是地上霜。", "naïve café, déjà vu 🎉")  # noqa: RUF001


def decoder_config(*, tied: bool = True, context_length: int = 64) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context_length=context_length,
        tie_embeddings=tied,
        bos_token_id=0,
        eos_token_ids=(0,),
    )


def gru_config() -> GruConfig:
    return GruConfig(
        vocab_size=300,
        embedding_size=16,
        hidden_size=24,
        num_layers=2,
        context_length=64,
        bos_token_id=0,
        eos_token_ids=(0,),
    )


def encoder_config() -> EncoderConfig:
    return EncoderConfig(
        vocab_size=300, hidden_size=16, num_filters=8, kernel_sizes=(1, 3), context_length=32, labels=("no", "yes")
    )


def bert_config(pooling: Literal["mean", "cls"] | None = None) -> BertConfig:
    """Wide enough that products take the ways they take in real models."""
    return BertConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_positions=40,
        first_position=0,
        num_token_types=2,
        context_length=40,
        norm_eps=1e-12,
        activation="gelu",
        head_activation="tanh",
        labels=() if pooling else ("no", "yes"),
        pooling=pooling,
    )


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Values large enough that a wrong one shows in the logits."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_decoder(directory: Path, *, tied: bool = True) -> dict[str, np.ndarray]:
    """A generation model that can be served; returns its weights."""
    config = decoder_config(tied=tied)
    directory.mkdir(parents=True, exist_ok=True)
    train_generation_tokenizer(TEXTS, config.vocab_size).save(str(directory / "tokenizer.json"))
    weights = random_weights(config.shapes)
    checkpoint.save(directory, config.to_hf(), weights)
    return weights


def write_gru(directory: Path) -> dict[str, np.ndarray]:
    """A recurrent generation model; returns its weights."""
    config = gru_config()
    directory.mkdir(parents=True, exist_ok=True)
    train_generation_tokenizer(TEXTS, config.vocab_size).save(str(directory / "tokenizer.json"))
    weights = random_weights(config.shapes)
    checkpoint.save(directory, config.to_hf(), weights)
    return weights


def write_encoder(directory: Path) -> dict[str, np.ndarray]:
    """A classification model that can be served; returns its weights."""
    config = encoder_config()
    directory.mkdir(parents=True, exist_ok=True)
    train_classification_tokenizer(TEXTS, config.vocab_size).save(str(directory / "tokenizer.json"))
    weights = random_weights(config.shapes)
    checkpoint.save(directory, config.to_hf(), weights)
    return weights
