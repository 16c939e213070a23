"""Every alert asks for a metric that there is, by labels and values that it has."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from app import telemetry

ROOT = Path(__file__).parent.parent
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
SELECTOR = re.compile(r"(tollgate_\w+)(?:\{([^}]*)\})?")
EVERY = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def samples() -> dict[str, tuple[str, ...]]:
    """Labels by the name of each sample that is exposed."""
    assert telemetry.METER_DRIFT is not None  # importing it registers them all
    found: dict[str, tuple[str, ...]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        for name in names:
            found[name] = tuple(getattr(collector, "_labelnames", ()))
    return found


@EVERY
def test_an_alert_asks_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    selectors = SELECTOR.findall(rule["expr"])
    assert selectors
    for name, labels in selectors:
        assert name in samples()
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            assert label in samples()[name]
            assert is_set_somewhere(value)


def is_set_somewhere(value: str) -> bool:
    """Whether the program has this word as a literal."""
    places = [*(ROOT / "app" / "billing").glob("*.py"), ROOT / "app" / "worker.py", ROOT / "app" / "mail.py"]
    return any(f'"{value}"' in path.read_text(encoding="utf-8") for path in places)


@EVERY
def test_an_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "action"}


@EVERY
def test_an_alert_names_commands_that_there_are(rule: dict[str, Any]) -> None:
    from app.cli.billing import app

    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    for word in re.findall(r"tollgate billing ([\w-]+)", rule["annotations"]["action"]):
        assert word in known


def test_drift_in_micro_dollars_is_alerted() -> None:
    asked = " ".join(rule["expr"] for rule in RULES)
    assert {"tollgate_meter_drift_micro_usd", "tollgate_billing_drift_micro_usd"} <= set(re.findall(r"\w+", asked))


def test_every_job_is_watched_whatever_its_interval() -> None:
    """One that runs once an hour fails too seldom for a rule of the last minutes."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "TollgateJobOverdue"]
    assert "tollgate_job_interval_seconds" in rule["expr"]
    assert "{job=" not in rule["expr"]


def test_a_worker_that_is_not_there_is_told_of() -> None:
    """With it go its metrics, and what compares them says nothing any more."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "TollgateWorkerSilent"]
    assert "absent(" in rule["expr"]
