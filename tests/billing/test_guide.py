"""What the operator's guide names is there: events, alerts, commands."""

import re
from pathlib import Path

import yaml

from app.billing.effects import SUBJECTS, THIN_TYPES
from app.cli import billing
from app.config import Settings

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "stripe.md").read_text(encoding="utf-8")


def test_the_guide_names_exactly_the_events_that_are_understood() -> None:
    account, thin = (block.split() for block in re.findall(r"^```text\n(.+?)^```", GUIDE, re.DOTALL | re.MULTILINE))
    assert account == sorted(SUBJECTS)
    assert thin == sorted(THIN_TYPES)


def test_the_alerts_of_the_guide_exist() -> None:
    rules = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Tollgate[A-Z]\w+)`", GUIDE)) <= alerts


def test_the_commands_of_the_guide_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in billing.app.registered_commands}  # type: ignore[union-attr]
    groups = {group.name for group in billing.app.registered_groups}
    assert set(re.findall(r"tollgate billing ([a-z-]+)", GUIDE)) <= commands | groups


def test_the_settings_of_the_guide_exist() -> None:
    named = re.findall(r"TOLLGATE_([A-Z_]+)", GUIDE)
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)
