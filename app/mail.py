"""Mails: through a mail server, or into ``DATA_DIR/mail`` while none is set.

Plain text, so nothing in a mail can track whether it was read, and nothing of what a
customer typed can become markup. A mail is handed over once; whoever must be told keeps a
queue (``app.accounts.mailings``, ``app.alerts.notifications``).
"""

import asyncio
import os
import secrets
import smtplib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid, parseaddr
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from app.config import Settings, make_private_dir
from app.errors import ConfigError, MailUnavailable
from app.telemetry import MAILS, get_logger

log = get_logger(__name__)

REFUSED = "mail_refused"
TIMEOUT_S = 20.0
"""Of each exchange with the mail server."""
_FOR_GOOD = 500
_PORTS = {"smtp": 25, "smtps": 465}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to one address; ``subject`` is one line, ``text`` has no markup."""

    to: str
    subject: str
    text: str


async def send(settings: Settings, mail: Mail, tls: ssl.SSLContext | None = None) -> None:
    """Hands a mail to the mail server, or writes it down.

    Args:
        settings: Which server, and from whom.
        mail: What.
        tls: How the server is recognised; None: by the system's authorities.

    Raises:
        MailUnavailable: It was not taken; code ``REFUSED``: nor will it ever be, there is no such mailbox.
    """
    message = _message(settings, mail)
    try:
        if settings.smtp_url is None:
            await asyncio.to_thread(_write, settings.mail_dir, message)
        else:
            await asyncio.to_thread(_submit, settings.smtp_url.get_secret_value(), message, tls)
    except (OSError, smtplib.SMTPException, ConfigError) as error:
        MAILS.labels("failed").inc()
        # The server's words may name the address.
        log.warning("mail.failed", error=type(error).__name__)
        raise MailUnavailable("The mail could not be sent.", code=REFUSED if _is_final(error) else None) from error
    MAILS.labels("sent").inc()


def _message(settings: Settings, mail: Mail) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = settings.mail_from
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = make_msgid(domain=parseaddr(settings.mail_from)[1].rpartition("@")[2])
    # RFC 3834: no out-of-office notes in return.
    message["Auto-Submitted"] = "auto-generated"
    # As it is: quoted-printable would break the links for who reads the file.
    message.set_content(mail.text, cte="7bit" if mail.text.isascii() else "8bit")
    return message


def _is_final(error: Exception) -> bool:
    """RFC 5321 section 4.2.1: a refusal of 500 and more is for good."""
    if not isinstance(error, smtplib.SMTPRecipientsRefused):
        return False
    return all(code >= _FOR_GOOD for code, _ in error.recipients.values())


def _write(folder: Path, message: EmailMessage) -> None:
    """Into a file of its own, complete from the moment that it has its name."""
    make_private_dir(folder)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
    part = folder / f".{name}.part"
    # Links in it open accounts.
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(message.as_bytes())
    part.rename(folder / f"{name}.eml")


def _submit(url: str, message: EmailMessage, tls: ssl.SSLContext | None) -> None:
    server = urlsplit(url)
    context = tls or ssl.create_default_context()
    with _connect(server, context) as client:
        if server.scheme == "smtp":
            _secure(client, server, context)
        if server.username:
            client.login(unquote(server.username), unquote(server.password or ""))
        client.send_message(message)


def _connect(server: SplitResult, context: ssl.SSLContext) -> smtplib.SMTP:
    host, port = server.hostname or "", server.port or _PORTS[server.scheme]
    if server.scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    return smtplib.SMTP(host, port, timeout=TIMEOUT_S)


def _secure(client: smtplib.SMTP, server: SplitResult, context: ssl.SSLContext) -> None:
    """Encrypts where the server can; a password never goes over a network in the clear.

    Raises:
        SMTPNotSupportedError: There is one to send, and it would.
    """
    client.ehlo()
    if client.has_extn("starttls"):
        client.starttls(context=context)
    elif server.username and server.hostname not in _LOOPBACK:
        raise smtplib.SMTPNotSupportedError("no STARTTLS, and there is a password to send")
