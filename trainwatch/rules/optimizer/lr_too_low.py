"""See the rule's docstring: it is the page that `trainwatch rules lr-too-low` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Floats, History, fall
from trainwatch.table import Chunk
from trainwatch.views.games import plays


@dataclass
class LrTooLow(Rule):
    """The steps are so small that the weights stay where they were, and so does the loss.

    What it sees:
        Update ratios (norm of the update over norm of the weights), each brought to the rates of all steps, since an
        update is proportional to its rate, beside a loss that does not come down in a hundred steps, or half of those
        that are planned. It is an alarm if all planned steps together, laid end to end, cannot move the weights of any
        group by 0.07 % of their norm, whether the loss stands, or rises by what its weights or its data do.
        Else it is an info, if the ratio is below 1e-5 in every group. Where the goal itself moves (rewards,
        adversaries) the loss says nothing, and only the alarm is told.

    Why it matters:
        The run would need a hundred times its length. A flat loss is taken for a model that is too small.

    What to do:
        Raise the learning rate by the factor that brings the ratio to about 2e-2: weights that stood still are where
        they began, and there healthy updates come to so much. Later on, or with weights that were trained before, 1e-3
        is usual.

    When it is wrong:
        A model that is fine-tuned at the floor of its loss has nothing to learn and small steps, and cannot be told
        from one that was never trained: hence the info. A warm-up that has not ended and runs that were resumed are not
        judged.

    References:
        torchmortem and DeepDiagnosis (ratio below 1e-5); the 1e-3 rule of thumb of CS231n.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("update_ratio/<group>", "loss", "lr/<group>")
    causes: ClassVar[tuple[str, ...]] = ("loss-stuck", "slow-convergence", "loss-plateau", "evaluation-unchanged")

    ratio: float = 1e-5  # norm of the update over that of the weights; Adam at 1e-6 on weights of 0.02 makes 5e-5
    path: float = 7e-4  # of the weights' norm, all steps laid end to end: the gentlest fine-tunings come to 1e-3
    steps: int = 100  # or half of what is planned
    settled: int = 10  # steps: with a momentum, the first are shorter
    learned: float = 0.02  # of the loss
    usual: float = 2e-2  # the ratio to aim for, where weights begin
    long: int = 1000  # rows, where nothing says how many steps are planned

    _history: History = field(default_factory=History, init=False)
    _rows: int = field(default=0, init=False)
    _resumed: bool = field(default=False, init=False)
    _total: int = field(default=0, init=False)
    _staged: bool = field(default=False, init=False)

    def start(self, header: Header) -> Findings:
        """A resume begins where the loss already is; stages make it rise."""
        self._resumed, self._total = header.resumed_from is not None, header.total_steps or 0
        self._staged = header.plan is not None
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Ratio, rate and loss at bounded resolution."""
        self._history.push(_columns(chunk))
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Whether the rate is too low for the run as it stands."""
        series, rows = self._history.series(_columns(rest)), self._rows + len(rest)
        gone = run.train.step[-1] - run.train.step[0] + 1
        if self._resumed or (gone < self.steps and not 2 * gone > self._total > 0):
            return
        ratio, rate, loss = series["ratio"], series["rate"], series["loss"]
        moved = np.isfinite(ratio) & (rate > 0) & (series["step"] >= self.settled)
        game = plays(rest.channels)  # its loss says nothing: only the path can
        if not moved.any() or not (game or fall(loss) < self.learned):
            return
        pace, height = float(np.median(ratio[moved] / rate[moved])), float(np.nanmax(rate))
        known = bool(self._total) or run.end is not None or rows >= self.long
        known &= not rate[np.isfinite(rate)][-1] > 1.01 * np.nanmedian(rate)  # a warm-up that is not at its end
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        seen = max(float(whole.step[-1] - whole.step[0] + 1), float(len(whole)))
        steps = max(seen, float(self._total))
        path = (
            pace * (height if self._total > 2 * seen else float(np.nanmean(rate))) * steps
        )  # a warm-up has a low mean
        rises = fall(-loss) > self.learned and not (self._staged or game)
        if known and 0 < path < self.path:
            yield self._finding("warning", whole, (pace * height, path, steps), loss)
        elif 0 < pace * height < self.ratio and not (game or rises):
            yield self._finding("info", whole, (pace * height, path, steps), loss)

    def _finding(self, severity: Severity, whole: Chunk, moves: tuple[float, float, float], loss: Floats) -> Finding:
        ratio, path, steps = moves
        level = float(np.nanmedian(loss))
        return self.finding(
            severity,
            "run",
            (int(whole.step[0]), int(whole.step[-1])),
            f"A step changes the weights by {ratio:.1g} of their norm, all {steps:,.0f} together by at most "
            f"{path:.1g}, and the loss stands at {level:.4g}.",
            evidence={"update_ratio": ratio, "path": path, "loss": level},
            advice=f"Raise the learning rate: an update ratio of {self.usual:g} is usual where weights begin, "
            f"{self.usual / ratio:,.0f} times this; 1e-3 is where they were trained before.",
            confidence=0.7,
        )


SLIGHT = 1e-3  # of the largest group's norm: what begins at 0 has a large ratio however little it moves


def _columns(chunk: Chunk) -> dict[str, Floats]:
    """The largest ratio of any group that has weights to speak of, the largest rate, and the loss."""
    found = {"step": chunk.step.astype(np.float64), "loss": chunk["loss"]}
    nothing = np.full(len(chunk), np.nan)
    groups = [name.partition("/")[2] for name in chunk.channels if name.startswith("update_ratio/")]
    norms = {group: chunk[f"weight_norm/{group}"] for group in groups}
    whole = np.fmax.reduce([nothing, *norms.values()])
    ratios = [np.where(norms[group] < SLIGHT * whole, np.nan, chunk[f"update_ratio/{group}"]) for group in groups]
    found["ratio"] = np.fmax.reduce([nothing, *ratios])
    found["rate"] = np.fmax.reduce([nothing, *(chunk[name] for name in chunk.channels if name.startswith("lr/"))])
    return found
