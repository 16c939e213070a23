"""The decoder once more, in NumPy and float64, one token and one head at a time.

Written from the papers and without the code under test, to hold it against.
"""

from typing import Any

import numpy as np


def logits(config: dict[str, Any], weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits `[T, V]` of a Llama-layout model; `config` as in `config.json`."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, eps = config["head_dim"], config["rms_norm_eps"]
    x = [w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = [_norm(row, w[p + "input_layernorm.weight"], eps) for row in x]
        mixed = []
        for t in range(len(x)):
            heads = []
            for n in range(num_heads):
                g = n // (num_heads // num_kv_heads)
                q = _turn(w[p + "self_attn.q_proj.weight"][n * size : (n + 1) * size] @ h[t], t, config["rope_theta"])
                key = w[p + "self_attn.k_proj.weight"][g * size : (g + 1) * size]
                value = w[p + "self_attn.v_proj.weight"][g * size : (g + 1) * size]
                scores = np.array([q @ _turn(key @ h[s], s, config["rope_theta"]) for s in range(t + 1)]) / size**0.5
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                heads.append(sum(share * (value @ h[s]) for s, share in enumerate(shares)))
            mixed.append(w[p + "self_attn.o_proj.weight"] @ np.concatenate(heads))
        x = [a + b for a, b in zip(x, mixed, strict=True)]
        for t, row in enumerate(x):
            h_t = _norm(row, w[p + "post_attention_layernorm.weight"], eps)
            gate = w[p + "mlp.gate_proj.weight"] @ h_t
            up = w[p + "mlp.up_proj.weight"] @ h_t
            x[t] = row + w[p + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.stack([head @ _norm(row, w["model.norm.weight"], eps) for row in x])


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(x**2) + eps) * weight)


def _turn(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    half = len(x) // 2
    turned = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        turned[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        turned[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return turned
