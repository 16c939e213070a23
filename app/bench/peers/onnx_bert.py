"""A BERT classifier of a Hugging Face directory as an ONNX graph, of ONNX Runtime's own fused operators.

Embedding, attention, residual norm and GELU are one operator each, as ONNX Runtime's
optimizer makes them of an exported network where it recognises every pattern. Texts of
a batch are padded behind to one length; the mask says where.

Inputs: `input_ids` and `attention_mask`, int32 `[texts, tokens]`; output: `scores`.
"""

import json
from pathlib import Path
from typing import Any

# com.microsoft: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
FUSED = "com.microsoft"
OPSET = 17


def build(directory: Path) -> bytes:
    """The model, serialized."""
    from onnx import TensorProto, helper

    graph = Graph(directory)
    config = graph.config
    graph.embed(config["layer_norm_eps"])
    for number in range(config["num_hidden_layers"]):
        graph.layer(f"bert.encoder.layer.{number}", config["num_attention_heads"], config["layer_norm_eps"])
    graph.head()
    sides = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["texts", len(config["id2label"])])
    made = helper.make_graph(graph.nodes, "bert", sides, [scores], graph.weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
    serialized: bytes = helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized


class Graph:
    """Nodes and weights as they come; `x` names the states after the last node."""

    def __init__(self, directory: Path) -> None:
        from safetensors.numpy import load_file

        self.config = json.loads((directory / "config.json").read_text())
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.x = ""
        self._tensors = load_file(directory / "model.safetensors")

    def embed(self, eps: float) -> None:
        """Words, positions and the first token type, normed; and each text's length from its mask."""
        at = "bert.embeddings."
        tables = [f"{at}{name}_embeddings.weight" for name in ("word", "position", "token_type")]
        inputs = [
            "input_ids",
            "segments",
            *map(self._weight, (*tables, f"{at}LayerNorm.weight", f"{at}LayerNorm.bias")),
        ]
        self._node("Sub", ["input_ids", "input_ids"], ["segments"])
        self._node("EmbedLayerNormalization", [*inputs, "attention_mask"], ["x0", "lengths"], domain=FUSED, epsilon=eps)
        self.x = "x0"

    def layer(self, at: str, num_heads: int, eps: float) -> None:
        """Attention and feed-forward, each with its residual norm."""
        qkv = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        inputs = [self.x, self._joined(qkv, ".weight"), self._joined(qkv, ".bias"), "lengths"]
        mixed = self._node("Attention", inputs, [f"{at}.mixed"], domain=FUSED, num_heads=num_heads)
        self._add_and_norm(f"{at}.attention.output", mixed, eps)
        inner = self._product(f"{at}.intermediate.dense", self.x)
        bias = self._weight(f"{at}.intermediate.dense.bias")
        self._add_and_norm(f"{at}.output", self._node("BiasGelu", [inner, bias], [f"{at}.inner"], domain=FUSED), eps)

    def head(self) -> None:
        """Scores of the first token's state."""
        self._constant("first", 0)
        self._node("Gather", [self.x, "first"], ["pooled"], axis=1)
        self._node("Tanh", [self._gemm("bert.pooler.dense", "pooled")], ["tanh"])
        self._node("Softmax", [self._gemm("classifier", "tanh")], ["scores"], axis=-1)

    def _add_and_norm(self, at: str, states: str, eps: float) -> None:
        product = self._product(f"{at}.dense", states)
        names = (f"{at}.LayerNorm.weight", f"{at}.LayerNorm.bias", f"{at}.dense.bias")
        inputs = [product, self.x, *map(self._weight, names)]
        self.x = self._node("SkipLayerNormalization", inputs, [f"{at}.normed"], domain=FUSED, epsilon=eps)

    def _product(self, name: str, states: str) -> str:
        return self._node("MatMul", [states, self._joined([name], ".weight")], [f"{name}.product"])

    def _gemm(self, name: str, states: str) -> str:
        inputs = [states, self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self._node("Gemm", inputs, [f"{name}.product"], transB=1)

    def _node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 - ONNX's
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def _weight(self, name: str) -> str:
        return self._add(name, self._tensors[name])

    def _joined(self, modules: list[str], kind: str) -> str:
        """Tensors side by side, weights turned: ONNX stores `[in, out]`."""
        import numpy as np

        return self._add(modules[0] + kind, np.concatenate([self._tensors[name + kind].T for name in modules], axis=-1))

    def _constant(self, name: str, value: int) -> None:
        import numpy as np

        self._add(name, np.array(value, np.int64))

    def _add(self, name: str, array: Any) -> str:  # noqa: ANN401 - an array
        import numpy as np
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name
