"""The contract of a check: it looks at settings and their places before a run begins, and yields findings.

A check is one file ``checks/<name>.py`` with one class named like it, and is found by being there. Its docstring is its
page, in the parts of a rule's. What it finds points at a file, a line and a column, and says what to write instead.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainwatch.lint.tree import Config, Node, Place
from trainwatch.schema import Finding, Severity

if TYPE_CHECKING:
    from trainwatch.lint.dialect import Dialect
    from trainwatch.lint.sources.command import Command
    from trainwatch.lint.sources.hydra_tree import HydraTree
    from trainwatch.lint.sources.python_file import Script

Findings = Iterable[Finding]


@dataclass(frozen=True)
class Material:
    """What is looked at: a config, a script, the command that starts it; whatever of them is known.

    ``schema`` maps the known names of the config to their types, dotted; empty where none is named. ``card`` is the
    memory of the card that it is going to run on, in GiB; None where nobody says so.
    """

    config: Config | None = None
    dialects: frozenset[Dialect] = frozenset()
    schema: Mapping[str, str] = field(default_factory=dict)
    script: Script | None = None
    command: Command | None = None
    hydra: HydraTree | None = None
    folder: Path = field(default_factory=Path.cwd)
    card: float | None = None

    @property
    def nodes(self) -> list[Node]:
        """Every setting of the config."""
        return list(self.config.root.walk()) if self.config else []


class Check:
    """The base of every check; one that ``compares`` holds a config against a script."""

    compares: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """``numeric-string`` for the check in ``checks/numeric_string.py``."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def look(self, material: Material) -> Findings:
        """What is wrong with it."""
        raise NotImplementedError

    def finding(
        self,
        severity: Severity,
        subject: str,
        place: Place,
        message: str,
        advice: str,
        *,
        patch: Mapping[str, Any] | None = None,
        evidence: Mapping[str, float | int | str] | None = None,
        confidence: float = 1.0,
    ) -> Finding:
        """A finding of this check at a place; ``subject`` is a dotted path of the config."""
        return point(
            Finding(
                rule=self.name,
                severity=severity,
                subject=f"config:{subject}" if subject else "config",
                first_step=0,
                last_step=0,
                state="active",
                message=message,
                evidence=dict(evidence or {}),
                advice=advice,
                patch=dict(patch or {}),
                confidence=confidence,
            ),
            place,
        )


def point(finding: Finding, place: Place) -> Finding:
    """The finding with its place in front of its evidence."""
    where: dict[str, float | int | str] = {"file": place.file, "line": place.line, "column": place.column}
    return replace(finding, evidence={**where, **finding.evidence})


@lru_cache(maxsize=1)
def catalogue() -> dict[str, type[Check]]:
    """Every check below ``checks/``, by name."""
    from trainwatch.lint import checks

    found: dict[str, type[Check]] = {}
    for module in pkgutil.iter_modules(checks.__path__, f"{checks.__name__}."):
        name = module.name.rpartition(".")[2]
        check = getattr(importlib.import_module(module.name), name.title().replace("_", ""))
        found[name.replace("_", "-")] = check
    return dict(sorted(found.items()))
