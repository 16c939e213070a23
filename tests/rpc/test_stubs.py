import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_committed_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    arguments = [
        f"-I{ROOT}",
        *(f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *(f"--plugin=protoc-gen-{kind}={tools / f'protoc-gen-{kind}'}" for kind in ("mypy", "mypy_grpc")),
        str(ROOT / "app/rpc/engine.proto"),
    ]
    # In a process of its own: beside TensorFlow, whose protobuf is another, protoc crashes.
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "app/rpc").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "app/rpc").glob("engine_pb2*")}
    assert fresh == committed
