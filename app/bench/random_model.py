"""A model of given sizes with random weights, as a Hugging Face directory that anybody can read.

Speed does not depend on what the weights are. Its tokens are words, `t0` to `t31999`,
so an answer's text says which tokens were sampled; it has no end token, so an answer
is as long as was asked for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from app.modeling import checkpoint
from app.modeling.decoder_config import DecoderConfig
from app.modeling.registry import write_checksums

# The usual one for such networks: initializer_range of Hugging Face's LlamaConfig.
DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder of the Llama layout."""

    layers: int = 12
    width: int = 768
    feed_forward: int = 2048
    heads: int = 12
    key_heads: int = 12
    vocab: int = 32_000
    context: int = 1024
    tied: bool = False

    @property
    def config(self) -> DecoderConfig:
        """As the engine names them."""
        return DecoderConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.key_heads,
            head_dim=self.width // self.heads,
            context_length=self.context,
            tie_embeddings=self.tied,
        )

    @property
    def num_parameters(self) -> int:
        """Of all tensors together."""
        return sum(int(np.prod(shape)) for shape in self.config.shapes.values())


def random_weights(config: DecoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 arrays by Hugging Face name: norms are ones, biases none, the rest normal around zero."""
    rng = np.random.default_rng(seed)
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.standard_normal(shape, np.float32) * np.float32(DEVIATION)
        for name, shape in config.shapes.items()
    }


def write_random_model(directory: Path, sizes: Sizes, seed: int = 0) -> None:
    """Write weights, configuration and tokenizer."""
    config = sizes.config
    raw = {name: value for name, value in config.to_hf().items() if name not in {"bos_token_id", "eos_token_id"}}
    checkpoint.save(directory, raw, random_weights(config, seed))
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(sizes.vocab)}, unk_token="t0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": sizes.context}) + "\n")
    write_checksums(directory)


def tokens_of(text: str) -> list[int]:
    """The tokens that a random model's answer shows."""
    return [int(word.removeprefix("t")) for word in text.split()]
