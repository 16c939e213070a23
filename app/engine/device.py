"""Starts TensorFlow the way a serving process wants it: quickly; and tells when its device is lost.

Two measures, both for start-up alone. TensorFlow imports Keras (and with it
scikit-learn) eagerly, a third of its import time, for code that an engine never
calls. And what XLA compiled is kept on disk, so that a restart reads instead of
compiling. The folder is keyed by TensorFlow's version and the processor, because
machine code of one may be illegal on another, and a folder that no start asked
for in a month goes. The own one is not thinned out: a file is about a megabyte, and
holds no weights, so that a model trained anew finds the file of its predecessor.

A lost device is recognised on CUDA alone, and there by the errors that NVIDIA
documents as final; whatever else keeps failing is given up after a few steps.

Call `start_tensorflow` before anything imports TensorFlow; it is harmless, but
without effect, afterwards.
"""

import hashlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from app.engine.runner import DeviceLost

# Of each of these the CUDA driver API's documentation (type CUresult) says that the
# context cannot be used any more, or that "any further CUDA work will return the same
# error" and the process must be started anew. TensorFlow passes the name on in the
# text of its error, whose class (Internal, Unknown, Aborted) depends on where it
# noticed. Not among them: memory that ran out, a kernel that did not compile, and
# errors of cuDNN or cuBLAS, after which the next step may well succeed.
FINAL_CUDA_ERRORS = (
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
)
KEY_LENGTH = 16
CACHE_MAX_AGE_S = 30 * 86_400
# What tensorflow/__init__ imports eagerly, inside a `try` that forgives ImportError.
EAGER_KERAS = "keras.src.optimizers"
# More than tracing one function draws; a step takes about 0.1 microseconds.
NUMBERS_A_FUNCTION = 20_000


def start_tensorflow(cache_dir: Path, num_threads: int = 0) -> Path:
    """Import TensorFlow, once.

    Args:
        cache_dir: where compiled code is kept; created.
        num_threads: of the numeric kernels; 0: one per core.

    Returns:
        Where this machine's compiled code is kept.
    """
    folder = cache_folder(cache_dir, time.time())
    if "tensorflow" in sys.modules:
        return folder
    # putenv, not os.environ: these are read by TensorFlow's C++ half alone.
    os.putenv("TF_CPP_MIN_LOG_LEVEL", "3")
    os.putenv("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder}")
    tf = _import_without_keras()
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    return folder


def cache_folder(cache_dir: Path, now_s: float) -> Path:
    """This machine's folder of compiled code, made if need be; those that nobody uses any more go.

    The time of a folder is that of the last start that asked for it. Where several
    machines share `cache_dir`, one that has been up for longer loses its files, but
    has read them already; its next start compiles.

    Args:
        cache_dir: holds the folders of all machines and versions.
        now_s: seconds since 1970.
    """
    folder = cache_dir / _machine_key()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder, (now_s, now_s))
    for other in cache_dir.glob("[0-9a-f]" * KEY_LENGTH):
        # Another start may be doing the same.
        with suppress(FileNotFoundError):
            if now_s - other.stat().st_mtime > CACHE_MAX_AGE_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def device_name() -> str:
    """What `Describe` shows: the accelerator's own name, or "cpu"."""
    tf = importlib.import_module("tensorflow")
    for accelerator in tf.config.list_physical_devices("GPU"):
        return str(tf.config.experimental.get_device_details(accelerator).get("device_name", "gpu"))
    return "cpu"


def is_accelerated() -> bool:
    """Whether there is more than a CPU."""
    return bool(importlib.import_module("tensorflow").config.list_physical_devices("GPU"))


@contextmanager
def losses_translated() -> Iterator[None]:
    """Around a device call: its last error becomes `DeviceLost`, others stay what they are.

    Raises:
        DeviceLost: this process cannot use the device any more.
    """
    errors = importlib.import_module("tensorflow").errors
    try:
        yield
    except errors.OpError as error:
        name = next((name for name in FINAL_CUDA_ERRORS if name in str(error.message)), None)
        if name is None:
            raise
        raise DeviceLost(name) from error


def align_function_numbers() -> None:
    """Let the next function that is traced get a number that a restart gives it again.

    TensorFlow puts a running number into the name of each function, XLA's cache on
    disk knows compiled code by that name, and what else draws numbers in between
    differs from run to run by a few. Skipping to the next round number absorbs that.
    """
    ops = importlib.import_module("tensorflow.python.framework.ops")
    while ops.uid() % NUMBERS_A_FUNCTION:
        pass


def _import_without_keras() -> ModuleType:
    absent = EAGER_KERAS not in sys.modules
    if absent:
        sys.modules[EAGER_KERAS] = None  # type: ignore[assignment]  # makes the import fail at once
    try:
        return importlib.import_module("tensorflow")
    finally:
        if absent:
            del sys.modules[EAGER_KERAS]


def _machine_key() -> str:
    """Names this processor and TensorFlow's version in hexadecimal digits."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    versions = [name + importlib.metadata.version(name) for name in ("tensorflow", "tensorflow_cpu") if _has(name)]
    text = "\n".join([platform.machine(), *versions, *features])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _has(distribution: str) -> bool:
    return next(iter(importlib.metadata.distributions(name=distribution)), None) is not None
