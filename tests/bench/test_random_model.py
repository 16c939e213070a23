from pathlib import Path

import numpy as np

from app.bench.classify import texts_of
from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model
from app.modeling import bert, checkpoint
from app.modeling.bert_config import BertConfig
from app.modeling.registry import read_card, verify
from app.modeling.tokenizer import Tokenizer

TINY = TextSizes(layers=2, width=16, feed_forward=32, heads=2, vocab=60, context=32)


def test_a_random_decoder_is_a_model_of_its_sizes_without_an_end_token(tmp_path: Path) -> None:
    sizes = Sizes(layers=1, width=16, feed_forward=32, heads=2, key_heads=1, vocab=50, context=64)
    write_random_model(tmp_path, sizes)
    card = read_card(tmp_path)
    assert (card.kind, card.vocab_size, card.context_length, card.eos_token_ids) == ("generation", 50, 64, ())
    loaded = checkpoint.load(tmp_path)
    assert sum(array.size for array in loaded.weights.values()) == sizes.num_parameters
    assert verify(tmp_path) == []


def test_a_random_classifier_tells_texts_apart_and_its_words_are_tokens(tmp_path: Path) -> None:
    write_random_classifier(tmp_path, TINY)
    card = read_card(tmp_path)
    assert (card.kind, card.labels) == ("classification", ("L0", "L1", "L2", "L3"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = [tokenizer.encode(text) for text in texts_of(0, 6, TINY.num_words, [12])]
    assert {len(row) for row in ids} == {12}
    loaded = checkpoint.load(tmp_path)
    assert isinstance(loaded.config, BertConfig)
    weights = bert.prepare(loaded.config, loaded.weights)
    scores = bert.scores(loaded.config, weights, np.array(ids, np.int32), np.full(6, 12, np.int32)).numpy()
    assert np.ptp(scores, axis=0).max() > 0.01
