"""Models of given sizes with random weights, as Hugging Face directories that anybody can read.

Speed does not depend on what the weights are. A decoder's tokens are words, `t0` to
`t31999`, so an answer's text says which tokens were sampled; it has no end token, so an
answer is as long as was asked for. A classifier's words are `w0` and so on, one token each.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from app.modeling import bert_config, checkpoint
from app.modeling.bert_config import BertConfig
from app.modeling.decoder_config import DecoderConfig
from app.modeling.registry import write_checksums

# The usual one for such networks: initializer_range of Hugging Face's LlamaConfig.
DEVIATION = 0.02
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


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


@dataclass(frozen=True, slots=True)
class TextSizes:
    """Of a classifier of BERT's layout; by default those of BERT-mini (Turc et al. 2019)."""

    layers: int = 4
    width: int = 256
    feed_forward: int = 1024
    heads: int = 4
    vocab: int = 30_522
    context: int = 512
    labels: int = 4

    @property
    def num_words(self) -> int:
        """Tokens that are not special."""
        return self.vocab - len(SPECIAL)

    @property
    def hf(self) -> dict[str, Any]:
        """As `config.json` has them."""
        names = [f"L{i}" for i in range(self.labels)]
        return {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.context,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "pad_token_id": SPECIAL.index("[PAD]"),
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }


def write_random_classifier(directory: Path, sizes: TextSizes, seed: int = 0) -> None:
    """Write weights, configuration and tokenizer; scores differ from text to text."""
    config, names, rng = (
        BertConfig.from_hf(sizes.hf, directory),
        bert_config.LAYOUTS["bert"].names,
        np.random.default_rng(seed),
    )
    weights = {}
    for name, shape in config.shapes.items():
        # Of an inner width's inverse root, so that states neither fade nor grow and every layer shows in a score.
        scale = 0.0 if len(shape) == 1 else DEVIATION if "embeddings" in name else shape[1] ** -0.5
        value = rng.standard_normal(shape, np.float32) * np.float32(scale)
        weights[names.full(names.in_file(name))] = value + np.float32(name.endswith("LayerNorm.weight"))
    checkpoint.save(directory, sizes.hf, weights)
    vocabulary = [*SPECIAL, *(f"w{i}" for i in range(sizes.num_words))]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(word, SPECIAL.index(word)) for word in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*around)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": sizes.context}) + "\n")
    write_checksums(directory)
