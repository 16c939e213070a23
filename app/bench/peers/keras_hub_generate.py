"""KerasHub on TensorFlow: Llama's backbone and `CausalLM.generate`, compiled by XLA, greedy, float32.

First line: {"model": directory, "threads": number}. The compilation of a new shape is
not timed.
"""

import json
import os
from pathlib import Path
from typing import Any

from protocol import Prepare, Run, serve


def load(setup: dict[str, Any]) -> Prepare:
    """Build the network and copy the weights."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # noqa: TID251 - read by Keras alone
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(setup["threads"])
    model = build(Path(setup["model"]))
    model.compile(sampler="greedy", jit_compile=True)
    known: set[tuple[int, int]] = set()

    def prepare(prompts: list[list[int]], outputs: list[int], _: dict[str, Any]) -> Run:
        total = max(map(len, prompts)) + max(outputs)
        ids = np.zeros((len(prompts), total), np.int32)
        mask = np.zeros((len(prompts), total), bool)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
        batch = {"token_ids": tf.constant(ids), "padding_mask": tf.constant(mask)}
        if ids.shape not in known:
            known.add(ids.shape)
            # All but the last position given: the same shape, compiled, and one step.
            mask[:, :-1] = True
            model.generate(batch | {"padding_mask": tf.constant(mask)}, stop_token_ids=None)

        def run() -> list[list[int]]:
            rows = np.asarray(model.generate(dict(batch), stop_token_ids=None)["token_ids"])
            starts = [len(prompt) for prompt in prompts]
            return [r[s : s + n].tolist() for r, s, n in zip(rows, starts, outputs, strict=True)]

        return run

    return prepare


def build(directory: Path) -> Any:  # noqa: ANN401 - foreign
    """The model with the weights of a Hugging Face directory."""
    import keras_hub

    config = json.loads((directory / "config.json").read_text())
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_query_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        rope_max_wavelength=config["rope_theta"],
        layer_norm_epsilon=config["rms_norm_eps"],
        tie_word_embeddings=config["tie_word_embeddings"],
        dtype="float32",
    )
    copy_weights(backbone, directory, config["num_hidden_layers"])
    return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)


def copy_weights(backbone: Any, directory: Path, num_layers: int) -> None:  # noqa: ANN401 - foreign
    """Dense kernels are stored the other way round here, those of attention by heads."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="np") as tensors:

        def assign(variable: Any, name: str, *, turned: bool = False) -> None:  # noqa: ANN401
            value = tensors.get_tensor(f"{name}.weight")
            variable.assign((value.T if turned else value).reshape(variable.shape))

        embedding = backbone.get_layer("token_embedding")
        assign(embedding.embeddings, "model.embed_tokens")
        if not backbone.tie_word_embeddings:
            assign(embedding.reverse_embeddings, "lm_head", turned=True)
        assign(backbone.get_layer("sequence_output_layernorm").scale, "model.norm")
        for number in range(num_layers):
            layer, prefix = backbone.get_layer(f"transformer_layer_{number}"), f"model.layers.{number}"
            attention = layer._self_attention_layer
            assign(layer._self_attention_layernorm.scale, f"{prefix}.input_layernorm")
            assign(layer._feedforward_layernorm.scale, f"{prefix}.post_attention_layernorm")
            assign(attention._query_dense.kernel, f"{prefix}.self_attn.q_proj", turned=True)
            assign(attention._key_dense.kernel, f"{prefix}.self_attn.k_proj", turned=True)
            assign(attention._value_dense.kernel, f"{prefix}.self_attn.v_proj", turned=True)
            assign(attention._output_dense.kernel, f"{prefix}.self_attn.o_proj", turned=True)
            assign(layer._feedforward_gate_dense.kernel, f"{prefix}.mlp.gate_proj", turned=True)
            assign(layer._feedforward_intermediate_dense.kernel, f"{prefix}.mlp.up_proj", turned=True)
            assign(layer._feedforward_output_dense.kernel, f"{prefix}.mlp.down_proj", turned=True)


serve(load, compiles_by_shape=True)
