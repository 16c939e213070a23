"""`tollgate evaluate`: a published model on data of your own, with the metrics of `eval.json`."""

from pathlib import Path

import tensorflow as tf

from app.errors import DataError, ModelFormatError
from app.modeling import bert, checkpoint, encoder
from app.modeling.bert_config import BertConfig
from app.modeling.family import family_of
from app.modeling.quantize import quantize
from app.modeling.registry import ModelCard, read_card
from app.modeling.tokenizer import read_tokenizer
from app.training.classification import scoring_of, targets_of
from app.training.classifier import encode_texts, predict_logits
from app.training.corpus import read_corpus
from app.training.examples import Example, read_examples
from app.training.generation import evaluate_documents
from app.training.language_model import END_OF_TEXT_ID

# Half of it is context before each token that counts; models with a hundred times that would need
# all memory there is, for figures that hardly differ.
LONGEST_WINDOW = 1024


def evaluate_model(
    directory: Path, data: Path, text_field: str, label_field: str, precision: str = "float32"
) -> dict[str, float]:
    """Score a model on documents or on labelled texts, whichever it is made for.

    Args:
        directory: of the model.
        data: documents or labelled texts; of a text that is too long for a classifier its beginning counts.
        text_field: where JSON lines or CSV have the text.
        label_field: where they have the label.
        precision: "int8" computes as an engine with that precision does.

    Raises:
        DataError: the data is unusable, or has labels that the model lacks.
        ModelFormatError: the model is, or it is none that int8 is for.
    """
    card, model = read_card(directory), checkpoint.load(directory)
    tokenizer = read_tokenizer(directory)
    config, arrays = model.config, model.weights
    if card.kind == "embedding":
        raise ModelFormatError(f"{directory.name} gives embeddings, which have no labels to compare with")
    if isinstance(config, BertConfig):
        arrays = bert.prepare(config, arrays)
    if precision == "int8":
        if isinstance(config, BertConfig | encoder.EncoderConfig):
            raise ModelFormatError(f"{directory.name} does not generate; only generation models are served in int8")
        arrays = quantize(config, arrays)
    weights = {name: tf.constant(value) for name, value in arrays.items()}
    if isinstance(config, BertConfig | encoder.EncoderConfig):
        tokenizer.enable_truncation(config.context_length)  # by itself, so that what stands at the end is kept
        examples = _read_known(card, data, text_field, label_field)
        tokens, lengths = encode_texts(tokenizer, [example.text for example in examples], config.context_length)
        inputs = tokens[:, : max(1, lengths.max())], lengths
        logits = predict_logits(lambda x: _classify(config, weights, *x), inputs)
        return scoring_of(card.thresholds).metrics(logits, targets_of(card.labels, examples))
    documents = read_corpus(data, text_field).documents
    forward = family_of(config).forward
    predict = tf.function(lambda tokens: forward(config, weights, tokens), autograph=False, reduce_retracing=True)
    end_id = next(iter(card.eos_token_ids), END_OF_TEXT_ID)
    begin_id = end_id if card.bos_token_id is None else card.bos_token_id
    context = min(config.context_length, LONGEST_WINDOW)
    return evaluate_documents(predict, tokenizer, documents, context, begin_id, end_id)


def _classify(
    config: BertConfig | encoder.EncoderConfig, weights: dict[str, tf.Tensor], tokens: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    if isinstance(config, BertConfig):
        return bert.classify(config, weights, tokens, lengths)
    return encoder.classify(config, weights, tokens, lengths)


def _read_known(card: ModelCard, data: Path, text_field: str, label_field: str) -> tuple[Example, ...]:
    """The examples, whose labels the model must know."""
    found = read_examples(data, text_field, label_field)
    if found.is_multi_label and not card.is_multi_label:
        raise DataError(f"has lists of labels, and {card.name} gives one label to a text", data)
    unknown = sorted(set(found.labels) - set(card.labels))
    if unknown:
        raise DataError(f"has labels that the model does not know: {', '.join(unknown[:5])}", data)
    return found.examples
