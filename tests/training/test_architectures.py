import numpy as np
import pytest

from app.errors import ConfigError
from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.training.architectures import ARCHITECTURES, SIZES, build_network, complete_sizes, decoder_config


def test_sizes_that_are_not_given_are_the_architectures_own() -> None:
    given = {"width": 64, "embedding": 32, "heads": None, "layers": None}

    assert complete_sizes("gru", given) == {**SIZES["gru"], "width": 64, "embedding": 32}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 3}, "--heads means nothing to --architecture gru"),
        ({"feed_forward": 8}, "--feed-forward means nothing to --architecture gru"),
    ],
)
def test_size_of_the_other_architecture_is_refused_by_name(given: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete_sizes("gru", given)


def test_each_architecture_has_its_configuration() -> None:
    configs = [decoder_config(name, SIZES[name], 300, 64, 0) for name in ARCHITECTURES]

    assert [type(config) for config in configs] == [DecoderConfig, GruConfig]
    assert {(config.context_length, config.vocab_size, config.eos_token_ids) for config in configs} == {(64, 300, (0,))}


def test_first_states_of_a_recurrent_network_neither_vanish_nor_saturate() -> None:
    config = decoder_config("gru", SIZES["gru"], 300, 64, 0)

    weights = build_network(config, dropout=0.0, seed=0).export_weights()

    for layer, size in ((0, 128), (1, 256)):
        product = weights[f"model.layers.{layer}.input.weight"]
        assert np.std(product @ np.random.default_rng(1).normal(size=size)) == pytest.approx(1, abs=0.2)
    assert not np.any(weights["lm_head.bias"])
