"""See the rule's docstring: it is the page that `trainwatch rules non-finite-metric` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import NONFINITE, Finding
from trainwatch.table import Chunk, TableName

SPELT = {code: name for name, code in NONFINITE.items()}


@dataclass
class Story:
    """The evaluations of one metric of one split."""

    finite: int = 0
    bad: int = 0  # in a row, up to the last
    said: int = 0  # code of the last one that is no number
    first_step: int = 0  # of the stretch at hand
    last_step: int = 0
    last: float = np.nan  # finite value


@dataclass
class NonFiniteMetric(Rule):
    """A metric of the evaluation is infinite, or no number any more; or what is logged never was one.

    What it sees:
        A metric that is infinite in the last three evaluations, or NaN in the last three after it was a number. Losses
        are looked at by non-finite-loss. What training logs beside them, and never was a number, is an info.

    Why it matters:
        Whoever picks the best checkpoint by it, or stops early by it, picks by chance: no comparison with NaN is true,
        and infinity is never better.

    What to do:
        Evaluate one batch by hand. Usual causes: a division by a count of zero, a logarithm of zero, features of too
        few samples (FID), half precision in the metric, outputs that are NaN themselves.

    When it is wrong:
        A metric that is not defined on this set (a class that does not occur) is NaN from the first evaluation on, and
        one without a detection is NaN now and then: both are left alone.

    References:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017): FID takes the root of a matrix that must
        be of full rank.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    wants: ClassVar[tuple[str, ...]] = ("eval:metric/<name>",)
    causes: ClassVar[tuple[str, ...]] = ("overtraining",)

    rows: int = 3  # evaluations in a row, up to the last: one may be an evaluation of too few samples
    never: int = 20  # rows of training: what is counted by episode is no number before the first one ends

    _stories: dict[tuple[str, str], Story] = field(default_factory=dict, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few."""
        names = [name for name in chunk.channels if name.startswith("metric/")]
        for row in range(len(chunk)):
            split = str(chunk.text(row, "split") or "evaluation")
            for name in names:
                value, code = float(chunk[name][row]), int(chunk.nonfinite(name)[row])
                key = (split, name.removeprefix("metric/"))
                if (np.isfinite(value) or code) and (key in self._stories or len(self._stories) < MOST):
                    self._evaluation(self._stories.setdefault(key, Story()), value, code, int(chunk.step[row]))
        return ()

    def _evaluation(self, story: Story, value: float, code: int, step: int) -> None:
        if not code:
            story.finite, story.last, story.bad = story.finite + 1, value, 0
        elif SPELT[code] != "nan" or story.finite:
            story.first_step = story.first_step if story.bad else step
            story.bad, story.said, story.last_step = story.bad + 1, code, step

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split: the metric that was lost first; and one of what never was a number."""
        yield from self._never(run)
        lost: dict[str, tuple[str, Story]] = {}
        for (split, name), story in self._stories.items():
            first = lost.get(split)
            if story.bad >= self.rows and (first is None or story.first_step < first[1].first_step):
                lost[split] = (name, story)
        for split, (name, story) in lost.items():
            spelt = {"nan": "NaN", "inf": "infinite", "-inf": "minus infinity"}[SPELT[story.said]]
            before = {"last_finite": story.last} if story.finite else {}
            once = f"; it was {story.last:.4g} the last time it was a number" if before else ""
            yield self.finding(
                "warning",
                f"split:{split}",
                (story.first_step, story.last_step),
                f"The {split} {name} is {spelt} in {story.bad} evaluations{once}: nothing can be chosen by it.",
                evidence={"value": SPELT[story.said], "evaluations": story.bad, **before},
                advice=f"Compute {name} of one batch by hand, and guard what divides or takes a logarithm or a root.",
            )

    def _never(self, run: Run) -> Iterator[Finding]:
        """What training logged as NaN whenever it logged it: nobody draws a curve that is empty, so nobody sees it."""
        empty = {}
        for name in run.train.nonfinite_channels():
            steps, codes = run.train.nonfinite(name)
            lost = len(codes) >= self.never and bool((codes == NONFINITE["nan"]).all())
            if lost and name.startswith("logged/") and not np.isfinite(run.train[name]).any():
                empty[name] = steps
        if not empty:
            return
        (name, steps), *others = empty.items()
        more = f", and so {'is' if len(others) == 1 else 'are'} {len(others):,} more" if others else ""
        yield self.finding(
            "info",
            "run",
            (int(steps[0]), int(steps[-1])),
            f"The logged {name.removeprefix('logged/')} is NaN in all {len(steps):,} rows{more}: it tells nothing.",
            evidence={"channel": name, "rows": len(steps), "channels": len(empty)},
            advice="Compute it of one batch by hand; if training uses it, as it does a normaliser's mean, it is wrong.",
            confidence=0.7,
        )
