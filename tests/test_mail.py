"""Mails: into files, and through a mail server that is a real socket."""

import asyncio
import base64
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.config import Settings
from app.errors import MailUnavailable
from app.mail import REFUSED, Mail, send

LINK = "http://localhost:8000/confirm?token=" + "x" * 80
MAIL = Mail("new@customer.example", "Bestätigung 确认", f"Öffnen Sie:\n\n{LINK}\n")
# A certificate of its own for localhost, and its key; for these tests only.
CERTIFICATE = Path(__file__).parent / "mail_server.pem"


@dataclass
class MailServer:
    """Takes mails as RFC 5321 has it, and refuses what it is told to refuse."""

    port: int = 0
    extensions: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None
    refuses: str = ""
    code: int = 550
    commands: list[str] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""

        def say(*lines: str) -> None:
            writer.write("".join(f"{line}\r\n" for line in lines).encode())

        say("220 tests")
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            verb = line.partition(" ")[0].upper()
            self.commands.append(line)
            if self.refuses == verb:
                say(f"{self.code} no")
            elif verb == "EHLO":
                lines = ["tests", *self.extensions]
                say(*(f"250{'-' if number + 1 < len(lines) else ' '}{text}" for number, text in enumerate(lines)))
            elif verb == "AUTH":
                say("235 welcome")
            elif verb == "STARTTLS" and self.tls is not None:
                say("220 go on")
                await writer.start_tls(self.tls)
            elif verb == "DATA":
                say("354 go on")
                self.received.append((await reader.readuntil(b"\r\n.\r\n"))[:-3])
                say("250 taken")
            else:
                say("221 bye" if verb == "QUIT" else "250 well")
        writer.close()


@asynccontextmanager
async def mail_server(
    *extensions: str,
    refuses: str = "",
    code: int = 550,
    tls: ssl.SSLContext | None = None,
    from_the_start: bool = False,
) -> AsyncIterator[MailServer]:
    """Listening on a free port."""
    state = MailServer(extensions=extensions, refuses=refuses, code=code, tls=tls)
    server = await asyncio.start_server(state.serve, "127.0.0.1", 0, ssl=tls if from_the_start else None)
    state.port = server.sockets[0].getsockname()[1]
    async with server:
        yield state


@pytest.fixture
def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """A client's that knows the server's certificate."""
    return ssl.create_default_context(cafile=CERTIFICATE)


def with_server(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"smtp_url": SecretStr(url), "mail_from": "Acme <api@acme.example>"})


def parsed(raw: bytes) -> EmailMessage:
    return message_from_bytes(raw, policy=policy.default)


async def test_without_a_mail_server_a_mail_is_a_private_file(settings: Settings) -> None:
    await send(settings, MAIL)
    await send(settings, MAIL)
    first, second = sorted(settings.mail_dir.iterdir())
    assert first.suffix == second.suffix == ".eml"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.mail_dir.stat().st_mode) == 0o700
    message = parsed(first.read_bytes())
    assert (message["to"], message["subject"]) == (MAIL.to, MAIL.subject)
    assert message.get_content().replace("\r\n", "\n") == MAIL.text


@pytest.mark.parametrize("text", [MAIL.text, f"Open this:\n\n{LINK}\n"])
async def test_a_link_can_be_copied_out_of_the_file(settings: Settings, text: str) -> None:
    await send(settings, Mail(MAIL.to, "Hello", text))
    assert f"\r\n{LINK}\r\n".encode() in next(settings.mail_dir.iterdir()).read_bytes()


async def test_a_mail_is_plain_text_and_asks_for_no_answer(settings: Settings) -> None:
    await send(settings, MAIL)
    message = parsed(next(settings.mail_dir.iterdir()).read_bytes())
    assert message.get_content_type() == "text/plain"
    assert not message.is_multipart()
    assert message["auto-submitted"] == "auto-generated"
    assert message["from"] == settings.mail_from
    assert message["message-id"].endswith("@localhost>")
    assert message["date"] is not None


async def test_a_mail_goes_through_the_mail_server(settings: Settings) -> None:
    async with mail_server() as server:
        await send(with_server(settings, f"smtp://127.0.0.1:{server.port}"), MAIL)
    message = parsed(server.received[0])
    assert (message["to"], message["from"], message["subject"]) == (MAIL.to, "Acme <api@acme.example>", MAIL.subject)
    assert MAIL.text in message.get_content().replace("\r\n", "\n")
    assert any(command.lower().startswith("mail from:<api@acme.example>") for command in server.commands)
    assert not any(command.startswith("AUTH") for command in server.commands)
    assert not settings.mail_dir.exists()


async def test_it_logs_in_with_the_password_of_the_address(settings: Settings) -> None:
    async with mail_server("AUTH PLAIN") as server:
        await send(with_server(settings, f"smtp://some%40one:p%3Ass@127.0.0.1:{server.port}"), MAIL)
    auth = next(command for command in server.commands if command.startswith("AUTH PLAIN "))
    assert base64.b64decode(auth.split(" ")[2]) == b"\0some@one\0p:ss"
    assert len(server.received) == 1


