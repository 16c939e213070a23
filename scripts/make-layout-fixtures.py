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


def main(target: Path) -> None:
    """Write every fixture below `target`."""
    hf.logging.set_verbosity_error()
    for name, make in (CLASSIFIERS | EMBEDDERS).items():
        model = randomise(make(), name)
        (write_classifier if name in CLASSIFIERS else write_embedder)(target / name, model)


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
