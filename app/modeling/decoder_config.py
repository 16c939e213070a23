"""The sizes of a decoder, read from a Hugging Face `config.json` and written to one.

Plain data: no TensorFlow. What a layout calls its sizes, and which of its options
this decoder can run, is decided here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import ModelFormatError
from app.modeling.registry import token_ids


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a decoder, named as this code names them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """Read a Hugging Face `config.json` of the Llama layout.

        Raises:
            ModelFormatError: a field is missing, or asks for something that this
                decoder does not do (scaled rotary positions, another activation).
        """
        _refuse_unsupported(config)
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                context_length=int(config["max_position_embeddings"]),
                rope_theta=_rope_theta(config),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                tie_embeddings=bool(config.get("tie_word_embeddings", False)),
                bos_token_id=config.get("bos_token_id"),
                eos_token_ids=token_ids(config.get("eos_token_id")),
            )
        except KeyError as missing:
            raise ModelFormatError(f"config.json has no field {missing}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that every reader of the Llama layout understands."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context_length,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids),
            "torch_dtype": "float32",
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the layout must have, with its shape."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, width)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (width,)
            shapes[prefix + "self_attn.q_proj.weight"] = (queries, width)
            shapes[prefix + "self_attn.k_proj.weight"] = (keys, width)
            shapes[prefix + "self_attn.v_proj.weight"] = (keys, width)
            shapes[prefix + "self_attn.o_proj.weight"] = (width, queries)
            shapes[prefix + "post_attention_layernorm.weight"] = (width,)
            shapes[prefix + "mlp.gate_proj.weight"] = (inner, width)
            shapes[prefix + "mlp.up_proj.weight"] = (inner, width)
            shapes[prefix + "mlp.down_proj.weight"] = (width, inner)
        shapes["model.norm.weight"] = (width,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, width)
        return shapes


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise ModelFormatError(f"config.json: hidden_act {config['hidden_act']!r} is not supported (only silu)")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ModelFormatError(f"config.json: rope_scaling {scaling!r} is not supported")


def _rope_theta(config: Mapping[str, Any]) -> float:
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)
