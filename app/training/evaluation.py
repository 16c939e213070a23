"""`tollgate evaluate`: a published model on data of your own, with the metrics of `eval.json`."""

from pathlib import Path

import tensorflow as tf
from tokenizers import Tokenizer

from app.errors import DataError, ModelFormatError
from app.modeling import bert, checkpoint, encoder
from app.modeling.bert_config import BertConfig
from app.modeling.family import family_of
from app.modeling.quantize import quantize
from app.training.classification import evaluate_examples
from app.training.corpus import read_corpus
from app.training.examples import Example, read_examples
from app.training.generation import evaluate_documents


def evaluate_model(
    directory: Path, data: Path, text_field: str, label_field: str, precision: str = "float32"
) -> dict[str, float]:
    """Score a model on documents or on labelled texts, whichever it is made for.

    Args:
        directory: of the model.
        data: documents or labelled texts.
        text_field: where JSON lines or CSV have the text.
        label_field: where they have the label.
        precision: "int8" computes as an engine with that precision does.

    Raises:
        DataError: the data is unusable, or has a label that the model lacks.
        ModelFormatError: the model is, or it is none that int8 is for.
    """
    model = checkpoint.load(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config, arrays = model.config, model.weights
    if isinstance(config, BertConfig):
        arrays = bert.prepare(config, arrays)
    if precision == "int8":
        if isinstance(config, BertConfig | encoder.EncoderConfig):
            raise ModelFormatError(f"{directory.name} does not generate; only generation models are served in int8")
        arrays = quantize(config, arrays)
    weights = {name: tf.constant(value) for name, value in arrays.items()}
    if isinstance(config, BertConfig):
        if config.pooling is not None:
            raise ModelFormatError(f"{directory.name} gives embeddings, which have no labels to compare with")
        examples = read_examples(data, text_field, label_field).examples
        _refuse_unknown_labels(config, examples, data)
        return evaluate_examples(lambda x: bert.classify(config, weights, *x), tokenizer, config, examples)
    if isinstance(config, encoder.EncoderConfig):
        examples = read_examples(data, text_field, label_field).examples
        _refuse_unknown_labels(config, examples, data)
        return evaluate_examples(lambda x: encoder.classify(config, weights, *x), tokenizer, config, examples)
    documents = read_corpus(data, text_field).documents
    forward = family_of(config).forward
    predict = tf.function(lambda tokens: forward(config, weights, tokens), autograph=False, reduce_retracing=True)
    return evaluate_documents(predict, tokenizer, documents, config.context_length)


def _refuse_unknown_labels(
    config: encoder.EncoderConfig | BertConfig, examples: tuple[Example, ...], data: Path
) -> None:
    unknown = sorted({example.label for example in examples} - set(config.labels))
    if unknown:
        raise DataError(f"has labels that the model does not know: {', '.join(unknown[:5])}", data)
