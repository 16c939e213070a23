"""Writes a Llama-layout Hugging Face directory as a GGUF file, float32 or q8_0.

Standard input: {"model": directory, "out": file, "type": "f32" or "q8_0"}; prints {"ready": true}.
llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its halves, so
the rows of q and k change places.
"""

import json
import sys
from pathlib import Path
from typing import Any

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FILE_TYPES = {"f32": 0, "q8_0": 7}  # llama_ftype


def main() -> None:
    """Convert what standard input names."""
    import gguf
    from safetensors import safe_open

    job = json.loads(sys.stdin.readline())
    directory = Path(job["model"])
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(job["out"], "llama")
    write_header(writer, config, FILE_TYPES[job["type"]])
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    q8 = gguf.GGMLQuantizationType.Q8_0
    with safe_open(directory / "model.safetensors", framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            array, module = tensors.get_tensor(name), name.removesuffix(".weight").split(".", 3)[-1]
            if module in heads:
                array = interleave(array, heads[module])
            if job["type"] == "q8_0" and array.ndim == 2:
                writer.add_tensor(their_name(name), gguf.quants.quantize(array, q8), raw_dtype=q8)
            else:
                writer.add_tensor(their_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sys.stdout.write(json.dumps({"ready": True}) + "\n")


def write_header(writer: Any, config: dict[str, Any], file_type: int) -> None:  # noqa: ANN401 - foreign
    """Sizes, and a vocabulary of words, because a file without one is refused."""
    vocab_size = config["vocab_size"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(vocab_size)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}".encode() for i in range(vocab_size)])
    writer.add_token_scores([0.0] * vocab_size)
    writer.add_token_types([1] * vocab_size)


def their_name(name: str) -> str:
    """A tensor's name in a GGUF file."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module = name.removesuffix(".weight")
    if module in whole:
        return f"{whole[module]}.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{MODULES[rest]}.weight"


def interleave(array: Any, num_heads: int) -> Any:  # noqa: ANN401 - an array [out, in]
    """Row `i` of each half of a head next to row `i` of the other."""
    out, width = array.shape
    halves = array.reshape(num_heads, 2, out // num_heads // 2, width)
    return halves.swapaxes(1, 2).reshape(out, width).copy()


if __name__ == "__main__":
    main()