async def test_no_password_goes_over_a_network_in_the_clear(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.mail._LOOPBACK", frozenset())
    async with mail_server("AUTH PLAIN") as server:
        with pytest.raises(MailUnavailable):
            await send(with_server(settings, f"smtp://user:password@127.0.0.1:{server.port}"), MAIL)
    assert not any(command.startswith("AUTH") for command in server.commands)
    assert server.received == []


async def test_a_server_that_can_encrypts_before_the_password(
    settings: Settings, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with mail_server("AUTH PLAIN", "STARTTLS", tls=server_tls) as server:
        await send(with_server(settings, f"smtp://user:password@localhost:{server.port}"), MAIL, trusting)
    verbs = [command.partition(" ")[0].upper() for command in server.commands]
    assert verbs.index("STARTTLS") < verbs.index("AUTH")
    assert len(server.received) == 1


async def test_smtps_is_encrypted_from_the_start(
    settings: Settings, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with mail_server("AUTH PLAIN", tls=server_tls, from_the_start=True) as server:
        await send(with_server(settings, f"smtps://user:password@localhost:{server.port}"), MAIL, trusting)
    assert "STARTTLS" not in [command.upper() for command in server.commands]
    assert len(server.received) == 1


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_server_that_nobody_vouches_for_gets_no_mail(
    settings: Settings, server_tls: ssl.SSLContext, scheme: str
) -> None:
    async with mail_server("STARTTLS", tls=server_tls, from_the_start=scheme == "smtps") as server:
        with pytest.raises(MailUnavailable):
            await send(with_server(settings, f"{scheme}://localhost:{server.port}"), MAIL)
    assert server.received == []


async def test_a_server_that_offers_encryption_is_asked_for_it(settings: Settings) -> None:
    async with mail_server("STARTTLS") as server:
        with pytest.raises(MailUnavailable):  # it cannot, after all
            await send(with_server(settings, f"smtp://127.0.0.1:{server.port}"), MAIL)
    assert "STARTTLS" in [command.upper() for command in server.commands]
    assert server.received == []


async def test_a_server_without_encryption_is_none_for_smtps(settings: Settings) -> None:
    async with mail_server() as server:
        with pytest.raises(MailUnavailable):
            await send(with_server(settings, f"smtps://127.0.0.1:{server.port}"), MAIL)
    assert server.received == []


@pytest.mark.parametrize(
    ("refuses", "code", "is_final"),
    [("MAIL", 550, False), ("RCPT", 550, True), ("RCPT", 450, False), ("DATA", 550, False)],
)
async def test_a_mail_that_is_not_taken_is_told(settings: Settings, refuses: str, code: int, is_final: bool) -> None:
    async with mail_server(refuses=refuses, code=code) as server:
        with pytest.raises(MailUnavailable) as refusal:
            await send(with_server(settings, f"smtp://127.0.0.1:{server.port}"), MAIL)
    assert (refusal.value.code == REFUSED) == is_final


async def test_a_server_that_is_away_does_no_harm(settings: Settings) -> None:
    async with mail_server() as server:
        pass
    with pytest.raises(MailUnavailable) as refusal:
        await send(with_server(settings, f"smtp://127.0.0.1:{server.port}"), MAIL)
    assert MAIL.to not in refusal.value.message
    assert refusal.value.code != REFUSED


async def test_a_folder_that_cannot_be_written_is_told(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.mail_dir.write_text("a file")
    with pytest.raises(MailUnavailable):
        await send(settings, MAIL)


@pytest.mark.parametrize("field", ["subject", "to"])
async def test_nothing_typed_becomes_another_header(settings: Settings, field: str) -> None:
    values = {"to": MAIL.to, "subject": "Hello", "text": "Text"} | {field: "x@y.example\r\nBcc: victim@b.example"}
    with pytest.raises(ValueError, match=r"linefeed|CR or LF"):
        await send(settings, Mail(**values))


@pytest.mark.parametrize(
    "url", ["localhost", "http://localhost", "smtp://", "smtp://localhost:x", "smtp://localhost:0"]
)
def test_what_is_no_mail_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(smtp_url=SecretStr(url))
    assert "must be smtp://" in str(refusal.value)


@pytest.mark.parametrize("sender", ["nobody", "", "Acme <api@acme.example>\nBcc: x@y.example"])
def test_what_is_no_sender_is_refused(sender: str) -> None:
    with pytest.raises(ValidationError):
        Settings(mail_from=sender)


def test_the_password_of_the_mail_server_is_not_shown() -> None:
    settings = Settings(smtp_url=SecretStr("smtps://user:password@mail.example"))
    assert "password" not in repr(settings)
