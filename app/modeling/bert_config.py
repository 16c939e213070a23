"""What BERT, DistilBERT and RoBERTa directories say: sizes, names of tensors, head and pooling.

Tables and their reading only, no TensorFlow: the registry asks it too. A model with
labels classifies; one without embeds, and sentence-transformers' files beside
`config.json` (`modules.json`, `1_Pooling/config.json`) say how. What they ask for
and `bert.py` does not compute is refused by the field's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from app.errors import ModelFormatError
from app.modeling.labels import read_labels
from app.modeling.layouts import TensorNames
from app.modeling.tokenizer import read_json, read_json_list

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
LENGTHS = "sentence_bert_config.json"
ACTIVATIONS = ("gelu", "gelu_new", "relu")
POOLINGS = MappingProxyType({"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"})
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (None, "single_label_classification", MULTI_LABEL)

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class BertLayout:
    """One published layout.

    Attributes:
        family: what its class names begin with.
        fields: our name of a size to its field of `config.json`.
        only: fields with the one value that is computed.
        head_activation: between the classifier's two products.
        counts_padding: positions start behind the padding's id.
    """

    family: str
    fields: Mapping[str, str]
    names: TensorNames
    head_activation: Literal["tanh", "relu"]
    only: Mapping[str, Any] = field(default_factory=dict)
    counts_padding: bool = False


FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
DISTILBERT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "num_positions": "max_position_embeddings",
    "activation": "activation",
}
DISTILBERT_MODULES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
    "head.dense": "pre_classifier",
    "head.out": "classifier",
}
ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
# Constants of its own library, and the head of another task.
IGNORED = (r"embeddings\.position_ids",)
POOLER = (r"pooler\.dense\.(weight|bias)",)


def _names(prefix: str, dense: str, out: str, ignored: tuple[str, ...] = IGNORED) -> TensorNames:
    modules = {"head.dense": dense, "head.out": out}
    return TensorNames(prefix, "encoder.layer", modules, ignored=ignored, unprefixed=("classifier",))


ROBERTA = BertLayout(
    "Roberta",
    FIELDS,
    # Its classifier has a head of its own; many a file has the pooler all the same.
    _names("roberta.", "classifier.dense", "classifier.out_proj", (*IGNORED, *POOLER)),
    "tanh",
    ONLY,
    counts_padding=True,
)
LAYOUTS: Mapping[str, BertLayout] = {
    "bert": BertLayout("Bert", FIELDS, _names("bert.", "pooler.dense", "classifier"), "tanh", ONLY),
    "roberta": ROBERTA,
    "distilbert": BertLayout(
        "DistilBert",
        DISTILBERT_FIELDS,
        TensorNames(
            "distilbert.",
            "transformer.layer",
            DISTILBERT_MODULES,
            ignored=IGNORED,
            unprefixed=("pre_classifier", "classifier"),
        ),
        "relu",
    ),
}
DISTILBERT_NORM_EPS = 1e-12  # a constant of that layout


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The sizes of an encoder, and what is made of its states.

    Attributes:
        first_position: row of the position table that the first token gets.
        num_token_types: 0 where the layout knows none; every token is of the first.
        context_length: longest text, tokens.
        labels: in the order of the scores; none: it embeds.
        is_multi_label: each label has a probability of its own.
        pooling: how a text's states become its embedding; None: it classifies.
        normalizes: embeddings have length one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_positions: int
    first_position: int
    num_token_types: int
    context_length: int
    norm_eps: float
    activation: str
    head_activation: Literal["tanh", "relu"]
    labels: tuple[str, ...] = ()
    is_multi_label: bool = False
    pooling: Pooling | None = None
    normalizes: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], directory: Path) -> "BertConfig":
        """Read `config.json`, and for an embedding model the files beside it.

        Raises:
            ModelFormatError: a field is missing or asks for what is not computed; names it.
        """
        layout = LAYOUTS[raw["model_type"]]
        is_classifier = _is_classifier(raw, layout)
        _check_options(raw, layout)
        sizes = _sizes(raw, layout)
        pooling, normalizes = (None, False) if is_classifier else _read_modules(directory)
        return cls(
            **sizes,
            first_position=_first_position(raw),
            context_length=context_length(raw, directory),
            head_activation=layout.head_activation,
            labels=read_labels(raw) if is_classifier else (),
            is_multi_label=is_classifier and raw.get("problem_type") == MULTI_LABEL,
            pooling=pooling,
            normalizes=normalizes,
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor with its shape, under BERT's names with `layers` for `encoder.layer`."""
        width, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, width),
            "embeddings.position_embeddings.weight": (self.num_positions, width),
        }
        if self.num_token_types:
            shapes["embeddings.token_type_embeddings.weight"] = (self.num_token_types, width)
        norms = ["embeddings.LayerNorm"]
        products: dict[str, tuple[int, int]] = {}
        for i in range(self.num_layers):
            at = f"layers.{i}."
            products |= {f"{at}attention.self.{part}": (width, width) for part in ("query", "key", "value")}
            products[at + "attention.output.dense"] = (width, width)
            products[at + "intermediate.dense"] = (inner, width)
            products[at + "output.dense"] = (width, inner)
            norms += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
        if self.labels:
            products |= {"head.dense": (width, width), "head.out": (len(self.labels), width)}
        for name, shape in products.items():
            shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
        for name in norms:
            shapes |= {name + ".weight": (width,), name + ".bias": (width,)}
        return shapes


