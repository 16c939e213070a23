"""Settings: the only reader of the environment.

``load_settings()`` reads ``TOLLGATE_*`` once at the start of a process; everything
else receives the frozen ``Settings``. In development, secrets that nobody set are
generated once and kept in ``DATA_DIR/secrets.json`` (owner only), so that keys
survive a restart; production refuses to start on anything that was not set.
"""

import hashlib
import json
import os
import re
import secrets as random_secrets
import tempfile
from email.utils import parseaddr
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import ConfigError

INSECURE_SECRET = "insecure-development-only"  # noqa: S105 - the value production refuses
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, with the closing NUL.
MAX_SOCKET_PATH_BYTES = 100
MIN_RETENTION_MONTHS = 3


class Settings(BaseSettings):
    """Everything that can be set, with unit and default."""

    model_config = SettingsConfigDict(env_prefix="TOLLGATE_", frozen=True, extra="ignore", env_ignore_empty=True)

    env: Literal["development", "production"] = "development"
    database_url: str | None = None
    """PostgreSQL address; unset: the embedded server under ``data_dir``."""
    data_dir: Path = Path(".tollgate")
    models_dir: Path = Path("models")
    engine_url: str | None = None
    """gRPC target of a running engine; unset: a unix socket under ``data_dir``."""
    engine_bind: str | None = None
    """gRPC address that ``tollgate engine`` listens on; unset: ``engine_target``."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    """Where a worker on its own shows its metrics; 0: nowhere, as beside an API process that shows them all."""
    secret_key: SecretStr = SecretStr(INSECURE_SECRET)
    """Signs portal sessions."""
    key_pepper: SecretStr = SecretStr(INSECURE_SECRET)
    """HMAC key over API keys; changing it invalidates every key."""
    public_url: str | None = None
    """Where customers' browsers reach the portal, such as https://api.example.com; unset: ``host`` and ``port``."""
    stripe_api_key: SecretStr | None = None
    """Secret or restricted key; unset: nothing is sold."""
    stripe_api_base: str | None = None
    """Address of the API; unset: Stripe's own."""
    stripe_webhook_secrets: SecretStr = SecretStr("")
    """Signing secrets of the webhook's endpoint, comma-separated: two while one is rolled."""
    simulate_stripe: bool = True
    """``tollgate up`` brings a simulated Stripe along, in development, where no key is set."""
    stripe_tax: bool = False
    """Stripe computes and collects tax; it has to be set up there first."""
    billing_grace_days: int = Field(7, ge=0, le=60)
    """Days for which an organisation whose payment failed is served."""
    smtp_url: SecretStr | None = None
    """Mail server, ``smtp://user:password@host:587`` or ``smtps://…``; unset: mails go to ``data_dir``/mail."""
    mail_from: str = "Tollgate <tollgate@localhost>"
    """Whom mails are from; with a mail server, an address for which it may send."""
    log_format: Literal["json", "console"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    trusted_proxies: str = "127.0.0.1"
    """Whose ``X-Forwarded-For`` is believed: addresses or networks, comma-separated; ``*``: everybody's."""
    database_pool_size: int = Field(10, ge=1, le=200)
    """Connections per API process."""
    database_timeout_s: float = Field(5.0, gt=0)
    """Longest wait for a connection before the answer is 503."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Deadline of a request that names none."""
    stream_keepalive_s: float = Field(15.0, gt=0)
    """A silent stream sends a comment line this often."""
    drain_timeout_s: float = Field(20.0, gt=0)
    """How long a stopping process lets requests in flight finish."""
    usage_retention_months: int = Field(0, ge=0, le=1200)
    """Whole months of usage rows that are kept beside the running one, 3 or more; 0: all."""
    engine_slots: int = Field(16, ge=1, le=256)
    """Sequences decoded together, per generation model."""
    engine_precision: Literal["float32", "int8"] = "float32"
    """Of generation models' weights, where a model's ``tollgate.json`` says nothing else."""
    engine_prefix_cache_mib: int = Field(64, ge=0)
    """Device memory for the beginnings of prompts, MiB per generation model; 0: none is kept."""
    engine_queue: int = Field(128, ge=1)
    """Requests waiting for a slot or a batch, per model; above it: 503."""
    engine_keepalive_s: float = Field(2.0, gt=0)
    """Interval of gRPC pings on a connection with calls in flight."""
    engine_stall_s: float = Field(60.0, gt=0)
    """A stream without a chunk for this long counts as a dead engine."""
    engine_threads: int = Field(0, ge=0)
    """Threads of the numeric kernels; 0: as many as there are cores."""
    engine_kernels: bool = True
    """Use kernels compiled at start for products and attention on a processor; without, XLA's own."""

    @field_validator("usage_retention_months")
    @classmethod
    def _refuse_short_retention(cls, months: int) -> int:
        # What was used has to be there until it is invoiced and any dispute is over.
        if 0 < months < MIN_RETENTION_MONTHS:
            raise ValueError(f"must be 0 (keep everything) or at least {MIN_RETENTION_MONTHS}")
        return months

    @field_validator("public_url")
    @classmethod
    def _refuse_no_address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError("must be an address such as https://api.example.com")
        return url

    @field_validator("smtp_url")
    @classmethod
    def _refuse_no_mail_server(cls, url: SecretStr | None) -> SecretStr | None:
        # Not shown: there may be a password in it.
        if url is not None and not _is_mail_server(url.get_secret_value()):
            raise ValueError("must be smtp://user:password@host:port or smtps://…")
        return url

    @field_validator("mail_from")
    @classmethod
    def _refuse_no_sender(cls, sender: str) -> str:
        if "@" not in parseaddr(sender)[1] or not sender.isprintable():
            raise ValueError("must be an address, such as 'Acme <api@acme.example>'")
        return sender

    @model_validator(mode="after")
    def _refuse_unsafe_production(self) -> Self:
        if self.env != "production":
            return self
        for name in ("secret_key", "key_pepper"):
            value = getattr(self, name).get_secret_value()
            if value == INSECURE_SECRET or len(value) < 16:
                raise ValueError(f"TOLLGATE_{name.upper()} must be set to at least 16 characters in production")
        if self.database_url is None:
            raise ValueError("TOLLGATE_DATABASE_URL must be set in production")
        if self.stripe_api_key is not None and min(map(len, self.webhook_secrets), default=0) < 16:
            raise ValueError(
                "TOLLGATE_STRIPE_WEBHOOK_SECRETS must be set in production, as TOLLGATE_STRIPE_API_KEY is:"
                " secrets of at least 16 characters"
            )
        # Customers would be sent to the machine that they sit at, by nobody.
        for name in ("public_url", "mail_from"):
            is_default = getattr(self, name) == type(self).model_fields[name].default
            if self.smtp_url is not None and is_default:
                raise ValueError(f"TOLLGATE_{name.upper()} must be set in production, as TOLLGATE_SMTP_URL is")
        return self

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """Each secret with which a webhook may be signed; empty: none is believed."""
        parts = self.stripe_webhook_secrets.get_secret_value().split(",")
        return tuple(stripped for part in parts if (stripped := part.strip()))

    @property
    def portal_url(self) -> str:
        """The address of the portal without a slash at its end, for links that are followed from elsewhere."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        return local_url(self.host, self.port)

    @property
    def engine_target(self) -> str:
        """The gRPC target at which this installation's engine is reached."""
        return self.engine_url or f"unix:{self.socket_dir / 'engine.sock'}"

    @property
    def engine_listen(self) -> str:
        """The gRPC address on which an engine started here listens."""
        return self.engine_bind or self.engine_target

    @property
    def socket_dir(self) -> Path:
        """Folder of this installation's unix sockets, short enough for the kernel."""
        return short_socket_dir(self.data_dir)

    @property
    def journal_dir(self) -> Path:
        """Where API processes note what they deliver; on a disk that outlives them."""
        return self.data_dir / "journal"

    @property
    def mail_dir(self) -> Path:
        """Where mails are written while no mail server is set."""
        return self.data_dir / "mail"


def local_url(host: str, port: int) -> str:
    """The URL under which this machine reaches what listens on ``host``."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def short_socket_dir(data_dir: Path) -> Path:
    """``data_dir``/run, or a folder below the system's temporary one if that is too long.

    Only names the folder; ``make_private_dir`` creates it.
    """
    absolute = data_dir.resolve()
    preferred = absolute / "run"
    if len(os.fsencode(preferred / ".s.PGSQL.5432.lock")) <= MAX_SOCKET_PATH_BYTES:
        return preferred
    digest = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tollgate-{os.getuid()}-{digest}"


def make_data_dir(path: Path) -> Path:
    """Creates the data folder; its contents are private, each by its own mode.

    Raises:
        ConfigError: As ``make_private_dir``.
    """
    # PostgreSQL refuses to run as root: the user it runs as then needs to pass
    # through this folder to its own, without seeing what else is in it.
    return make_private_dir(path, mode=0o711 if os.geteuid() == 0 else 0o700)


def make_private_dir(path: Path, mode: int = 0o700, owner: int | None = None) -> Path:
    """Creates ``path`` for its owner only and refuses one that somebody else owns.

    A folder that exists keeps its mode.

    Args:
        path: Missing parents are created too.
        mode: Of a folder that is created here.
        owner: A user id that an existing folder may belong to besides the present one.

    Raises:
        ConfigError: It cannot be created, or belongs to another user.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        found = path.lstat().st_uid
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from error
    if found not in {os.geteuid(), owner}:
        raise ConfigError(f"{path} belongs to another user; set TOLLGATE_DATA_DIR to a folder of your own")
    return path


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment for a child process that shall see exactly ``settings``.

    Args:
        settings: Passed on in full, secrets included; a child's environment is
            readable by the same user only.
        extra: Variables of libraries, by their full name.
    """
    values = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for name, value in settings:
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    ours = {f"TOLLGATE_{name.upper()}": str(value) for name, value in values.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TOLLGATE_")}
    return {**inherited, **ours, **extra}


def quiet_libraries() -> None:
    """Keeps TensorFlow's notes on the machine off the terminal; its errors stay.

    Call it before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def metrics_dir() -> str | None:
    """prometheus_client's folder where the processes of one machine share their metrics."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


def load_settings() -> Settings:
    """Settings from the environment, with development secrets filled in.

    Raises:
        ConfigError: A value is missing or wrong; the message names the variable.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None
    if settings.env == "production":
        return settings
    return _with_development_secrets(settings)


def development_secret(data_dir: Path, name: str) -> str:
    """One generated secret of this data folder, made at the first call.

    Raises:
        ConfigError: The file is damaged or cannot be written.
    """
    path = make_data_dir(data_dir) / "secrets.json"
    if not path.exists():
        _create_secrets(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; restore it, or delete it to invalidate every key") from None
    return str(value)


def _with_development_secrets(settings: Settings) -> Settings:
    generated = {
        name: SecretStr(development_secret(settings.data_dir, name))
        for name in ("secret_key", "key_pepper")
        if getattr(settings, name).get_secret_value() == INSECURE_SECRET
    }
    return settings.model_copy(update=generated)


def _create_secrets(path: Path) -> None:
    values = {name: random_secrets.token_urlsafe(32) for name in ("secret_key", "key_pepper", "database_password")}
    # Written aside and linked: the first of two processes starting at once wins,
    # and nobody ever reads half a file.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="secrets-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file)
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        Path(temporary).unlink()


def _is_mail_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"smtp", "smtps"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        return False


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"TOLLGATE_{str(problem['loc'][0]).upper()}: {message}"
