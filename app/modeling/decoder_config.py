"""The sizes and options of a decoder, read from a Hugging Face `config.json` and written to one.

Plain data: no TensorFlow. `layouts.py` says what each layout calls its fields; what
this decoder cannot compute is refused here, by the name that the file gives it.
Only the Llama layout is written, because that is what is trained here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import ModelFormatError
from app.modeling.layouts import ATTENTION, LAYOUTS, MLP, Layout
from app.modeling.registry import token_ids

ACTIVATIONS = ("silu", "gelu_new", "gelu_pytorch_tanh")
# What a rope_type needs besides its name.
SCALINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
# Fields of any layout with the one value that is computed here; null and absence mean the same.
ONLY = {"quantization_config": None, "partial_rotary_factor": 1.0, "is_encoder_decoder": False}
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "context_length",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary positions are stretched beyond the length that a model was first trained on.

    Attributes:
        factor: how much slower the slow waves turn.
        low_freq_factor: waves longer than `original_context` over it are slowed in full (llama3).
        high_freq_factor: waves shorter than `original_context` over it are left alone (llama3).
        original_context: positions that the model was first trained on.
    """

    kind: str
    original_context: int
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes and options of a decoder, named as this code names them.

    Attributes:
        biases: modules of a layer that have one, for example `self_attn.q_proj`.
        windows: for each layer how many positions a token sees, its own included,
            None for all; empty where no layer has a window.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    activation: str = "silu"
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    is_gated: bool = True
    has_qk_norm: bool = False
    biases: tuple[str, ...] = ()
    windows: tuple[int | None, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """Read a Hugging Face `config.json` of any layout in `LAYOUTS`.

        Raises:
            ModelFormatError: a field is missing, or asks for something that this
                decoder does not do.
        """
        layout = _layout(config)
        given = {**layout.defaults, **config}
        _refuse_unsupported(given, layout)
        sizes = _sizes(given, layout)
        return cls(
            **sizes,
            rope_theta=_rope_theta(given),
            rope_scaling=_rope_scaling(given),
            norm_eps=float(given[layout.fields["norm_eps"]]),
            tie_embeddings=bool(given[layout.fields["tie_embeddings"]]),
            bos_token_id=given.get("bos_token_id"),
            eos_token_ids=token_ids(given.get("eos_token_id")),
            activation=given[layout.fields["activation"]],
            norm=layout.norm,
            positions=layout.positions,
            is_gated=layout.is_gated,
            has_qk_norm=layout.has_qk_norm,
            biases=_biases(given, layout),
            windows=_windows(given, layout, sizes["num_layers"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that every reader of the Llama layout understands."""
        options = (self.norm, self.positions, self.is_gated, self.has_qk_norm, self.windows)
        assert options == ("rms", "rotary", True, False, ()), "only what the Llama layout can express is written"
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
            "hidden_act": self.activation,
            "max_position_embeddings": self.context_length,
            "rope_theta": self.rope_theta,
            **({"rope_scaling": _scaling_to_hf(self.rope_scaling)} if self.rope_scaling else {}),
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": "self_attn.q_proj" in self.biases,
            "mlp_bias": "mlp.up_proj" in self.biases,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids),
            "torch_dtype": "float32",
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the graph reads, by its Llama name, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        if self.positions == "learned":
            shapes["model.embed_positions.weight"] = (self.context_length, self.hidden_size)
        for layer in range(self.num_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer_shapes().items()}
        shapes |= self._norm_shapes("model.norm")
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def window(self, layer: int) -> int | None:
        """How many positions a token of this layer sees, its own included; None for all."""
        return self.windows[layer] if self.windows else None

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        outs_and_ins = {
            **dict(zip(ATTENTION, ((queries, width), (keys, width), (keys, width), (width, queries)), strict=True)),
            **dict(zip(MLP, ((inner, width), (inner, width), (width, inner)), strict=True)),
        }
        if not self.is_gated:
            del outs_and_ins["mlp.gate_proj"]
        shapes: dict[str, tuple[int, ...]] = self._norm_shapes("input_layernorm")
        for module, shape in outs_and_ins.items():
            shapes[f"{module}.weight"] = shape
            if module in self.biases:
                shapes[f"{module}.bias"] = shape[:1]
        if self.has_qk_norm:
            shapes |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        return shapes | self._norm_shapes("post_attention_layernorm")

    def _norm_shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        kinds = ("weight",) if self.norm == "rms" else ("weight", "bias")
        return {f"{module}.{kind}": (self.hidden_size,) for kind in kinds}


def _layout(config: Mapping[str, Any]) -> Layout:
    layout = LAYOUTS.get(config.get("model_type", ""))
    if layout is None:
        raise ModelFormatError(f"config.json: model_type {config.get('model_type')!r} is not supported")
    return layout


def _refuse_unsupported(config: Mapping[str, Any], layout: Layout) -> None:
    act = layout.fields["activation"]
    if config.get(act) not in ACTIVATIONS:
        raise ModelFormatError(
            f"config.json: {act} {config.get(act)!r} is not supported (only {', '.join(ACTIVATIONS)})"
        )
    for name, value in {**ONLY, **layout.only}.items():
        if config.get(name) not in (None, value):
            raise ModelFormatError(f"config.json: {name} {config[name]!r} is not supported (only {value!r})")


def _sizes(config: Mapping[str, Any], layout: Layout) -> dict[str, int]:
    """Every size by our name; those that may be left out follow from the others."""
    given = {ours: _size(config, theirs) for ours, theirs in layout.fields.items() if ours in SIZES}
    derived = {"num_kv_heads": given["num_heads"], "head_dim": (given["hidden_size"] or 0) // (given["num_heads"] or 1)}
    if not layout.is_gated:
        derived["intermediate_size"] = 4 * (given["hidden_size"] or 0)  # as GPT-2 takes it
    sizes = {ours: given.get(ours) or derived.get(ours) for ours in SIZES}
    for ours, size in sizes.items():
        if not size:
            raise ModelFormatError(f"config.json has no field '{layout.fields.get(ours, ours)}'")
    known = {ours: size for ours, size in sizes.items() if size}
    if known["num_heads"] % known["num_kv_heads"]:
        raise ModelFormatError(
            f"config.json: {known['num_heads']} heads do not share {known['num_kv_heads']} key heads"
        )
    if layout.positions == "rotary" and known["head_dim"] % 2:
        raise ModelFormatError(f"config.json: head_dim {known['head_dim']} is odd, so it cannot be rotated")
    return known


def _size(config: Mapping[str, Any], field: str) -> int | None:
    value = config.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or value <= 0:
        raise ModelFormatError(f"config.json: {field} {value!r} is not a positive integer")
    return value


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Newer files keep all that concerns rotary positions in `rope_parameters`, older ones spread it."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope_theta(config: Mapping[str, Any]) -> float:
    return float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _rope_scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    given = _rope(config)
    is_nested = any(isinstance(value, Mapping) for value in given.values())  # other positions in other layers
    kind = given.get("rope_type", given.get("type", "default"))
    needs = SCALINGS.get(kind)
    if is_nested or needs is None or given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelFormatError(f"config.json: rope_scaling {dict(given)!r} is not supported")
    if not needs:
        return None
    for name in needs:
        if not isinstance(given.get(name), int | float):
            raise ModelFormatError(f"config.json: rope_scaling {kind!r} has no {name!r}")
        if not 0 < given[name] < math.inf:
            raise ModelFormatError(
                f"config.json: rope_scaling {kind!r} has {name!r} {given[name]!r}, which turns nothing"
            )
    if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        raise ModelFormatError("config.json: rope_scaling 'llama3' has a high_freq_factor not above low_freq_factor")
    factors = {name: float(given[name]) for name in needs}
    original = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return RopeScaling(kind=kind, original_context=int(original), **factors)


def _scaling_to_hf(scaling: RopeScaling) -> dict[str, Any]:
    named = {name: getattr(scaling, name) for name in SCALINGS[scaling.kind]}
    return {"rope_type": scaling.kind, **named, "original_max_position_embeddings": scaling.original_context}


def _biases(config: Mapping[str, Any], layout: Layout) -> tuple[str, ...]:
    switched = (modules for field, modules in layout.bias_switches.items() if config.get(field))
    return (*layout.biases, *(module for modules in switched for module in modules))


def _windows(config: Mapping[str, Any], layout: Layout, num_layers: int) -> tuple[int | None, ...]:
    if not (layout.has_windows and config.get("sliding_window") and config.get("use_sliding_window")):
        return ()
    window, first = _size(config, "sliding_window"), config.get("max_window_layers") or 0
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    ]
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown or len(kinds) != num_layers:
        raise ModelFormatError(f"config.json: layer_types {unknown or kinds!r} is not supported")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()
