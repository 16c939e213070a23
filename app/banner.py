"""What ``tollgate up`` shows a person: a few calm lines, and the children's logs beside.

The welcome goes to standard output, everything else to standard error. Colour only
where a terminal shows it.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from rich.console import Console
from rich.text import Text

from app.modeling.registry import ModelCard

PROMPTS = {"shakespeare": "ROMEO:", "tang-poetry": "明月"}
CLASSIFICATION_INPUT = "I lost my card yesterday."
LABEL_WIDTH = 11
ROLE_WIDTH = 6
# TensorFlow 2.21 writes these of every start, whatever TF_CPP_MIN_LOG_LEVEL says.
TENSORFLOW_NOTES = re.compile(r"(I\d{4} |WARNING: All log messages before absl)")


@dataclass(frozen=True, slots=True)
class Account:
    """Who can use the installation.

    Attributes:
        org_id: The organisation.
        email: Login made just now; None where the organisation existed before.
        password: As ``email``.
        key: As ``email``.
    """

    org_id: UUID
    email: str | None = None
    password: str | None = None
    key: str | None = None


def note(line: str) -> None:
    """One line on what happens now."""
    _errors().print(f"  {line}", style="dim", highlight=False, markup=False, soft_wrap=True)


def child_line(role: str, line: str) -> None:
    """A line that a child process wrote, behind its role."""
    if TENSORFLOW_NOTES.match(line):
        return
    text = Text.assemble((f"{role:<{ROLE_WIDTH}} │ ", "cyan"), Text.from_ansi(line))
    _errors().print(text, soft_wrap=True)


def welcome(
    address: str, models: Sequence[ModelCard], account: Account, seconds: float, stripe: str | None = None
) -> None:
    """Where everything is, and a request to paste; ``stripe``: what there is in its place, if that is to be said."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print()
    console.print(Text.assemble(("  ● Tollgate is ready", "bold green"), (f"   {seconds:.1f} s", "dim")))
    console.print()
    for label, value in _facts(address, models, account, stripe):
        console.print(Text.assemble((f"    {label:<{LABEL_WIDTH}}", "dim"), value))
    console.print()
    if account.key is None:
        console.print(Text("    A new key", style="dim"))
        console.print(Text(f"\n      tollgate keys create --org {account.org_id} --name my-key"))
    else:
        console.print(Text("    Try it; the login and the key are shown only now", style="dim"))
        console.print(Text("\n" + example(address, models, account.key)))
    console.print()
    console.print(Text("    Ctrl-C stops everything.", style="dim"))
    console.print()


def example(address: str, models: Sequence[ModelCard], key: str) -> str:
    """A ``curl`` command for the first model, indented, ready to paste."""
    card = min(models, key=lambda model: (model.kind != "generation", model.name))
    body: dict[str, object] = {"model": card.name}
    if card.kind == "generation":
        path = "/v1/completions"
        body |= {"prompt": PROMPTS.get(card.name, "Once upon a time"), "max_tokens": 80}
    elif card.kind == "embedding":
        path = "/v1/embeddings"
        body |= {"input": CLASSIFICATION_INPUT}
    else:
        path = "/v1/classifications"
        body |= {"input": CLASSIFICATION_INPUT, "top_k": 3}
    lines = [
        f"curl {address}{path} \\",
        f'  -H "Authorization: Bearer {key}" \\',
        '  -H "Content-Type: application/json" \\',
        f"  -d '{json.dumps(body, ensure_ascii=False)}'",
    ]
    return "\n".join(f"      {line}" for line in lines)


def _facts(address: str, models: Sequence[ModelCard], account: Account, stripe: str | None) -> list[tuple[str, str]]:
    facts = [
        ("API", f"{address}/v1"),
        ("Portal", f"{address}/"),
        ("Reference", f"{address}/docs"),
        ("Models", ", ".join(f"{card.name} ({card.kind})" for card in models)),
    ]
    if stripe is not None:
        facts.append(("Stripe", stripe))
    if account.key is not None:
        facts += [("Login", f"{account.email}"), ("Password", f"{account.password}"), ("Key", account.key)]
    return facts


def _errors() -> Console:
    return Console(file=sys.stderr, highlight=False)
