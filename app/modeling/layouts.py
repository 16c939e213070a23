"""What each published decoder layout calls its fields and tensors, and which options it uses.

Tables only: `decoder_config.py` reads sizes by them, `checkpoint.py` reads tensors
by them, and the graph knows one set of names, those of the Llama layout. A layout
that differs in names and options is a new entry here; one that computes something
new is work in the graph.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QKV, "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class TensorNames:
    """How a file names and stores the tensors that we call as Llama does.

    Attributes:
        prefix: stands before most names, except where the model was saved without its head.
        layers: what stands before a layer's number.
        modules: our name of a module to the file's; several of ours in one of
            theirs lie one above the other along the outputs.
        transposed: modules of the file whose weights are stored `[in, out]`.
        ignored: patterns of what a file may hold besides; constants of its own library.
        unprefixed: modules of the file that never carry the prefix: heads.
    """

    prefix: str = "model."
    layers: str = "layers"
    modules: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    unprefixed: tuple[str, ...] = ("lm_head",)

    def in_file(self, name: str) -> str:
        """Our name of a tensor as the file has it, without its prefix."""
        module, _, kind = name.removeprefix("model.").rpartition(".")
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        if layer is None:
            return f"{self.modules.get(module, module)}.{kind}"
        return f"{self.layers}.{layer[1]}.{self.modules.get(layer[2], layer[2])}.{kind}"

    def full(self, in_file: str) -> str:
        """A tensor's name in the file with its prefix, where that has one."""
        return in_file if in_file.startswith(self.unprefixed) else self.prefix + in_file

    def is_transposed(self, in_file: str) -> bool:
        """Whether a tensor of the file, named without its prefix, is stored `[in, out]`."""
        module, _, kind = in_file.rpartition(".")
        return kind == "weight" and re.sub(r"^.*?\.\d+\.", "", module) in self.transposed

    def is_ignored(self, in_file: str) -> bool:
        """Whether a tensor that nothing needs may be there."""
        return any(re.fullmatch(pattern, in_file) for pattern in self.ignored)


@dataclass(frozen=True, slots=True)
class Layout:
    """One decoder layout.

    Attributes:
        architecture: the class name that its files carry.
        fields: our name of a size to its field of `config.json`.
        defaults: what a field means that `config.json` leaves out.
        only: fields with the one value that this decoder computes.
        biases: modules that always have one.
        bias_switches: fields that, where true, give a bias to these modules.
        has_windows: whether the layout knows sliding windows.
    """

    architecture: str
    fields: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    bias_switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_windows: bool = False
    has_qk_norm: bool = False
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    is_gated: bool = True
    names: TensorNames = field(default_factory=TensorNames)


LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
}
LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "context_length": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "activation": "activation_function",
    "tie_embeddings": "tie_word_embeddings",
}
GPT2_NAMES = TensorNames(
    prefix="transformer.",
    layers="h",
    modules={
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "norm": "ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.q_proj": "attn.c_attn",
        "self_attn.k_proj": "attn.c_attn",
        "self_attn.v_proj": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(
        "LlamaForCausalLM",
        LLAMA_FIELDS,
        LLAMA_DEFAULTS,
        bias_switches={"attention_bias": ATTENTION, "mlp_bias": MLP},
    ),
    "mistral": Layout(
        "MistralForCausalLM",
        LLAMA_FIELDS,
        LLAMA_DEFAULTS | {"sliding_window": 4096, "use_sliding_window": True},
        has_windows=True,
    ),
    "qwen2": Layout(
        "Qwen2ForCausalLM",
        LLAMA_FIELDS,
        LLAMA_DEFAULTS | {"sliding_window": 4096, "max_window_layers": 28},
        biases=QKV,
        has_windows=True,
    ),
    "qwen3": Layout(
        "Qwen3ForCausalLM",
        LLAMA_FIELDS,
        LLAMA_DEFAULTS | {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        bias_switches={"attention_bias": ATTENTION},
        has_windows=True,
        has_qk_norm=True,
    ),
    "gpt2": Layout(
        "GPT2LMHeadModel",
        GPT2_FIELDS,
        {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
        only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        biases=(*ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        norm="layer",
        positions="learned",
        is_gated=False,
        names=GPT2_NAMES,
    ),
}
