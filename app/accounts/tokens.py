"""Secrets that are handed out once and remembered as hashes: cookies, links in mails, recovery codes.

They are random, 128 bits and more, so that one round of SHA-256 is enough: there is
nothing to guess from. Looking one up compares hashes, which tells no time about tokens.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Token:
    """A new secret.

    Attributes:
        text: For the one whom it is for; URL-safe.
        hash: For the database, 32 bytes.
    """

    text: str
    hash: bytes


def new_token() -> Token:
    """A token of 256 random bits."""
    text = secrets.token_urlsafe(TOKEN_BYTES)
    return Token(text, hash_token(text))


def hash_token(text: str) -> bytes:
    """What is remembered of a token; any text has a hash, also one that no token has."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def fits(text: str | None, expected: bytes) -> bool:
    """Whether ``text`` is the token of that hash, in constant time."""
    return text is not None and hmac.compare_digest(hash_token(text), expected)
