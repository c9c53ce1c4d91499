"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from trainwatch.lint.check import Check, Material
from trainwatch.lint.checks.absolute_horizon import AbsoluteHorizon, is_length
from trainwatch.lint.horizon import plan
from trainwatch.schema import Finding


class CodedHorizon(Check):
    """An anneal, decay, ramp or warm-up that is written in the script is longer than the run that the config plans.

    What it sees:
        Numbers that the script gives to names of lengths in steps, as a variable, a keyword or a flag's default,
        against the total of the config. One that the config sets too is judged there.

    Why it matters:
        Nobody who reads the config sees it: 50,000 steps of annealing in a run of 10,000 get a fifth of the way.

    What to do:
        Compute the length from the run's total, or read it from the config.

    When it is wrong:
        The script overwrites it before it is used.

    References:
        A pipeline of vision models: `expansion_anneal_steps` in the code, 50,000 of 10,000 steps.
    """

    compares: ClassVar[bool] = True

    def look(self, material: Material) -> Iterator[Finding]:
        """Every number of the script that is the length of something."""
        if material.script is None or material.config is None:
            return
        planned = plan(material.config)
        steps, settings = planned.steps, {node.name.lower() for node in material.nodes}
        told: set[str] = set()
        for constant in material.script.constants:
            name = constant.name.lower()
            if not steps or name in settings or name in told or not is_length(name):
                continue
            if steps < AbsoluteHorizon.reach * constant.value:
                told.add(name)
                source = planned.total.place if planned.total else None
                line = f" ({source.file}:{source.line})" if source else ""
                yield self.finding(
                    "warning",
                    "",
                    constant.place,
                    f"{constant.name} is {constant.value:,.0f} steps here, and the run has {steps:,}{line}: it gets "
                    f"{100 * steps / constant.value:.2g}% of the way.",
                    f"Write a share of the run's total here, such as {constant.name} = total_steps.",
                    evidence={"length": constant.value, "planned": steps, "reached": steps / constant.value},
                    confidence=0.8,
                )
