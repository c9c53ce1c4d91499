"""See the rule's docstring: it is the page that `trainwatch rules non-finite-loss` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import NONFINITE_NAMES, Finding, matches
from trainwatch.stats import Streak
from trainwatch.table import Chunk, TableName

Bools = NDArray[np.bool_]

SPELT = 8  # components of an evaluation that are spelt out
MOST = 64  # splits that are told: more of them is a name that changes with every evaluation
EARLIER = ("bad/input", "bad/weights", "grad_norm", "grad_norm/<module>")


@dataclass
class NonFiniteLoss(Rule):
    """The loss, or one of its components, became NaN or infinite.

    What it sees:
        The first training step whose loss, or whose component, is no finite number, and which of them it was. A step
        that the gradient scaler skipped does not count, unless it skips a hundred in a row. One component is named only
        if it alone is bad on that step and nothing else was bad in the window before; otherwise what went bad earlier
        (a gradient, the weights, the input) is named. When the loss was finite for long and breaks again, that is told
        apart. An evaluation whose loss, or whose component, is no number is reported too.

    Why it matters:
        One NaN in the loss makes every gradient NaN, and one optimiser step later every weight: nothing that the run
        does afterwards is training. Many trackers draw the hole as a gap, and the run burns on for days.

    What to do:
        Go back to the last checkpoint before the first bad step. Look at the named component: a division by something
        that can be 0, a logarithm or square root of something that can be negative, an exponential in half precision.
        If a gradient or a weight was bad first, lower the learning rate or clip the gradient; if the input was bad,
        look at that batch.

    When it is wrong:
        A component that is NaN by design when it has nothing to measure (an average over no detections) should be left
        out of the record instead; at weight 0, or where the total is finite, it is a warning only.

    References:
        Trainers that hide it: the `logging_nan_inf_filter` of Hugging Face's Trainer (transformers #13619, trl #6702).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("loss|loss/<component>|eval:loss|eval:loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("loss/<component>", "grad_norm", "weight/<component>")
    causes: ClassVar[tuple[str, ...]] = (
        *("crashed", "loss-zero", "amp-scale-collapse"),
        *("mode-collapse", "repetitive-outputs", "length-collapse", "invalid-outputs"),  # by way of the weights
    )

    recovered_rows: int = (
        20  # finite rows after which it counts as over: an optimiser that is poisoned never comes back
    )
    before_rows: int = 20  # a window: what was bad longer ago, and was well again since, is not the origin
    episodes: int = 4  # that are told apart: a loss that breaks again and again says no more with each time
    skips: int = 100  # in a row: a scaler that halves its scale so often has left the range of float32

    _row: int = field(default=0, init=False)
    _earlier: dict[str, tuple[int, int]] = field(default_factory=dict, init=False)
    _begin: int = field(default=-1, init=False)
    _found: Finding | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    _bad_rows: int = field(default=0, init=False)
    _last_bad: int = field(default=0, init=False)
    _harmless: dict[str, tuple[int, int, bool]] = field(default_factory=dict, init=False)
    _evals: dict[str, int] = field(default_factory=dict, init=False)
    _skipped: Streak = field(init=False)

    def __post_init__(self) -> None:
        """Without a header nothing is known of the run's length."""
        self._skipped = Streak(self.skips)

    def start(self, header: Header) -> Findings:
        """How long the scaler may search."""
        self._skipped = Streak(self.skips, header.window())
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Rows with a bad loss are rare: only those are looked at one by one."""
        if chunk.table == "eval":
            yield from self._evaluations(chunk)
            return
        self._begin = chunk.start if self._begin < 0 else self._begin
        if self._found is None and not self._skipped.bad and self._well(chunk):
            self._row += len(chunk)
            return
        trained = chunk.trained()
        channels = sorted(name for name in chunk.nonfinite_channels() if _is_loss(name))
        bad = np.zeros(len(chunk), dtype=bool)
        total = np.isfinite(chunk["loss"]) & (chunk.nonfinite("loss") == 0)
        for name in channels:
            here = (chunk.nonfinite(name) > 0) & trained
            weightless = here & (chunk[f"weight/{name.removeprefix('loss/')}"] == 0.0)
            harmless = weightless | (here & total)
            yield from self._harmless_ones(name, chunk.step[harmless], bool((harmless & ~weightless).any()))
            bad |= here & ~harmless
        yield from self._judge(chunk, trained, np.flatnonzero(bad), channels)
        yield from self._never_applied(chunk, trained, channels)
        self._row += len(chunk)

    @staticmethod
    def _well(chunk: Chunk) -> bool:
        """Nothing is bad yet in this run, and no step is skipped: nothing to look at, and nothing to remember."""
        counted = any((chunk[name] > 0).any() for name in EARLIER if name.startswith("bad/"))
        return not (counted or chunk.nonfinite_channels() or (chunk["amp/skipped"] == 1.0).any())

    def _judge(self, chunk: Chunk, trained: Bools, rows: NDArray[np.intp], channels: list[str]) -> Findings:
        """Bad rows with less than ``recovered_rows`` good ones between them are one episode."""
        done = 0
        for row in rows.tolist():
            recovered = self._row + row - self._last_bad > self.recovered_rows
            if self._found is None or (recovered and self._count < self.episodes):
                if self._found is not None:
                    yield self._episode(over=True)
                self._remember(chunk, trained, done, row)
                self._found, self._bad_rows = self._first(chunk, row, channels), 0
                done, self._count = row, self._count + 1
            self._bad_rows, self._last_bad = self._bad_rows + 1, self._row + row
            self._found = replace(self._found, last_step=int(chunk.step[row]))
        self._remember(chunk, trained, done, len(chunk))
        if self._found is not None and len(chunk):
            yield self._episode(over=self._row + len(chunk) - 1 - self._last_bad >= self.recovered_rows)

    def _episode(self, *, over: bool) -> Finding:
        """The finding of the episode that was opened last, as far as it went."""
        found = self._found
        assert found is not None
        said = f"{found.message}; {self._bad_rows:,} step{'s' * (self._bad_rows != 1)} so far"
        said += f"; finite again after step {found.last_step:,}." if over else "."
        return self.finding(
            "critical",
            found.subject,
            (found.first_step, found.last_step),
            said,
            over=over,
            evidence={**found.evidence, "bad_steps": self._bad_rows},
            advice=found.advice,
        )

    def _first(self, chunk: Chunk, row: int, channels: list[str]) -> Finding:
        """What is known about the first bad step, before anything is said of how long it lasted."""
        step = int(chunk.step[row])
        kinds = {
            name: NONFINITE_NAMES[int(chunk.nonfinite(name)[row])] for name in channels if chunk.nonfinite(name)[row]
        }
        components = [name for name in kinds if name != "loss"]
        recent = self._row + row - self.before_rows
        before = {name: at for name, (at, last) in self._earlier.items() if last >= recent}
        source = min(before, key=lambda name: (before[name], name)) if before else None  # bad/input before grad_norm
        alone = len(components) == 1 and source is None
        name = components[0].removeprefix("loss/") if alone else ""
        what = f"The {name} loss" if alone else "The loss"
        message = f"{what} became {_spoken(kinds)} at step {step:,}"
        evidence: dict[str, float | int | str] = {**kinds}
        if source is not None:
            message += f"; {_place(source)} was bad first, at step {before[source]:,}"
            evidence["bad_first"] = before[source]
        values = chunk.rows.column(components[0] if alone else "loss", self._begin, chunk.start + row)
        good = values[np.isfinite(values)]
        if len(good):
            message += f", from {good[-1]:.4g} the last time it was finite"
            evidence["last_finite"] = good[-1]
        return self.finding(
            "critical",
            f"component:{name}" if alone else "run",
            (step, step),
            message,
            evidence=evidence,
            advice=_advice(source, name),
        )

    def _remember(self, chunk: Chunk, trained: Bools, first: int, until: int) -> None:
        """Keep what the next bad step will be explained by: what was bad just before it.

        Bad rows of a channel that lie less than ``before_rows`` apart began together.
        """
        part = slice(first, until)
        for name in dict.fromkeys([*EARLIER[:2], *chunk.nonfinite_channels()]):
            if any(matches(pattern, name) for pattern in EARLIER):
                counted = name.startswith("bad/") and chunk[name] > 0
                rows = first + np.flatnonzero((((chunk.nonfinite(name) > 0) | counted) & trained)[part])
                if len(rows):
                    began, last = self._earlier.get(name, (0, -self.before_rows - 1))
                    apart = np.flatnonzero(np.diff(np.concatenate([[last], self._row + rows])) > self.before_rows)
                    began = int(chunk.step[rows[apart[-1]]]) if len(apart) else began
                    self._earlier[name] = (began, self._row + int(rows[-1]))

    def _never_applied(self, chunk: Chunk, trained: Bools, channels: list[str]) -> Findings:
        """The scaler skips on and on: nothing is trained."""
        poisoned = chunk["amp/skipped"] == 1.0
        for name in [*channels, "grad_norm"]:
            poisoned |= chunk.nonfinite(name) > 0
        if self._skipped.push(~trained & poisoned, {"step": chunk.step.astype(np.float64)}):
            began, now = int((self._skipped.onset or {})["step"]), int(self._skipped.latest["step"])
            least = max(self._skipped.rows, self._skipped.steps)
            yield self.finding(
                "critical",
                "run",
                (began, now),
                f"From step {began:,} on the optimiser skipped {least:,} steps in a row or more, the last "
                f"at step {now:,}: the loss or its gradient is no finite number at any scale, and nothing is trained.",
                over=self._skipped.over,
                advice="Run one step without mixed precision and look for the first value that is not finite.",
            )

    def _harmless_ones(self, name: str, steps: NDArray[np.int64], weighted: bool) -> Findings:
        """A component that is no number where that reaches no gradient: its weight is 0, or the total is finite."""
        if len(steps):
            component = name.removeprefix("loss/")
            first, count, left_out = self._harmless.get(name, (int(steps[0]), 0, False))
            self._harmless[name] = (first, count + len(steps), left_out or weighted)
            _, count, left_out = self._harmless[name]
            why, what = (
                ("the total is finite, so it is left out there", "Leave it out of the record where it measures nothing")
                if left_out
                else ("at weight 0 it poisons nothing yet", "Mend the component before its weight rises")
            )
            yield self.finding(
                "warning",
                f"component:{component}",
                (first, int(steps[-1])),
                f"The {component} loss is no finite number on {count:,} step{'s' * (count != 1)} since step {first:,}; "
                f"{why}.",
                advice=f"{what}: wherever it reaches the total, every gradient is NaN.",
            )

    def _evaluations(self, chunk: Chunk) -> Findings:
        names = [name for name in chunk.nonfinite_channels() if _is_loss(name)]
        bad = np.zeros(len(chunk), dtype=bool)
        for name in names:
            bad |= chunk.nonfinite(name) > 0
        for row in np.flatnonzero(bad).tolist():
            split, step = str(chunk.text(row, "split") or "evaluation"), int(chunk.step[row])
            kinds = {name: NONFINITE_NAMES[int(code)] for name in sorted(names) if (code := chunk.nonfinite(name)[row])}
            if split not in self._evals and len(self._evals) >= MOST:
                continue
            first = self._evals.setdefault(split, step)
            parts = ", ".join(name.removeprefix("loss/") for name in list(kinds)[:SPELT])
            what = f"{split} loss" if "loss" in kinds else f"{split} loss of {parts}"
            yield self.finding(
                "warning" if np.isfinite(chunk["loss"][row]) else "critical",
                f"split:{split}",
                (first, step),
                f"The {what} is {next(iter(kinds.values()))} since the evaluation at step {first:,}.",
                evidence=dict(list(kinds.items())[:SPELT]),
                advice="If the training loss is finite, look at the evaluation's data and its masks.",
            )


def _is_loss(channel: str) -> bool:
    return channel == "loss" or matches("loss/<component>", channel)


def _spoken(kinds: dict[str, str]) -> str:
    words = {"nan": "NaN", "inf": "infinite", "-inf": "negative infinite"}
    return words[kinds.get("loss", next(iter(kinds.values())))]


def _place(channel: str) -> str:
    words = {"bad/input": "the input", "bad/weights": "a weight", "grad_norm": "the gradient"}
    return words.get(channel, f"the gradient of {channel.removeprefix('grad_norm/')}")


def _advice(source: str | None, component: str) -> str:
    if source == "bad/input":
        return "Look at that batch: find the samples that are not finite, and drop or repair them in the dataset."
    if source is not None:
        return "Resume from a checkpoint before that step with a lower learning rate or a smaller clipping limit."
    if component:
        return (
            f"Look in the {component} loss for a division by 0, a logarithm or root of a value that can reach 0, or an "
            "overflow in half precision; resume from a checkpoint before that step."
        )
    return "Resume from a checkpoint before that step; record the components apart to see which one breaks first."
