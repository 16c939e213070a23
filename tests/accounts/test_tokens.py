"""Secrets that are handed out once."""

from app.accounts.tokens import fits, hash_token, new_token


def test_a_token_fits_its_hash_and_no_other() -> None:
    token = new_token()
    assert fits(token.text, token.hash)
    assert not fits(new_token().text, token.hash)
    assert not fits(None, token.hash)
    assert not fits("", token.hash)


def test_a_token_has_256_random_bits() -> None:
    assert len(new_token().text) == 43
    assert len({new_token().text for _ in range(100)}) == 100
    assert len(new_token().hash) == 32


def test_what_no_token_is_has_a_hash_as_well() -> None:
    assert len(hash_token("é\ud7ff\udfff\0")) == 32
