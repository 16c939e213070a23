import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app import config
from app.config import MAX_SOCKET_PATH_BYTES, Settings, child_environment, development_secret, load_settings
from app.errors import ConfigError

LONG_SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TOLLGATE_{name.upper()}", raising=False)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path / "data"))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_PORT", "9000")
    assert load_settings().port == 9000


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", "")
    assert load_settings().database_url is None


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_PORT", "eighty")
    with pytest.raises(ConfigError, match="TOLLGATE_PORT"):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("missing", ["TOLLGATE_SECRET_KEY", "TOLLGATE_KEY_PEPPER", "TOLLGATE_DATABASE_URL"])
def test_production_refuses_what_nobody_set(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    given = {
        "TOLLGATE_ENV": "production",
        "TOLLGATE_SECRET_KEY": LONG_SECRET,
        "TOLLGATE_KEY_PEPPER": LONG_SECRET,
        "TOLLGATE_DATABASE_URL": "postgresql://db/tollgate",
    }
    for name, value in given.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=missing):
        load_settings()


def test_production_refuses_a_short_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_ENV", "production")
    monkeypatch.setenv("TOLLGATE_SECRET_KEY", "short")
    with pytest.raises(ConfigError, match="16 characters"):
        load_settings()


def test_production_takes_what_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOLLGATE_ENV", "production")
    monkeypatch.setenv("TOLLGATE_SECRET_KEY", LONG_SECRET)
    monkeypatch.setenv("TOLLGATE_KEY_PEPPER", LONG_SECRET)
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", "postgresql://db/tollgate")
    assert load_settings().key_pepper.get_secret_value() == LONG_SECRET
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("secrets", ["", " , ", "whsec_short"])
def test_production_takes_no_key_of_stripe_without_a_secret_for_its_webhooks(
    monkeypatch: pytest.MonkeyPatch, secrets: str
) -> None:
    monkeypatch.setenv("TOLLGATE_ENV", "production")
    for name in ("SECRET_KEY", "KEY_PEPPER"):
        monkeypatch.setenv(f"TOLLGATE_{name}", LONG_SECRET)
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", "postgresql://db/tollgate")
    monkeypatch.setenv("TOLLGATE_STRIPE_API_KEY", "sk_test_" + LONG_SECRET)
    monkeypatch.setenv("TOLLGATE_STRIPE_WEBHOOK_SECRETS", secrets)
    with pytest.raises(ConfigError, match="TOLLGATE_STRIPE_WEBHOOK_SECRETS"):
        load_settings()
    monkeypatch.setenv("TOLLGATE_STRIPE_WEBHOOK_SECRETS", f"whsec_{LONG_SECRET}, whsec_{LONG_SECRET}2,")
    settings = load_settings()
    assert settings.webhook_secrets == (f"whsec_{LONG_SECRET}", f"whsec_{LONG_SECRET}2")
    assert LONG_SECRET not in repr(settings)


@pytest.mark.parametrize("missing", ["TOLLGATE_PUBLIC_URL", "TOLLGATE_MAIL_FROM"])
def test_production_sends_no_mails_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    given = {
        "TOLLGATE_ENV": "production",
        "TOLLGATE_SECRET_KEY": LONG_SECRET,
        "TOLLGATE_KEY_PEPPER": LONG_SECRET,
        "TOLLGATE_DATABASE_URL": "postgresql://db/tollgate",
        "TOLLGATE_SMTP_URL": "smtps://mail.example",
        "TOLLGATE_PUBLIC_URL": "https://api.example",
        "TOLLGATE_MAIL_FROM": "Acme <api@acme.example>",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert load_settings().portal_url == "https://api.example"
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError, match=missing):
        load_settings()


@pytest.mark.parametrize(
    "url", ["api.example", "ftp://api.example", "https://", "https://a b", "https://a@b", "https://a?b"]
)
def test_what_is_no_address_of_the_portal_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TOLLGATE_PUBLIC_URL", url)
    with pytest.raises(ConfigError, match="TOLLGATE_PUBLIC_URL"):
        load_settings()


