"""Identifiers and secrets that look like Stripe's."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 24) -> str:
    """A random id such as `cus_4QFHd1...`; the prefix comes without its underscore."""
    return f"{prefix}_{random_text(length)}"


def random_text(length: int) -> str:
    """So many random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
