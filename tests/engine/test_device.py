import os
from pathlib import Path

import pytest
import tensorflow as tf

from app.engine.device import CACHE_MAX_AGE_S, cache_folder, losses_translated
from app.engine.encoder_runner import EncoderRunner
from app.engine.model_runner import DecoderRunner
from app.engine.runner import DeviceLost
from app.engine.scheduler import Part, Prefill
from app.engine.sequence import Request, Sequence
from tests.modeling.checkpoints import decoder_config, encoder_config, random_weights

ILLEGAL_ADDRESS = (
    "Failed to complete all kernels launched on stream: could not synchronize on CUDA stream: "
    "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
)


def fail(*_: object) -> object:
    raise tf.errors.InternalError(None, None, ILLEGAL_ADDRESS)


@pytest.mark.parametrize("kind", [tf.errors.InternalError, tf.errors.UnknownError, tf.errors.AbortedError])
def test_final_error_of_cuda_is_a_lost_device_whatever_its_class(kind: type[tf.errors.OpError]) -> None:
    with pytest.raises(DeviceLost, match="CUDA_ERROR_ILLEGAL_ADDRESS"), losses_translated():
        raise kind(None, None, ILLEGAL_ADDRESS)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[16,8,512,64]"),
        tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        tf.errors.InternalError(None, None, "Blas xGEMM launch failed"),
        ValueError("CUDA_ERROR_ILLEGAL_ADDRESS, but not from the device"),
    ],
)
def test_what_may_pass_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, losses_translated():
        raise error
    assert raised.value is error


def test_both_runners_tell_when_their_device_is_lost() -> None:
    config, classes = decoder_config(), encoder_config()
    decoder = DecoderRunner(config, random_weights(config.shapes, seed=1), num_slots=1)
    encoder = EncoderRunner(classes, random_weights(classes.shapes, seed=1))
    decoder._prefills = dict.fromkeys(decoder._prefills, fail)
    encoder._any = fail
    with pytest.raises(DeviceLost):
        decoder.run(Prefill((Part(Sequence(Request("r", (1, 2), 1)), 0, 0, 2),)))
    with pytest.raises(DeviceLost):
        encoder.encode([(1, 2)])


def test_compiled_code_that_no_start_asked_for_in_a_month_goes(tmp_path: Path) -> None:
    now_s = 2_000_000_000.0
    own = cache_folder(tmp_path, now_s - 2 * CACHE_MAX_AGE_S)
    ages_s = {"0123456789abcdef": CACHE_MAX_AGE_S + 1, "fedcba9876543210": CACHE_MAX_AGE_S - 1, "other": 2**30}
    for name, age_s in ages_s.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "code").write_text("x")
        os.utime(tmp_path / name, (now_s - age_s, now_s - age_s))
    (own / "code").write_text("x")
    assert cache_folder(tmp_path, now_s) == own
    assert {folder.name for folder in tmp_path.iterdir()} == {own.name, "fedcba9876543210", "other"}
    assert (own / "code").exists()