def test_without_a_secret_no_webhook_is_believed() -> None:
    assert load_settings().webhook_secrets == ()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"public_url": "https://pay.example/"}, "https://pay.example"),
        ({"port": 9000}, "http://127.0.0.1:9000"),
        ({"host": "::1"}, "http://[::1]:8000"),
    ],
)
def test_the_portal_is_reached_where_the_operator_says_or_here(given: dict[str, Any], url: str) -> None:
    assert Settings(**given).portal_url == url


def test_development_secrets_survive_a_restart() -> None:
    assert load_settings().key_pepper == load_settings().key_pepper
    assert load_settings().key_pepper != Settings().key_pepper


def test_a_secret_that_is_set_wins_over_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    load_settings()
    monkeypatch.setenv("TOLLGATE_KEY_PEPPER", LONG_SECRET)
    assert load_settings().key_pepper.get_secret_value() == LONG_SECRET


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    load_settings()
    assert stat.S_IMODE((tmp_path / "data" / "secrets.json").stat().st_mode) == 0o600


def test_processes_that_start_at_once_agree_on_the_secrets(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = {*pool.map(lambda _: development_secret(tmp_path / "new", "key_pepper"), range(16))}
    assert len(found) == 1
    assert os.listdir(tmp_path / "new") == ["secrets.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"secret_key": "x"}'])
def test_a_damaged_secrets_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(ConfigError, match=r"secrets\.json is damaged"):
        development_secret(tmp_path, "key_pepper")


def test_a_data_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot create"):
        development_secret(tmp_path / "file", "key_pepper")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        config.make_private_dir(tmp_path)


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    settings = load_settings()
    assert settings.key_pepper.get_secret_value() not in repr(settings)


def test_the_engine_is_found_where_it_listens(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.engine_target == settings.engine_listen == f"unix:{tmp_path}/run/engine.sock"


def test_an_address_of_the_engine_wins() -> None:
    settings = Settings(engine_url="engine:50051", engine_bind="0.0.0.0:50051")
    assert settings.engine_target == "engine:50051"
    assert settings.engine_listen == "0.0.0.0:50051"


def test_a_long_data_folder_still_has_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    settings = Settings(data_dir=deep)
    assert len(str(settings.socket_dir / ".s.PGSQL.5432.lock")) <= MAX_SOCKET_PATH_BYTES
    assert settings.socket_dir == Settings(data_dir=deep).socket_dir
    assert settings.socket_dir != Settings(data_dir=deep / "other").socket_dir


def test_a_child_sees_exactly_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOLLGATE_LOG_LEVEL", "debug")
    monkeypatch.setenv("LANG", "C")
    secret = SecretStr(LONG_SECRET)
    settings = Settings(
        data_dir=tmp_path,
        port=9001,
        key_pepper=secret,
        secret_key=secret,
        log_level="info",
        stripe_api_key=secret,
        stripe_webhook_secrets=SecretStr("a, b"),
        stripe_tax=True,
    )
    environment = child_environment(settings, EXTRA="1")
    assert (environment["LANG"], environment["EXTRA"]) == ("C", "1")
    monkeypatch.delenv("TOLLGATE_LOG_LEVEL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().model_dump() == settings.model_dump()


def test_libraries_are_quiet_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    config.quiet_libraries()
    assert child_environment(Settings())["TF_CPP_MIN_LOG_LEVEL"] == "0"


def test_the_secrets_file_holds_what_each_role_needs(tmp_path: Path) -> None:
    development_secret(tmp_path, "key_pepper")
    assert json.loads((tmp_path / "secrets.json").read_text()).keys() == {
        "secret_key",
        "key_pepper",
        "database_password",
    }


def test_usage_is_kept_for_ever_or_for_at_least_three_months() -> None:
    assert [Settings(usage_retention_months=months).usage_retention_months for months in (0, 3, 13)] == [0, 3, 13]
    for months in (-1, 1, 2):
        with pytest.raises(ValidationError):
            Settings(usage_retention_months=months)
