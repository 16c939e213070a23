"""Turns a model's directory into a runner on the device.

The only place that knows which layout runs on which runner. TensorFlow is
imported on the first call, so that a stub never pays for it.
"""

from app.config import Settings
from app.engine.device import is_accelerated, start_tensorflow
from app.engine.runner import Encoder, Runner
from app.engine.stub import StubEncoder, StubRunner
from app.modeling.registry import ModelCard

CACHE_DIR = "xla-cache"


def load_model(settings: Settings, card: ModelCard) -> Runner | Encoder:
    """Read and place one model; not for two threads at once.

    Raises:
        ModelFormatError: the directory cannot be served; says why.
    """
    folder = start_tensorflow(settings.data_dir / CACHE_DIR, settings.engine_threads)
    from app.engine.encoder_runner import EncoderRunner
    from app.engine.grammar import Grammars
    from app.engine.model_runner import DecoderRunner
    from app.engine.widths import CANDIDATES, agreeing_widths
    from app.kernels import ops
    from app.modeling import checkpoint, decoder, quantize
    from app.modeling.bert_config import BertConfig
    from app.modeling.decoder_config import DecoderConfig
    from app.modeling.encoder import EncoderConfig

    loaded = checkpoint.load(card.path)
    config, weights = loaded.config, loaded.weights
    if isinstance(config, EncoderConfig | BertConfig):
        return EncoderRunner(config, weights)
    if isinstance(config, DecoderConfig):
        weights = decoder.joined(config, weights)
    kernels = None
    # What XLA computes between the products of the others multiplies and adds, joined or not by the number of columns.
    is_free_of_columns = isinstance(config, DecoderConfig) and config.norm == "rms"
    if settings.engine_kernels and is_free_of_columns and not is_accelerated():
        kernels = ops.start(folder, settings.engine_threads)
    if (card.precision or settings.engine_precision) == "int8":
        weights, widths = quantize.quantize(config, weights), CANDIDATES  # sums of integers agree for all
    elif kernels is not None:
        widths = ()  # of no interest
    else:
        products = [weights[name] for name in quantize.product_names(config, weights)]
        widths = agreeing_widths({(w.shape[0], w.shape[1]) for w in products}, settings.engine_slots, folder)
    return DecoderRunner(
        config,
        weights,
        settings.engine_slots,
        Grammars.of(card),
        widths=widths,
        cache_bytes=settings.engine_prefix_cache_mib * 2**20,
        kernels=kernels,
    )


def load_stub(settings: Settings, card: ModelCard, step_s: float) -> Runner | Encoder:
    """A hand-computable runner of the card's sizes."""
    if card.kind != "generation":
        return StubEncoder(len(card.labels) or card.embedding_size, card.vocab_size, card.context_length, step_s=step_s)
    return StubRunner(settings.engine_slots, card.vocab_size, card.context_length, step_s)
