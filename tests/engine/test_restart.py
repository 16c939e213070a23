"""What one start compiled the next one reads: it hangs on a private counter of TensorFlow (`device.py`)."""

import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys
from pathlib import Path
from app.engine.device import start_tensorflow
start_tensorflow(Path(sys.argv[1]))
from app.engine.model_runner import DecoderRunner
from tests.modeling.checkpoints import decoder_config, random_weights
config = decoder_config()
DecoderRunner(config, random_weights(config.shapes, seed=1), num_slots=1).warm_up()
"""


def start(folder: Path) -> set[Path]:
    """Start a model in a process of its own; what is kept after it."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", START, str(folder)], cwd=root, check=True, capture_output=True)
    return set(folder.rglob("xla_compile_cache*"))


@pytest.mark.slow
def test_a_restart_finds_what_was_compiled(tmp_path: Path) -> None:
    first = start(tmp_path)
    new = start(tmp_path) - first
    # Of some functions XLA makes one of two programs, by chance; a later start finds both.
    assert len(first) >= 4
    assert len(new) <= len(first) // 2
