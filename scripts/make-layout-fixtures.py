"""Make the tiny checkpoints of every layout, with the logits that an independent library computes of them.

    python scripts/make-layout-fixtures.py tests/modeling/fixtures

Run once, in an environment of its own: the result is committed and the tests need
neither library. The committed files were made with transformers 5.23.0 and
torch 2.13.0 (CPU, float32, eager attention) on Python 3.11.

Every weight is a random number drawn here (NumPy's PCG64, seeded by the fixture's
name), so nothing of anybody's model is in the files. Each folder holds what
`save_pretrained` wrote and an `expected.npz`:

* decoders: `tokens [T]`, `logits [T, V]`;
* classifiers: `tokens [B, T]` (padded), `lengths [B]`, `logits [B, L]`;
* embedding models: `tokens`, `lengths`, `embeddings [B, D]`, after the pooling and
  the normalisation that the folder's `modules.json` names.

Files larger than a dozen kB buy no better test, so the networks are as narrow as
they can be while every size differs from every other.
"""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers as hf

EAGER = {"attn_implementation": "eager"}
LENGTHS = (12, 7, 1)
NUM_TOKENS = 24
SHARD = "8KB"


def main(target: Path) -> None:
    """Write every fixture below `target`."""
    hf.logging.set_verbosity_error()
    for makers, write in ((CLASSIFIERS, write_classifier), (EMBEDDERS, write_embedder), (DECODERS, write_decoder)):
        for name, make in makers.items():
            write(target / name, randomise(make(), name))


def randomise(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """Give every tensor values large enough that a wrong one shows in the logits."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            values = rng.normal(0, 0.3, tuple(tensor.shape))
            is_scale = tensor.ndim == 1 and key.endswith("weight")
            tensor.copy_(torch.from_numpy(values + 1 if is_scale else values))
    return model.eval()


def labels(num_labels: int) -> dict[str, dict]:
    """Names of the classes, both ways, as `config.json` holds them."""
    names = [f"label-{i}" for i in range(num_labels)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def bert(hidden: int = 32, **more: object) -> hf.BertConfig:
    """The sizes of a tiny BERT."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return hf.BertConfig(vocab_size=90, max_position_embeddings=40, **sizes, **EAGER, **more)


def distilbert() -> hf.DistilBertForSequenceClassification:
    """Two labels."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    config = hf.DistilBertConfig(vocab_size=90, max_position_embeddings=40, **sizes, **EAGER, **labels(2))
    return hf.DistilBertForSequenceClassification(config)


def roberta() -> hf.RobertaForSequenceClassification:
    """Four labels, any number of which may hold; positions start at 2, padding is 1."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    multi = {"problem_type": "multi_label_classification"}
    config = hf.RobertaConfig(
        vocab_size=90, max_position_embeddings=42, type_vocab_size=1, **sizes, **EAGER, **labels(4), **multi
    )
    return hf.RobertaForSequenceClassification(config)


CLASSIFIERS: dict[str, Callable[[], torch.nn.Module]] = {
    "bert-classifier": lambda: hf.BertForSequenceClassification(bert(**labels(3))),
    "distilbert-classifier": distilbert,
    "roberta-classifier": roberta,
}
EMBEDDERS: dict[str, Callable[[], torch.nn.Module]] = {
    "bert-mean-pooling": lambda: hf.BertModel(bert(16)),
    "bert-cls-pooling": lambda: hf.BertModel(bert(16), add_pooling_layer=False),
}


def sizes(**more: object) -> dict[str, object]:
    """The sizes of a tiny decoder, and what they differ in."""
    common = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return common | heads | EAGER | more


def llama_scaled() -> hf.LlamaForCausalLM:
    """Untied, with every bias that the layout knows, and positions beyond the original 16."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
    # Waves of 6, 13, 28 and 59 positions: left alone, smoothed, and twice slowed down.
    rope = scaling | {"original_max_position_embeddings": 16, "rope_theta": 20.0}
    biases = {"attention_bias": True, "mlp_bias": True}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes(rope_parameters=rope, head_dim=8, **biases)))


def llama_linear() -> hf.LlamaForCausalLM:
    """One head of keys and values, positions at half speed."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes(rope_parameters=rope, num_key_value_heads=1)))


def qwen2() -> hf.Qwen2ForCausalLM:
    """The second layer sees six positions only."""
    window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes(tie_word_embeddings=True, **window)))


