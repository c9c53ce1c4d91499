"""(run, findings) -> plotly figure; shared by the report and the dashboard, which add nothing to what is drawn here.

What holds for every figure: a curve is sampled for the eye, what must be seen is not. A value that was written and is
no finite number, and a value that a log axis cannot show, stand at the plot's lower edge at their exact steps; a
finding stands at the upper edge at its first step, and tells its message when hovered. Rows that a resume superseded
are not in the curve. Names and messages come from a log: they are escaped, since plotly renders a part of HTML.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

import plotly.graph_objects as go

from trainwatch.axis import Axis, Span, axis, known
from trainwatch.figures import balance, health, lengths, motion, plans
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import Findings, blank
from trainwatch.run import Run
from trainwatch.schema import Finding

__all__ = [
    "FIGURES",
    "Axis",
    "Draw",
    "Figure",
    "Findings",
    "Look",
    "Span",
    "axis",
    "blank",
    "for_finding",
    "known",
    "proof",
    "span_of",
]


class Draw(Protocol):
    """Draws one figure of a run, or None if the run has no channel for it."""

    def __call__(self, run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None: ...


class Figure(NamedTuple):
    """A figure's title, what draws it, one line that says what it shows, and which others it belongs to."""

    title: str
    draw: Draw
    about: str
    group: str


LOSSES: Final = "Losses and their balance"
PLANS: Final = "Plans, data and clocks"
STEPS: Final = "Gradients and steps"
WORTH: Final = "Evaluation and outputs"
MACHINE: Final = "The machine"

FIGURES: Final[dict[str, Figure]] = {
    "loss": Figure(
        "Loss by component", balance.loss, "Raw values, each in its own unit; grey is the weighted sum.", LOSSES
    ),
    "contribution": Figure(
        "Contribution",
        balance.contribution,
        "Weight x raw: what each component adds to the loss that is minimised.",
        LOSSES,
    ),
    "part": Figure("Share of the loss", balance.loss_share, "Each component's part of the loss, stacked to 1.", LOSSES),
    "share": Figure(
        "Gradient share",
        balance.gradient_share,
        "Who steers: each component's part of the gradient, stacked to 1.",
        LOSSES,
    ),
    "cosine": Figure(
        "Agreement of gradients",
        balance.gradient_cosine,
        "Violet pulls the same way, orange against each other.",
        LOSSES,
    ),
    "weights": Figure(
        "Weights and curriculum",
        plans.weights,
        "Solid as applied, dashed as declared; bands are the declared stages.",
        PLANS,
    ),
    "data": Figure("Data", plans.data, "Mean, least and most of each batch; dashed is what the stage asks for.", PLANS),
    "lr": Figure("Learning rate", plans.rates, "Solid as observed, dashed as declared at the applied step.", PLANS),
    "schedules": Figure(
        "Schedules", plans.schedules, "Solid as observed, dashed as declared along the declared clock.", PLANS
    ),
    "clocks": Figure(
        "Clocks", plans.clocks, "Counters of the training code against the applied steps (dashed).", PLANS
    ),
    "norm": Figure(
        "Gradient norm",
        balance.gradient_norm,
        "Before clipping, whole and by module; the dashed line is the limit.",
        STEPS,
    ),
    "nonfinite": Figure(
        "Not finite", health.nonfinite, "Every NaN and infinity at its exact step; the first on top.", STEPS
    ),
    "amp": Figure("Loss scale", health.amp, "Of mixed precision; a mark at the edge is a skipped step.", STEPS),
    "magnitudes": Figure("Magnitudes", health.magnitudes, "The largest absolute values of activations.", STEPS),
    "update": Figure(
        "Update ratio", motion.update_ratio, "The norm of a step over the norm of the weights it moves.", STEPS
    ),
    "weight_norm": Figure("Norm of the weights", motion.weight_norm, "By parameter group.", STEPS),
    "evaluation": Figure("Evaluation loss", health.evaluation_loss, "The loss of every split.", WORTH),
    "metrics": Figure("Evaluation metrics", health.evaluation_metrics, "The figures of merit of every split.", WORTH),
    "lengths": Figure(
        "Evaluation by length",
        lengths.by_length,
        "Short inputs and long ones apart, by the first metric; where there is a legend to click, it shows the others.",
        WORTH,
    ),
    "quality": Figure("Outputs", health.quality, "What the model's own outputs are like, measured on samples.", WORTH),
    "time": Figure(
        "Step time", health.seconds, "Where a step's seconds go: the wait for data, the work, the ranks.", MACHINE
    ),
    "ranks": Figure("Ranks", health.ranks, "Each rank's own time for a step: the slowest one sets the pace.", MACHINE),
    "memory": Figure("Memory", health.memory, "In use, by what holds it.", MACHINE),
}
"""Every figure, in the order in which a page shows them."""

# A finding does not name a figure, so that rules know no face: its words choose, the first figure that exists wins.
PROOFS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (r"non-?finite|\bnan\b|\binf|overflow|underflow|\bamp\b", ("nonfinite", "norm", "loss")),
    (r"data-wait|data-starved|throughput|slow(?!-conv)|stall|loader|straggl|monitor-overhead", ("time",)),
    (r"clock|dqn", ("clocks", "schedules")),
    (r"ramp\b", ("contribution", "share", "weights")),
    (r"curriculum|stage|stale-data", ("weights", "contribution")),
    (r"share|dominance|conflict|cosine|imbalance|silent|balance", ("share", "contribution", "loss")),
    (r"component|activation|total-unexplained", ("contribution", "loss")),
    (r"schedul|anneal|horizon|total-steps|skipped", ("schedules", "lr")),
    (r"\blr\b|learning-rate|warmup", ("lr", "schedules")),
    (r"overfit|overtrain|generali|metric|eval|validation|time-axis", ("evaluation", "metrics", "loss")),
    (r"clip|grad|norm|module|frozen|dead|update", ("norm", "loss")),
)


def for_finding(run: Run, finding: Finding, findings: Findings = (), look: Look = WHOLE) -> go.Figure | None:
    """The figure that proves a finding, around its steps with context; None if the run has no figure at all."""
    name = proof(run, finding)
    around = look if look.span else replace(look, span=span_of(run, finding))
    return FIGURES[name].draw(run, findings or (finding,), around) if name else None


def proof(run: Run, finding: Finding) -> str | None:
    """Name of the figure that proves a finding: the first that its rule and subject speak of and the run has."""
    words = f"{finding.rule} {finding.subject}".lower()
    chosen = [name for words_of, names in PROOFS if re.search(words_of, words) for name in names]
    around = Look(span_of(run, finding))
    there = (name for name in [*chosen, *FIGURES] if FIGURES[name].draw(run, (), around) is not None)
    return next(there, None)


def span_of(run: Run, finding: Finding) -> Span:
    """The steps to look at for a finding: where it began in the first third, with room before it."""
    first, last = run.first_step or 0, run.last_step or 0
    room = max(25, (last - first) // 20)
    length = min(finding.last_step - finding.first_step, 4 * room)
    return (max(first, finding.first_step - room), max(min(last, finding.first_step + length + room), first + 1))
