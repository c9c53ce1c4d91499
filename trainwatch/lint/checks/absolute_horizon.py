"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.horizon import plan
from trainwatch.lint.names import words
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

KIND = r"anneal(?:ing|ed)?|decay|warm_?up|ramp(?:_?up|_?down)?|curriculum|cool_?down|over|transition|burn_?in|linear"
LENGTH = re.compile(
    rf"(?:.*_)?(?:{KIND})(?:_\w+)?_(?:steps?|iters?|iterations?|updates?)|(?:warm_?up|anneal\w*|decay|ramp\w*)_epochs?"
    r"|warmup_num_steps|total_num_update",
    re.IGNORECASE,
)
WARMUP = re.compile(r"warm_?up|burn_?in", re.IGNORECASE)
INTERVAL = re.compile(r"every|interval|freq|period|per_|max_|min_|start|begin|from", re.IGNORECASE)
RATES = words("decay_rate gamma decay_factor factor lr_decay_rate staircase power_decay")
"""Beside one of these, a number of decay steps is the unit of an endless decay and no length."""
SHARE = re.compile(r"_?(?:num_)?(?:steps?|iters?|iterations?|updates?|epochs?)$", re.IGNORECASE)


def is_length(name: str) -> bool:
    """Whether a setting of this name says how long something takes, in steps or epochs."""
    return bool(LENGTH.fullmatch(name)) and not INTERVAL.search(name)


class AbsoluteHorizon(Check):
    """An anneal, decay, ramp or warm-up is longer than the run: it was written for another one.

    What it sees:
        Lengths in steps (or epochs) against the total of the nearest mapping that says one, or against what samples,
        batch, accumulation and epochs come to.

    Why it matters:
        50,000 steps of annealing in a run of 10,000 get a fifth of the way, in silence; in a warm-up that is longer
        than the run, the rate is never reached.

    What to do:
        Write the length as a share of the run.

    When it is wrong:
        A run that is the first part of a longer one: what reaches half of the way and more is only mentioned.

    References:
        `expansion_anneal_steps: 50000` in a run of 10,000.
    """

    reach = 0.5  # of its length: what gets that far and is not through is only mentioned

    def look(self, material: Material) -> Iterator[Finding]:
        """Every length against the steps or epochs that are planned around it."""
        if material.config is None:
            return
        for node in material.nodes:
            length = node.number
            if not length or length <= 1 or not self._is_length(node, material):
                continue
            around = plan(material.config, node)
            epochs = node.name.lower().endswith(("epoch", "epochs"))
            planned = around.parts.get("epochs") if epochs else around.steps
            if planned and length > planned and node not in (around.total, around.epochs):
                yield self._too_long(node, length, planned, "epochs" if epochs else "steps")

    def _is_length(self, node: Node, material: Material) -> bool:
        assert material.config is not None
        name = node.name if node.name != "steps" else "_".join((*node.path[-2:-1], "steps"))
        inside = node.name == "steps" and any(part in ("schedules", "anneal", "warmup") for part in node.path[:-1])
        if not (is_length(name) or inside):
            return False
        mapping = next(material.config.above(node), None)
        return mapping is None or not RATES & {key.lower() for key in mapping.children}

    def _too_long(self, node: Node, length: float, planned: float, unit: str) -> Finding:
        warms = bool(WARMUP.search(node.dotted))
        share = SHARE.sub("", node.name) + "_ratio" if SHARE.sub("", node.name) else "ratio"
        what = f"{node.dotted} is {length:,.0f} {unit} of a run of {planned:,.0f}"
        tail = "the full rate is never reached" if warms else f"it gets {100 * planned / length:.2g}% of the way"
        ratio, why = (0.05, "a usual warm-up") if warms else (1.0, "all of the run")
        much = max(round(ratio * planned), 1)
        return self.finding(
            "warning" if warms or planned < self.reach * length else "info",
            node.dotted,
            node.place,
            f"{what}: {tail}.",
            f"Write a share of the run, such as {share}: {ratio} ({why}), or {node.name}: {much}.",
            patch={node.dotted: much},
            evidence={"length": length, "planned": planned, "reached": planned / length},
        )
