"""Passwords that are tried first: words everybody takes, rows of keys, repetitions, and the name of who chooses.

NIST SP 800-63B section 3.1.1.2 asks for such a list and against rules on kinds of characters.
Rules over a short list of words, rather than millions of lines to carry along: every shape in
which people dress up a common word is refused, a leaked password that has no such shape is not.
"""

import re
import string
import unicodedata
from collections.abc import Set as AbstractSet

MIN_DIFFERENT = 5
"""Characters; fewer are a pattern."""
_SERVICE = "tollgate"
_MIN_NAME_LENGTH = 3

_COMMON = """
    abc abcd abcdef access account admin administrator adobe andrew angel apple arsenal ashley asdf asdfgh azerty
    banana baseball basketball batman blessed buster butterfly changeme charlie cheese chelsea chocolate company
    computer cookie daniel default demo donald dragon facebook family flower football forever freedom friends ginger
    google guest hallo hannah hello helloworld hockey hunter iloveyou internet jennifer jessica jordan joshua justin
    killer letmein liverpool login london love loveme lovely manager master matrix matthew merlin michael michelle
    monkey mustang mypassword naruto nicole nothing office orange passphrase passw passwd password passwort pepper
    pokemon princess private purple qazwsx qwer qwert qwerty qwertyuiop qwertz robert root samsung secret server shadow
    soccer spring starwars summer sunshine superman superuser support system temp temporary test tester testing
    thomas tigger trustno unknown user username victory welcome whatever william winner winter yankees zxcvbn zxcvbnm
    autumn monday friday january february march april june july august september october november december
    woaini nihao wodemima shanghai beijing
    """
_WORDS = frozenset(_COMMON.split())
_ROWS = (
    "12345678901234567890",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "abcdefghijklmnopqrstuvwxyz0123456789",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "qazwsxedcrfvtgbyhnujmikolp",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
    "!@#$%^&*()_+",
)
_NO_LETTERS = string.digits + string.punctuation + " "
_LETTERS = str.maketrans("013457@$!", "oieastasi")


def is_guessable(password: str, about: str = "") -> bool:
    """Whether it is among what somebody tries first.

    Args:
        password: 10 characters or more.
        about: The e-mail address of who chooses it; empty: not known.
    """
    text = unicodedata.normalize("NFKC", password).casefold()
    piece = _repeated(text)
    mailbox = about.casefold().partition("@")[0]
    parts = (*re.split(r"[^a-z]+", about.casefold()), re.sub(r"[^a-z]", "", mailbox))
    names = {_SERVICE, *(part for part in parts if len(part) >= _MIN_NAME_LENGTH)}
    return len(set(text)) < MIN_DIFFERENT or _is_of_a_row(piece) or _is_common(piece, _WORDS | names)


def _repeated(text: str) -> str:
    """What the text repeats from its beginning to its end; the text itself if it is nothing shorter."""
    period = (text + text).find(text, 1)
    return text[:period]


def _is_of_a_row(text: str) -> bool:
    return any(text in row or text in row[::-1] for row in _ROWS)


def _is_common(text: str, known: AbstractSet[str]) -> bool:
    """Whether nothing is left of it but words, whatever digits and signs surround and replace letters."""
    inner, headed = text.strip(_NO_LETTERS), text.rstrip(_NO_LETTERS)
    spelt = (inner, inner.translate(_LETTERS), headed.translate(_LETTERS), text.translate(_LETTERS))
    words = {re.sub(r"[^a-z]", "", form) for form in spelt}
    return any(word in known or _repeated(word) in known for word in words)
