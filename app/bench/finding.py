"""One line of a comparison's report, the table of them, and the file that keeps them for a run that is stopped.

What failed is shown and never kept: the next run tries it again.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from app.bench.summary import number, table
from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one case of a scenario.

    Attributes:
        ours, other: In ``unit``; NaN where it failed.
        figure: What counts: a ratio, a difference, steps, or milliseconds.
        target: None where there is none.
        bound: Whether the figure should be at least or at most the target.
        failure: Why there is no figure; empty where there is one.
    """

    scenario: str
    case: str
    ours: float
    other: float
    unit: str
    figure: float
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"
    failure: str = ""

    @classmethod
    def failed(cls, scenario: str, case: str, failure: object) -> "Finding":
        """A case without a figure."""
        return cls(scenario, case, math.nan, math.nan, "", math.nan, failure=str(failure))

    @property
    def verdict(self) -> str:
        """Of the target, where there is one."""
        if self.failure:
            return "failed"
        if self.target is None:
            return ""
        is_met = self.figure >= self.target if self.bound == "at least" else self.figure <= self.target
        return "met" if is_met else "missed"

    def as_json(self) -> dict[str, Any]:
        """For programs; JSON has no NaN."""
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        return values | {"verdict": self.verdict}


def report(findings: Iterable[Finding]) -> str:
    """All of it as a table, failures in words below."""
    findings, signs = [*findings], {"at least": ">=", "at most": "<="}
    rows = [
        (
            f"{f.scenario}: {f.case}",
            number(f.ours, 2),
            number(f.other, 2),
            f.unit,
            number(f.figure, 2) if f.figure >= 0.01 or f.figure <= 0 or f.failure else f"{f.figure:.0e}",
            "" if f.target is None else f"{signs[f.bound]} {f.target:g}",
            f.verdict,
        )
        for f in findings
    ]
    failures = [f"FAILED {f.scenario}: {f.case}: {f.failure}" for f in findings if f.failure]
    return "\n".join((table(("scenario", "ours", "other", "unit", "figure", "target", ""), rows), *failures))


class Record:
    """Findings in the order they were made, on disk at once where there is a file.

    Args:
        path: JSON lines, the first the settings; None: nothing is kept.
        settings: What figures depend on; a file of other settings is refused.

    Raises:
        ConfigError: The file is none of ours, or of other settings.
    """

    def __init__(self, path: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.findings: list[Finding] = []
        self._path = path
        if path is None:
            return
        wanted = json.dumps(settings, sort_keys=True)
        if path.exists():
            self._read(path, wanted)
        else:
            path.write_text(wanted + "\n")

    def has(self, scenario: str, case: str) -> bool:
        """Whether this case has a figure."""
        return any((f.scenario, f.case) == (scenario, case) and not f.failure for f in self.findings)

    def add(self, finding: Finding) -> None:
        """Keep one."""
        self.findings.append(finding)
        if self._path is not None and not finding.failure:
            with self._path.open("a") as file:
                file.write(json.dumps(finding.as_json()) + "\n")

    def _read(self, path: Path, wanted: str) -> None:
        first, *lines = path.read_text().splitlines() or [""]
        if first != wanted:
            raise ConfigError(f"{path} was made with other settings: {first[:300] or 'none'}; take another --out")
        for line in lines:
            values = json.loads(line)
            values.pop("verdict")
            self.findings.append(Finding(**values))
