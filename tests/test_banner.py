from pathlib import Path

import pytest

from app import banner
from app.banner import Account
from app.modeling.registry import ModelCard
from app.tables import new_id


def card(name: str, kind: str) -> ModelCard:
    return ModelCard(
        name=name,
        kind=kind,
        path=Path(name),
        digest="0" * 64,
        context_length=64,
        vocab_size=64,
        labels=(),
        embedding_size=0,
        bos_token_id=None,
        eos_token_ids=(),
        chat_template=None,
        created=0,
        license=None,
        description="",
        enabled=True,
    )


def test_the_first_welcome_has_all_that_a_newcomer_needs(capsys: pytest.CaptureFixture[str]) -> None:
    account = Account(new_id(), "owner@demo.local", "a-password", "tg_live_abc")
    banner.welcome("http://127.0.0.1:8000", [card("plays", "generation")], account, 1.0)
    shown = capsys.readouterr().out
    for part in ("http://127.0.0.1:8000/v1", "owner@demo.local", "a-password", "Bearer tg_live_abc", "plays"):
        assert part in shown


def test_what_stands_for_stripe_is_shown_if_there_is_something_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    for stripe, is_shown in (("http://127.0.0.1:8001/ (simulated)", True), (None, False)):
        banner.welcome("http://127.0.0.1:8000", [card("plays", "generation")], Account(new_id()), 1.0, stripe)
        assert ("Stripe" in capsys.readouterr().out) is is_shown


def test_a_later_welcome_says_how_to_make_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    account = Account(new_id())
    banner.welcome("http://127.0.0.1:8000", [card("plays", "generation")], account, 1.0)
    shown = capsys.readouterr().out
    assert f"tollgate keys create --org {account.org_id}" in shown
    assert "Password" not in shown


def test_the_example_prefers_a_model_that_writes() -> None:
    models = [card("a-classifier", "classification"), card("writer", "generation")]
    assert '"model": "writer"' in banner.example("http://h", models, "k")


def test_the_example_of_a_classifier_classifies() -> None:
    shown = banner.example("http://h", [card("intents", "classification")], "k")
    assert "http://h/v1/classifications" in shown
    assert '"input"' in shown


def test_a_line_of_a_child_is_shown_behind_its_role(capsys: pytest.CaptureFixture[str]) -> None:
    banner.child_line("api", "[not markup] a line")
    assert capsys.readouterr().err == "api    │ [not markup] a line\n"


def test_notes_of_tensorflow_on_the_machine_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    banner.child_line("engine", "I0000 00:00:1.0 1 port.cc:153] oneDNN custom operations are on.")
    assert capsys.readouterr().err == ""