def gpt2() -> hf.GPT2LMHeadModel:
    """Feed-forward four times as wide, as the layout assumes where nothing is said."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = hf.GPT2Config(vocab_size=96, bos_token_id=0, eos_token_id=0, **sizes, **EAGER)
    return hf.GPT2LMHeadModel(config)


DECODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes(tie_word_embeddings=True))),
    "llama-scaled": llama_scaled,
    "llama-linear": llama_linear,
    "qwen2-bfloat16": qwen2,
    "qwen3-sharded": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes(head_dim=6))),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**sizes(sliding_window=5))),
    "gpt2": gpt2,
}


def padded_batch(model: torch.nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[B, T]`, padded as the model pads, and their mask."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    tokens = np.full((len(LENGTHS), max(LENGTHS)), model.config.pad_token_id)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = rng.integers(5, model.config.vocab_size, length)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, np.newaxis]
    return torch.from_numpy(tokens), torch.from_numpy(mask.astype(np.int64))


def write_classifier(directory: Path, model: hf.PreTrainedModel) -> None:
    """Save the model and its logits of a padded batch."""
    tokens, mask = padded_batch(model, directory.name)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask).logits
    model.save_pretrained(directory)
    save_expected(directory, tokens=tokens, lengths=mask.sum(1), logits=logits)


def write_embedder(directory: Path, model: hf.PreTrainedModel) -> None:
    """Save the model with sentence-transformers' module files, and its embeddings of a padded batch.

    Mean pooling is followed by a normalisation to length one, CLS pooling is not.
    """
    is_mean = directory.name == "bert-mean-pooling"
    tokens, mask = padded_batch(model, directory.name)
    with torch.no_grad():
        states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    weights = mask[..., None].float()
    pooled = (states * weights).sum(1) / weights.sum(1) if is_mean else states[:, 0]
    if is_mean:
        pooled = torch.nn.functional.normalize(pooled)
    model.save_pretrained(directory)
    write_modules(directory, model.config.hidden_size, is_mean=is_mean)
    save_expected(directory, tokens=tokens, lengths=mask.sum(1), embeddings=pooled)


def write_decoder(directory: Path, model: hf.PreTrainedModel) -> None:
    """Save the model and its logits of one sequence, in float32 whatever the file's precision."""
    if directory.name.endswith("bfloat16"):
        model.to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=SHARD if directory.name.endswith("sharded") else "1GB")
    rng = np.random.default_rng(zlib.crc32(directory.name.encode()) + 1)
    tokens = torch.from_numpy(rng.integers(0, model.config.vocab_size, NUM_TOKENS))
    # Read again: `model.float()` would keep the rotary frequencies that were rounded to bfloat16.
    model = type(model).from_pretrained(directory, dtype=torch.float32, **EAGER)
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0]
    save_expected(directory, tokens=tokens, logits=logits)


def write_modules(directory: Path, width: int, *, is_mean: bool) -> None:
    """The files by which an embedding model says how it pools and whether it normalises."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if is_mean else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": not is_mean,
        "pooling_mode_mean_tokens": is_mean,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(directory / "1_Pooling" / "config.json", pooling)


def write_json(path: Path, value: object) -> None:
    """Indented, with a final newline."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def save_expected(directory: Path, **arrays: torch.Tensor) -> None:
    """Integers as int32, the rest as float32."""
    kinds = {True: np.float32, False: np.int32}
    arrays = {name: value.numpy().astype(kinds[value.is_floating_point()]) for name, value in arrays.items()}
    np.savez_compressed(directory / "expected.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
