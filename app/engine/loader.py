"""Turns a model's directory into a runner on the device, warmed up.

The only place that knows which layout runs on which runner. TensorFlow is
imported on the first call, so that a stub never pays for it.
"""

import threading

from app.config import Settings
from app.engine.device import start_tensorflow
from app.engine.runner import Classifier, Runner
from app.engine.stub import StubClassifier, StubRunner
from app.modeling.registry import ModelCard

CACHE_DIR = "xla-cache"

_starting = threading.Lock()


def load_model(settings: Settings, card: ModelCard) -> Runner | Classifier:
    """Read, place and warm up one model; runs in any thread.

    Raises:
        ModelFormatError: the directory cannot be served; says why.
    """
    with _starting:
        start_tensorflow(settings.data_dir / CACHE_DIR, settings.engine_threads)
    from app.engine.classifier_runner import EncoderRunner
    from app.engine.model_runner import DecoderRunner
    from app.modeling import checkpoint
    from app.modeling.encoder import EncoderConfig

    loaded = checkpoint.load(card.path)
    runner: Runner | Classifier
    if isinstance(loaded.config, EncoderConfig):
        runner = EncoderRunner(loaded.config, loaded.weights)
    else:
        runner = DecoderRunner(loaded.config, loaded.weights, settings.engine_slots)
    runner.warm_up()
    return runner


def load_stub(settings: Settings, card: ModelCard, step_s: float) -> Runner | Classifier:
    """A hand-computable runner of the card's sizes."""
    if card.kind == "classification":
        return StubClassifier(len(card.labels), card.vocab_size, card.context_length, step_s=step_s)
    return StubRunner(settings.engine_slots, card.vocab_size, card.context_length, step_s)