def tensor_names(raw: Mapping[str, Any]) -> TensorNames:
    """How the files of a `config.json` of one of `LAYOUTS` name their tensors."""
    layout = LAYOUTS[raw["model_type"]]
    names = layout.names
    if _is_classifier(raw, layout):
        return names
    return TensorNames(names.prefix, names.layers, names.modules, ignored=(*names.ignored, *POOLER))


def context_length(raw: Mapping[str, Any], directory: Path) -> int:
    """The longest text that the model reads, tokens; without positions that are never given out."""
    positions = int(_field(raw, "max_position_embeddings")) - _first_position(raw)
    return min(positions, int(read_json(directory / LENGTHS).get("max_seq_length") or positions))


def _is_classifier(raw: Mapping[str, Any], layout: BertLayout) -> bool:
    architecture = next(iter(raw.get("architectures") or ()), "")
    wanted = f"{layout.family}ForSequenceClassification", f"{layout.family}Model"
    if architecture not in wanted:
        raise ModelFormatError(f"config.json: architecture {architecture!r} is neither of {', '.join(wanted)}")
    return architecture == wanted[0]


def _check_options(raw: Mapping[str, Any], layout: BertLayout) -> None:
    for name, value in layout.only.items():
        if raw.get(name, value) != value:
            raise ModelFormatError(f"config.json: {name} is {raw[name]!r}; only {value!r} is computed")
    if raw.get("problem_type") not in PROBLEM_TYPES:
        raise ModelFormatError(f"config.json: problem_type is {raw['problem_type']!r}; only classes are scored")


def _sizes(raw: Mapping[str, Any], layout: BertLayout) -> dict[str, Any]:
    """Every field of the layout by our name."""
    sizes: dict[str, Any] = {"num_token_types": 0, "norm_eps": DISTILBERT_NORM_EPS}
    sizes |= {ours: _field(raw, theirs) for ours, theirs in layout.fields.items()}
    if sizes["activation"] not in ACTIVATIONS:
        name = layout.fields["activation"]
        raise ModelFormatError(f"config.json: {name} is {sizes['activation']!r}, not one of {ACTIVATIONS}")
    for ours, theirs in layout.fields.items():
        if ours not in {"norm_eps", "activation"} and not (isinstance(sizes[ours], int) and sizes[ours] > 0):
            raise ModelFormatError(f"config.json: {theirs} {sizes[ours]!r} is not a positive integer")
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise ModelFormatError(f"config.json: {layout.fields['hidden_size']} is no multiple of the heads")
    return sizes


def _first_position(raw: Mapping[str, Any]) -> int:
    return int(_field(raw, "pad_token_id")) + 1 if LAYOUTS[raw["model_type"]].counts_padding else 0


def _field(raw: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - JSON's
    if raw.get(name) is None:
        raise ModelFormatError(f"config.json has no field {name!r}")
    return raw[name]


def _read_modules(directory: Path) -> tuple[Pooling, bool]:
    """How states become an embedding, and whether it is scaled to length one."""
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in read_json_list(directory / MODULES)]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelFormatError(
            f"{MODULES} names {', '.join(kinds) or 'nothing'}; an embedding model has Transformer, Pooling and, if it"
            " likes, Normalize"
        )
    return _read_pooling(read_json(directory / POOLING)), kinds[-1] == "Normalize"


def _read_pooling(raw: Mapping[str, Any]) -> Pooling:
    chosen = [name for name, value in raw.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(raw.get("pooling_mode"), str):
        chosen = [f"pooling_mode_{raw['pooling_mode']}_token{'s' if raw['pooling_mode'] == 'mean' else ''}"]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelFormatError(f"{POOLING}: {', '.join(chosen) or 'no pooling_mode'}; only mean or CLS is computed")
    return "mean" if POOLINGS[chosen[0]] == "mean" else "cls"
