"""See the rule's docstring: it is the page that `trainwatch rules length-collapse` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.curve import BEFORE, leap
from trainwatch.views.evaluations import TRAINING
from trainwatch.views.outputs import GROWN, ROWS, Decline, Growth

Floats = NDArray[np.float64]
LENGTH = re.compile(r"data/(?P<name>[A-Za-z0-9_.-]*(len(gth)?s?|tokens))/(?P<end>min|max)")
"""Channels that tell how long the training data is."""
TOO_SHORT = ("short", "shrunk", "less")
"""Ways of one sickness: one of them is told."""


@dataclass
class LengthCollapse(Rule):
    """What the model generates is much shorter, longer or more alike in length than its data.

    What it sees:
        The mean length of the sampled outputs is less than half of the shortest training sample (less than one token,
        where lengths of the data are not recorded; less than two and half of what they were, where they had been
        diverse, and not half of them are unique now: there are but a few so short), for a fifth of the planned steps
        and three samples at least; or less than six tenths of the data's mean, although less than 40 % of the first
        loss are left; or less than 40 % of the data's mean for half of the planned steps. Where lengths of the data are
        not recorded, also less than six tenths of what they were when validation was at its best, if its loss has risen
        by half since: two samples are enough then, for validation is a second witness; and it began where the training
        loss rose at once after the last sample of full length, if it did. Three times the longest is a warning where
        the outputs had been within the data's range, else an info; so is one and the same length for all.

    Why it matters:
        The end token has won, or is lost. What is compared with the truth is empty, or cut off by the limit.

    What to do:
        Too short: mask out of the loss what comes after the end token, padding above all, and average it per sample,
        not per token. Endless or all alike: put the end token into the targets and count it in the loss.

    When it is wrong:
        Data of which only a part is generated (a suffix, an answer): record the length of that part.

    References:
        Murray and Chiang, "Correcting Length Bias in Neural Machine Translation" (2018).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval", "sample")
    needs: ClassVar[tuple[str, ...]] = ("sample:quality/<name>",)
    wants: ClassVar[tuple[str, ...]] = (
        *("data/<name>/min", "data/<name>/mean", "data/<name>/max"),
        *("loss", "run:total_steps", "eval:loss"),
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("invalid-outputs", "mode-collapse", "overfitting", "generalisation-gap", "overtraining"),
    )

    short: float = 0.5  # of the shortest training sample: a mean cannot be there while half of the outputs are right
    empty: float = 1.0  # token, where the data's lengths are not known
    few: float = 2.0  # tokens, there: of outputs so short there are but a few, and that they are alike is no wonder
    unique: tuple[float, float] = (0.5, 0.7)  # of the outputs: as mode-collapse has it, which this explains
    long: float = 3.0  # x the longest training sample: the limit of the decoder is often twice
    less: float = 0.6  # of the data's mean length: its own scatter, over a dozen outputs, comes to a tenth
    little: float = 0.4  # of the data's mean length: a young model's outputs are short, and grow in the first half
    half: float = 0.5  # of the planned steps
    worse: float = 0.5  # of the best validation loss, above it: what was better then is no young model's length
    alike: float = 0.02  # of the data's range, for the standard deviation of lengths
    lasting: float = 0.2  # of the planned steps: a young model ends at once, or never
    witnessed: int = 2  # samples, of outputs that shrank as validation got worse: both say it
    full: float = 0.9  # of the length when validation was at its best: not shrunk yet
    kept: int = 1000  # rows of the loss since then, in which a rise at once tells when they began to shrink

    _total: int | None = field(default=None, init=False)
    _data: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)
    _mean: tuple[float, int] = field(default=(0.0, 0), init=False)  # of the batches' mean lengths: sum, rows
    _growth: Growth = field(default_factory=Growth, init=False)
    _declines: dict[str, Decline] = field(default_factory=dict, init=False)
    _length: float = field(default=np.nan, init=False)  # of the last sample
    _varied: float = field(default=0.0, init=False)  # the greatest length of diverse outputs
    _best: tuple[float, float] = field(default=(np.inf, np.nan), init=False)  # validation loss, and the length then
    _now: float = field(default=np.nan, init=False)  # the last validation loss
    _full: tuple[int, int] = field(default=(0, 0), init=False)  # steps of the last two samples that had not shrunk
    _since: list[tuple[int, float]] = field(default_factory=list, init=False)  # rows since, some before: step, loss
    _began: int | None = field(default=None, init=False)  # where the loss rose at once since

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be."""
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """The data's range so far, and every sample against it."""
        if chunk.table == "train":
            self._learn(chunk)
            self._growth.push(chunk)
            if len(self._since) < self.kept:
                self._keep(chunk)
            return
        if chunk.table == "eval":
            self._validated(chunk)
            return
        mean, spread, unique = (chunk[f"quality/{name}"] for name in ("length_mean", "length_std", "diversity"))
        grown = bool(len(chunk)) and self._growth.sampled() < GROWN
        for row in np.flatnonzero(np.isfinite(mean)):
            tiny = self._tiny(float(mean[row]), float(unique[row]))
            yield from self._sample(int(chunk.step[row]), float(mean[row]), float(spread[row]), grown, tiny=tiny)

    def _keep(self, chunk: Chunk) -> None:
        """Rows of the loss, as many as there is room for."""
        loss = chunk["loss"]
        known = np.flatnonzero(np.isfinite(loss))[: self.kept - len(self._since)]
        self._since += zip(chunk.step[known].tolist(), loss[known].tolist(), strict=True)

    def _validated(self, chunk: Chunk) -> None:
        """The best evaluation so far, and how long the outputs were then."""
        for row in np.flatnonzero(np.isfinite(chunk["loss"])).tolist():
            if chunk.text(row, "split") not in TRAINING:
                self._now = float(chunk["loss"][row])
                self._best = min(self._best, (self._now, self._length), key=lambda seen: seen[0])

    def _learn(self, chunk: Chunk) -> None:
        """The shortest and the longest that was seen, and the mean of the means."""
        for channel in chunk.channels:
            found = LENGTH.fullmatch(channel) if channel.startswith("data/") else None
            values = chunk[channel] if found else np.empty(0)
            if found and np.isfinite(values).any():
                low, high = self._data.get(found["name"], (np.inf, -np.inf))
                low, high = min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))
                self._data[found["name"]] = (low, high)
            if found and found["name"] == next(iter(self._data), None):
                self._add(chunk[f"data/{found['name']}/mean"])

    def _add(self, means: Floats) -> None:
        """One by one, so that no border of a chunk shows in the sum."""
        known = means[np.isfinite(means)]
        total, rows = self._mean
        self._mean = (float(np.add.accumulate(np.concatenate([[total], known]))[-1]), rows + len(known))

    def _range(self) -> tuple[float, float]:
        """Of the first such channel; not known: from nothing to infinity."""
        low, high = next(iter(self._data.values()), (0.0, np.inf))
        return (low, high) if high >= low else (0.0, np.inf)

    def _tiny(self, mean: float, unique: float) -> bool:
        """Whether outputs that were longer, and diverse, are so short that they cannot be."""
        few, diverse = self.unique
        self._varied = max(self._varied, mean) if unique >= diverse else self._varied
        return not self._data and unique < few and mean < min(self.few, self.short * self._varied)

    def _sample(self, step: int, mean: float, spread: float, grown: bool, *, tiny: bool) -> Findings:
        (low, high), (total, rows) = self._range(), self._mean
        below = mean * rows < self.little * total
        inside = low <= mean <= high
        short = tiny or mean < (self.short * low if low > 0 else self.empty)
        short |= grown and mean * rows < self.less * total
        if not mean < self.full * self._best[1]:
            self._forget(step)
        best, then = self._best = self._best if self._now > self._best[0] else (self._best[0], mean)
        self._length = mean
        shrunk = not self._data and mean < self.less * then and self._now - best > self.worse * abs(best)
        alike = spread <= self.alike * (high - low) and inside and np.isfinite(high) and high - low >= 2 and not short
        for kind, bad, part, least in (
            ("short", short, self.lasting, ROWS),
            ("shrunk", shrunk, self.lasting, self.witnessed),
            ("less", below, self.half, ROWS),
            ("long", mean > self.long * high, self.lasting, ROWS),
            ("alike", alike, self.lasting, ROWS),
        ):
            decline = self._declines.setdefault(kind, Decline())
            over = decline.push(step, inside, bool(bad))
            if over is not None:
                yield replace(over, state="over")
            if bad and decline.lasts(self._total, part, least) and not self._said(kind):
                decline.told = self._finding(kind, decline, mean, spread)
                yield decline.told

    def _forget(self, step: int) -> None:
        """A sample of full length: what was before the last such one is of no interest. Outputs may follow the data
        with a delay, so the change may have come before this one.
        """
        first = next((row for row, (at, _) in enumerate(self._since) if at > self._full[1]), len(self._since))
        self._full, self._since, self._began = (self._full[1], step), self._since[max(0, first - BEFORE) :], None

    def _onset(self, sampled: int) -> int:
        """Where the training loss rose at once after the last but one sample of full length and before the first short
        one: there the answers that it is shown became others. The short sample itself, if it did not.
        """
        if self._began is None:
            found = leap(np.array([loss for step, loss in self._since if step <= sampled]))
            began = self._since[found.row][0] if found else sampled
            self._began = began if began > self._full[0] else sampled
        return self._began

    def _said(self, kind: str) -> bool:
        """Whether another way of being too short was told, and holds."""
        others = [self._declines[name] for name in TOO_SHORT if name != kind and name in self._declines]
        return kind in TOO_SHORT and any(decline.told for decline in others)

    def _finding(self, kind: str, decline: Decline, mean: float, spread: float) -> Finding:
        low, high = self._range()
        known, (total, rows) = np.isfinite(high), self._mean
        data = f"the training data's are {low:g} to {high:g} long" if known else "the data's lengths are not recorded"
        data += f", {total / rows:.3g} on average" if known and rows else ""
        then, first = self._best[1], decline.first
        if not known and mean < self.less * then:
            first = self._onset(decline.since)  # what was short in the beginning was a young model's
            data += f"; when validation was at its best they were {then:.3g} long"
        alarm = kind in TOO_SHORT or (kind == "long" and decline.was_good)
        return self.finding(
            "warning" if alarm else "info",
            "run",
            (first, decline.last),
            f"The sampled outputs are {mean:.3g} long on average (standard deviation {spread:.2g}); {data}.",
            evidence={"length_mean": mean, "samples": decline.rows}
            | ({"shortest": low, "longest": high} if known else {}),
            advice="Mask out of the loss what comes after the end token, and average it per sample, not per token."
            if kind in TOO_SHORT
            else "Put the end token into the targets and count it in the loss.",
            confidence=0.9 if known or first < decline.since else 0.7,
        )
