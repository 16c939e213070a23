"""The decoders that `tollgate train generation` can train: their sizes and first values.

What differs between them is here; the pipeline itself knows only a network, its
context and the window of tokens that one example spans.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from app.errors import ConfigError
from app.modeling.decoder_config import DecoderConfig
from app.modeling.family import family_of
from app.modeling.gru import GruConfig
from app.training.network import Network

Architecture = Literal["transformer", "gru"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

# By option of the command. A recurrent network reads a window token after token, so many short
# windows cost half of what a few long ones do, and it needs none of its context to be trained
# on (docs/experiments.md); a transformer's window is its context.
SIZES: Mapping[Architecture, Mapping[str, int]] = {
    "transformer": {"layers": 6, "width": 192, "heads": 3, "feed_forward": 512, "batch": 16},
    "gru": {"layers": 2, "width": 256, "embedding": 128, "window": 64, "batch": 64},
}

# At its highest, for Muon. A GRU at the transformer's rate learns far more slowly (docs/experiments.md).
LEARNING_RATES: Mapping[Architecture, float] = {"transformer": 3e-3, "gru": 1e-2}


def complete_sizes(architecture: Architecture, given: Mapping[str, int | None]) -> dict[str, int]:
    """Every size of an architecture, as given or else its own.

    Raises:
        ConfigError: a size is given that this architecture does not have, or the sizes do not fit together.
    """
    own = SIZES[architecture]
    for option, value in given.items():
        if value is not None and option not in own:
            raise ConfigError(f"--{option.replace('_', '-')} means nothing to --architecture {architecture}")
    sizes = {option: given.get(option) or default for option, default in own.items()}
    if "heads" in sizes and (sizes["width"] % sizes["heads"] or (sizes["width"] // sizes["heads"]) % 2):
        raise ConfigError(f"--width {sizes['width']} must divide by --heads {sizes['heads']} into even parts")
    return sizes


def decoder_config(
    architecture: Architecture, sizes: Mapping[str, int], vocab_size: int, context: int, end_of_text_id: int
) -> DecoderConfig | GruConfig:
    """The network of these sizes; texts begin and end with `end_of_text_id`."""
    if architecture == "gru":
        return GruConfig(
            vocab_size=vocab_size,
            embedding_size=sizes["embedding"],
            hidden_size=sizes["width"],
            num_layers=sizes["layers"],
            context_length=context,
            bos_token_id=end_of_text_id,
            eos_token_ids=(end_of_text_id,),
        )
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=sizes["width"],
        intermediate_size=sizes["feed_forward"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        num_kv_heads=sizes["heads"],
        head_dim=sizes["width"] // sizes["heads"],
        context_length=context,
        bos_token_id=end_of_text_id,
        eos_token_ids=(end_of_text_id,),
    )


def build_network(config: DecoderConfig | GruConfig, dropout: float, seed: int) -> Network:
    """A decoder to train, over the very function that the engine's family has."""
    forward = family_of(config).forward
    return Network(
        config.shapes,
        lambda weights, tokens, drop: forward(config, weights, tokens, drop),
        dropout=dropout,
        seed=seed,
        scale=_scale_gru if isinstance(config, GruConfig) else _scale_transformer(config.num_layers),
    )


def _scale_transformer(num_layers: int) -> Callable[[str, tuple[int, ...]], float]:
    """As GPT-2 (Radford et al. 2019, sec. 2.3): 0.02, residual outputs scaled down by depth."""
    residual = 0.02 / (2 * num_layers) ** 0.5
    return lambda name, _: residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02


def _scale_gru(name: str, shape: tuple[int, ...]) -> float:
    """Products keep the variance of what comes in (LeCun et al. 1998, sec. 4.6)."""
    return 0.1 if name == "model.embed_tokens.weight" else shape[1] ** -0.5
