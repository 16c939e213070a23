"""Passwords that are tried first."""

import pytest

from app.accounts.guessable import is_guessable


@pytest.mark.parametrize(
    "password",
    [
        *("1234567890", "0987654321", "qwertyuiop", "asdfghjklz", "abcdefghijkl", "1qaz2wsx3edc", "q1w2e3r4t5y6"),
        *("aaaaaaaaaaaa", "1212121212", "passwordpassword", "abc123abc123", "!@#$%^&*()", "1234512345", "111222333444"),
        *(
            "password123",
            "Password2026!",
            "P@ssw0rd1234",
            "p.a.s.s.w.o.r.d",
            "123password!!",
            "1l0vey0u2026",
            "Welcome2026!",
        ),
        *("tollgate2026", "T0llg@te!!!!", "\uff50assword123", "letmein!!!!!", "iloveyou12345", "Summer2026!!"),
    ],
)
def test_what_is_tried_first_is_refused(password: str) -> None:
    assert is_guessable(password)


@pytest.mark.parametrize(
    "password",
    [
        *(
            "a long enough password",
            "correct horse battery staple",
            "another long password",
            "kT9#vv2pLq",
            "dragonfruit salad",
        ),
        *(
            "dragon8k3j29f0s!",
            "qwertyuiop but longer",
            "密码不容易猜到的句子吧",
            "8-2-9-4-0-7-1-5-3-6",
            "Jane.Roe-2026",
        ),
    ],
)
def test_what_is_not_is_taken(password: str) -> None:
    assert not is_guessable(password)


def test_the_name_of_who_chooses_is_no_password() -> None:
    assert is_guessable("Jane.Roe-2026", "jane.roe@acme.example") is True
    assert is_guessable("2026jane2026", "jane.roe@acme.example")
    assert is_guessable("acmeacme2026", "jane.roe@acme.example")
    assert not is_guessable("jane likes tea", "jane.roe@acme.example")
    assert not is_guessable("jo8kq-23mmz1", "jo@x.example")
