from pathlib import Path

import pytest

from app.config import Settings
from app.engine.device import align_function_numbers, device_name, start_tensorflow
from app.engine.encoder_runner import EncoderRunner
from app.engine.loader import CACHE_DIR, load_model, load_stub
from app.engine.model_runner import DecoderRunner
from app.engine.stores import MemoryStore, VariableStore
from app.engine.stub import WINNING_SCORE, StubEncoder, StubRunner
from app.errors import ModelFormatError
from app.kernels import ops
from app.modeling.registry import read_card
from tests.kernels.started import started
from tests.modeling.checkpoints import write_decoder, write_encoder, write_gru


class Starts(list[tuple[Path | None, int]]):
    """The kernels of this process, whatever folder a test has, and who asked for them."""

    def __call__(self, folder: Path | None, num_threads: int) -> ops.Started | None:
        self.append((folder, num_threads))
        return started()


@pytest.fixture(autouse=True)
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    starts = Starts()
    monkeypatch.setattr(ops, "start", starts)
    return starts


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", models_dir=tmp_path / "models", engine_slots=2)


def test_each_layout_gets_its_runner(settings: Settings) -> None:
    write_decoder(settings.models_dir / "writer")
    write_encoder(settings.models_dir / "judge")
    writer = load_model(settings, read_card(settings.models_dir / "writer"))
    judge = load_model(settings, read_card(settings.models_dir / "judge"))
    assert isinstance(writer, DecoderRunner)
    assert writer.shapes.num_slots == 2
    assert isinstance(judge, EncoderRunner)


def test_a_recurrent_model_has_no_kernels(settings: Settings, starts: Starts) -> None:
    """What lies between its products has other bits for other numbers of columns."""
    write_gru(settings.models_dir / "writer")
    assert isinstance(load_model(settings, read_card(settings.models_dir / "writer")), DecoderRunner)
    assert starts == []


def test_a_writer_has_kernels_unless_they_are_switched_off(settings: Settings, starts: Starts) -> None:
    write_decoder(settings.models_dir / "writer")
    card = read_card(settings.models_dir / "writer")
    without = load_model(settings.model_copy(update={"engine_kernels": False, "engine_threads": 2}), card)
    assert starts == []
    by_default = load_model(settings.model_copy(update={"engine_threads": 2}), card)
    assert isinstance(without, DecoderRunner)
    assert isinstance(by_default, DecoderRunner)
    [(folder, num_threads)] = starts
    assert folder is not None
    assert folder.parent == settings.data_dir / CACHE_DIR
    assert num_threads == 2
    assert isinstance(without._store, VariableStore)
    assert isinstance(by_default._store, MemoryStore)


def test_a_processor_without_kernels_gets_the_same_runner(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "start", lambda *_: None)
    write_decoder(settings.models_dir / "writer")
    writer = load_model(settings, read_card(settings.models_dir / "writer"))
    assert isinstance(writer, DecoderRunner)
    assert isinstance(writer._store, VariableStore)


def test_damaged_weights_are_refused_by_name(settings: Settings) -> None:
    folder = settings.models_dir / "writer"
    write_decoder(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
        load_model(settings, read_card(folder))


def test_stub_has_the_sizes_of_the_card(settings: Settings) -> None:
    write_decoder(settings.models_dir / "writer")
    write_encoder(settings.models_dir / "judge")
    writer = load_stub(settings, read_card(settings.models_dir / "writer"), step_s=0)
    judge = load_stub(settings, read_card(settings.models_dir / "judge"), step_s=0)
    assert isinstance(writer, StubRunner)
    assert (writer.shapes.num_slots, writer.vocab_size, writer.context_length) == (2, 300, 64)
    assert isinstance(judge, StubEncoder)
    assert len(judge.encode([(1,)]).rows[0]) == 2


def test_stub_reads_texts_for_a_model_of_one_label() -> None:
    assert StubEncoder(1).encode([(1,), (2, 3)]).rows == ((WINNING_SCORE,),) * 2


def test_device_has_a_name_and_a_second_start_is_harmless(tmp_path: Path) -> None:
    folder = start_tensorflow(tmp_path / "cache")
    assert start_tensorflow(tmp_path / "cache") == folder
    assert folder.parent == tmp_path / "cache"
    align_function_numbers()
    assert device_name()
