"""See the rule's docstring: it is the page that `trainwatch rules resume-discontinuity` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import number
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import noise, spreads
from trainwatch.table import Chunk, Table
from trainwatch.views.curve import MEDIAN
from trainwatch.views.evaluations import TRAINING, scatter

Floats = NDArray[np.float64]
MOST = 32  # resumes, and channels of a kind, that are looked at
REACH = 2000  # rows that are looked back over: what a resume superseded is rarely more


@dataclass(frozen=True)
class Seam:
    """The rows about one resume: the last ones before its checkpoint, those it superseded, and those it wrote."""

    table: Table
    earlier: NDArray[np.int64]  # than the checkpoint: far back
    before: NDArray[np.int64]
    superseded: NDArray[np.int64]
    after: NDArray[np.int64]
    later: NDArray[np.int64]  # those too, as far on as ``earlier`` goes back

    def first(self, name: str) -> tuple[float, float, float]:
        """A value in the first row behind, at the same step of what was superseded, and in the last row before."""
        column, step = self.table[name], self.table.step
        twin = self.superseded[step[self.superseded] == step[self.after[0]]]
        before = self.before[np.isfinite(column[self.before])]
        return (
            float(column[self.after[0]]),
            float(column[twin[-1]]) if len(twin) else np.nan,
            float(column[before[-1]]) if len(before) else np.nan,
        )


@dataclass
class ResumeDiscontinuity(Rule):
    """The run does not go on where its checkpoint left it.

    What it sees:
        Each resume: the optimiser's state before its first step (the recorder says whether it was empty, and how many
        steps it counts: never fewer of those taken, unless it is that of an older checkpoint); the learning rate,
        the loss, the gradient scaler and the place in the data behind it, against the same steps of what it superseded,
        else against the last rows before the checkpoint. And the first evaluation behind it: its set is the same, so
        it tells of lost weights where the training loss scatters. One finding a resume, with all that jumped.

    Why it matters:
        Weights alone are no checkpoint. Without its moments Adam takes its first steps at full size in every
        direction; a scheduler that begins anew warms up a trained model; data that begins anew is seen twice.

    What to do:
        Save and load the state of optimiser, scheduler, scaler, random numbers and sampler with the weights, and the
        counters that they are asked with.

    When it is wrong:
        A rate or data that was changed on purpose: where the config says so, it is only mentioned. A restart of the
        optimiser on purpose, after a divergence.

    References:
        PyTorch, "Saving & Loading a General Checkpoint for Inference and/or Resuming Training".
    """

    needs: ClassVar[tuple[str, ...]] = ("run:resumed_from",)
    wants: ClassVar[tuple[str, ...]] = (
        *("loss", "lr/<group>", "amp/scale", "data/index", "data/fingerprint", "samples", "state_steps/<optimizer>"),
        "eval:loss",
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-spike", "gradient-spike", "loss-divergence", "gradient-explosion", "duplicate-batches"),
        *("clock-desync", "schedule-desync", "lr-desync", "curriculum-stuck"),
    )

    rate: float = 0.1  # relative: beyond what a schedule moves in a step, and what rounding does
    sigmas: float = 6.0  # errors of two medians that it rose by, and of a single row that it had come down by before
    lost: float = 0.2  # of the progress so far: other data and another dropout cost less
    unlearnt: float = 0.45  # of what validation had gained: a restart that went well costs a fifth
    usual: float = 3.0  # x the greatest rise before: from one evaluation to the next, and their scatter; of a few rows
    plain: float = 0.05  # of the level: less is the wandering of a model near its floor
    evaluations: int = 4  # before, that say what is usual
    repeated: float = 0.02  # of the run's data: replaying a part of one epoch of many is harmless
    rescaled: float = 4.0  # x: a scaler doubles or halves its factor, once
    window: int = 20  # rows on each side
    uncounted: float = 10.0  # steps: how many were taken between two rows of a sparse log is known to a few
    fewest: int = 5  # rows: a median of fewer is no level
    short: int = 200  # rows before a resume: what was learnt in so few is learnt again within twenty
    few: int = 3  # rows: where such a run begins; after twenty it has most of it behind it

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Every resume of the run: a few rows about each."""
        begins = [*run.first_rows(), run.train.size]
        resumed = [index for index, header in enumerate(run.headers) if header.resumed_from is not None]
        for index in resumed[-MOST:]:
            first, end = begins[index], begins[index + 1]
            if end > first:
                seam = self._seam(run.train, first, end, run.headers[index].resumed_from or 0)
                yield from self._judge(run, index, seam, end)

    def _seam(self, table: Table, first: int, end: int, resumed: int) -> Seam:
        back = np.arange(max(first - REACH, 0), first)
        kept = table.step[back] <= resumed
        after = np.arange(first, min(first + self.window, end))
        later = np.arange(first, min(first + REACH, end))
        return Seam(table, back[kept], back[kept][-self.window :], back[~kept], after, later)

    def _judge(self, run: Run, index: int, seam: Seam, end: int) -> Iterator[Finding]:
        """All that jumped, as one finding; what was changed on purpose is no alarm."""
        changed = index > 0 and self._changed(run, index)
        rate, data = self._rate(seam), self._data(run, seam)
        forgotten = self._forgotten(run, index, seam)
        whose = ["" if name == "optimizer" else f"{name} " for name in forgotten]  # the recorder's name for the one
        parts = [(f"the {name}optimiser began without its state", True) for name in whose]
        parts += [(text, True) for text in self._older(seam)]
        parts += [(rate, not changed and bool(run.headers[index].schedules or run.headers[index].config))] * bool(rate)
        loss, over = self._loss(seam, end)
        if not loss and not changed:
            loss, over = self._validation(run, index, seam)
        parts += [(loss, not changed)] * bool(loss)
        data = data if data[0] else self._again(run, seam)
        parts += [data] * bool(data[0])
        parts += [(text, False) for text in (self._scale(seam), self._counter(seam)) if text]
        if parts:
            step, resumed = int(run.train.step[seam.after[0]]), run.headers[index].resumed_from or 0
            yield self.finding(
                "warning" if any(grave for _, grave in parts) else "info",
                "run",
                (step, int(run.train.step[seam.after[-1]])),
                f"At the resume from step {resumed:,} {'; '.join(text for text, _ in parts)}.",
                over=over,
                evidence={"resumed_from": resumed, "jumps": len(parts)},
                advice="Save and load optimiser, scheduler, scaler, data position and counters with the weights.",
                confidence=0.9,
            )

    @staticmethod
    def _changed(run: Run, index: int) -> bool:
        """Whether the process was told something else than the one before."""
        old, new = run.headers[index - 1], run.headers[index]
        return (old.config, old.schedules, old.total_steps) != (new.config, new.schedules, new.total_steps)

    @staticmethod
    def _forgotten(run: Run, index: int, seam: Seam) -> list[str]:
        """Optimisers that the recorder saw begin anew in this process."""
        since, step = run.headers[index].time or 0.0, int(seam.table.step[seam.after[0]])
        until = min((header.time or np.inf for header in run.headers[index + 1 :]), default=np.inf)
        for event in run.events:
            names, at = event.get("empty_optimizers"), number(event.get("time"))
            mine = since <= at < until if at is not None else number(event.get("step")) == step
            if event.get("event") == "resume" and isinstance(names, list) and mine:
                return [str(name) for name in names[:MOST]]
        return []

    def _older(self, seam: Seam) -> Iterator[str]:
        """Optimisers whose state counts fewer of the steps taken than before the checkpoint: it is of an older one."""
        table = seam.table
        for name in [name for name in table.channels if name.startswith("state_steps/")][:MOST]:
            own = f"applied/{name.removeprefix('state_steps/')}"
            count, taken = table[name], table[own if own in table else "applied"]
            taken = np.where(np.isnan(taken), table.step[: len(taken)], taken)
            missing = taken - count
            now, before = (rows[np.isfinite(missing[rows])] for rows in (seam.later, seam.earlier))
            if len(now) and len(before) and missing[now[0]] > missing[before[-1]] + self.uncounted:
                whose = name.removeprefix("state_steps/") + " "
                yield (
                    f"the state of the {'' if whose == 'optimizer ' else whose}optimiser counts {count[now[0]]:,.0f} "
                    f"of {taken[now[0]]:,.0f} steps at step {table.step[now[0]]:,}, where it counted "
                    f"{count[before[-1]]:,.0f} of {taken[before[-1]]:,.0f} at step {table.step[before[-1]]:,}"
                )

    def _rate(self, seam: Seam) -> str:
        """The learning rate that jumped furthest."""
        worst, said = self.rate, ""
        for name in [name for name in seam.table.channels if name.startswith("lr/")][:MOST]:
            now, twin, before = seam.first(name)
            usual = np.abs(np.diff(seam.table[name][seam.before])).max(initial=0.0) if np.isnan(twin) else 0.0
            due = before if np.isnan(twin) else twin
            off = (abs(now - due) - 3 * usual) / max(abs(now), abs(due), 1e-300)
            if off > worst:
                worst, said = off, f"{name} is {now:.3g} where it was {due:.3g}"
        return said

    def _loss(self, seam: Seam, end: int) -> tuple[str, bool]:
        """Whether the loss stands higher than before, and whether it has come back since."""
        column = seam.table["loss"]
        if self._planned(seam):
            return "", True
        old, new = (column[rows][np.isfinite(column[rows])] for rows in (seam.before, seam.after))
        if min(len(old), len(new)) < self.fewest:
            return "", True
        first = column[: 50 * self.window]
        first = first[np.isfinite(first)]
        sides = [(old, new, first[: self.window], self._scatter(old, old))]
        near, behind = old[-self.fewest :], new[: self.fewest]
        apart = behind.min() > near.max() and np.median(behind) - np.median(near) > self.usual * self._wanders(old)
        if seam.after[0] <= self.short and apart:  # of heavy tails a median of five says little
            sides += [(near, behind, first[: self.few], self._scatter(old, near))]
        jumped = next((side for side in sides if self._risen(*side)), None)
        if jumped is None:
            return "", True
        level, now = (float(np.median(rows)) for rows in jumped[:2])
        late = column[max(end - self.window, int(seam.after[-1])) : end]
        over = bool(np.nanmedian(late) < (level + now) / 2) if np.isfinite(late).any() else False
        return f"the loss is {now:.4g} where it was {level:.4g}", over

    def _wanders(self, old: Floats) -> float:
        """The furthest that any few rows lay above as many before them, without a resume between."""
        levels = np.median(np.lib.stride_tricks.sliding_window_view(old, self.fewest), axis=1)
        return float((levels[self.fewest :] - levels[: -self.fewest]).max(initial=0.0))

    @staticmethod
    def _scatter(old: Floats, level: Floats) -> float:
        """Standard deviation of one row; about the rows of the level alone: twenty may be a short run's descent."""
        return max(noise(old), float(spreads(level[None], np.array([np.median(level)]))[0]))

    @staticmethod
    def _planned(seam: Seam) -> bool:
        """Whether the loss is another one by design behind the resume."""
        last = np.concatenate([seam.before[-1:], seam.after[:1]])
        plan = ["stage", *(name for name in seam.table.channels if name.startswith("weight/"))][:MOST]
        return any(len(np.unique(seam.table[name][last])) > 1 for name in plan)

    def _risen(self, old: Floats, new: Floats, first: Floats, sigma: float) -> bool:
        """Whether the loss stands higher by more than a chance, and by a part of what was gained since the first."""
        level, now = float(np.median(old)), float(np.median(new))
        progress = float(np.median(first)) - level
        doubt = self.sigmas * sigma * 1.2533 * (1 / len(old) + 1 / len(new)) ** 0.5  # medians of so many rows
        return now - level > max(self.lost * progress, doubt) and progress > self.sigmas * sigma

    @staticmethod
    def _goes_on(seam: Seam, rise: float) -> bool:
        """Whether training costs what it did, so that another set is evaluated: lost weights throw both."""
        old, new = (seam.table["loss"][rows] for rows in (seam.before, seam.after))
        apart = np.median(new[np.isfinite(new)]) - np.median(old[np.isfinite(old)])
        doubt = MEDIAN * noise(old) * (2 / max(1, len(old))) ** 0.5
        return bool(apart + 2 * doubt < rise / 3)

    def _validation(self, run: Run, index: int, seam: Seam) -> tuple[str, bool]:
        """Whether validation stands where much of what it had gained is lost, and whether it has come back since."""
        rows, since = Chunk("eval", run.eval, 0, run.eval.size), run.headers[index].time
        ends = min((header.time or np.inf for header in run.headers[index + 1 :]), default=np.inf)
        splits = np.array([str(rows.text(row, "split") or "validation") for row in range(len(rows))], dtype=object)
        there = np.isfinite(rows["loss"]) & ~np.isin(splits, list(TRAINING)) & ~(rows["repeat"] > 0)
        there &= rows["time"] < ends
        if since is None or len(np.unique(splits[there])) != 1 or self._planned(seam):
            return "", True
        behind = rows["time"][there] >= since
        step, value = rows.step[there], rows["loss"][there]
        new = value[behind]
        old = value[~behind & (step <= step[behind].min(initial=np.iinfo(np.int64).max))]  # not what came later
        if len(old) < self.evaluations or not len(new):
            return "", True
        level, gained, usual = old[-1], old[0] - old.min(), max(np.diff(old).max(), scatter(old))
        bar = max(self.unlearnt * gained, self.usual * usual, self.plain * max(abs(level), abs(new[0])))
        if new[0] - level < bar or self._goes_on(seam, new[0] - level):
            return "", True
        return f"the validation loss is {new[0]:.4g} where it was {level:.4g}", bool(new[-1] < (level + new[0]) / 2)

    def _data(self, run: Run, seam: Seam) -> tuple[str, bool]:
        """Whether the data begins anew, and whether that is much of the run's data."""
        now, twin, before = seam.first("data/index")
        epoch, _, epoch_before = seam.first("epoch")
        moves = np.diff(seam.table["data/index"][seam.before])
        moves = moves[np.isfinite(moves)]
        each = float(np.median(moves)) if len(moves) else np.nan
        due = twin if np.isfinite(twin) else before + each
        if not now < due or not each > 0 or (np.isnan(twin) and epoch != epoch_before):
            return "", False
        total = each * run.header.total_steps if run.header.total_steps else np.inf
        return f"the data goes on at sample {now:,.0f} instead of {due:,.0f}", bool(due - now > self.repeated * total)

    def _again(self, run: Run, seam: Seam) -> tuple[str, bool]:
        """Whether the first batches behind are the run's very first ones, which had not come again on their own."""
        prints = seam.table["data/fingerprint"]
        now, first = prints[seam.after], prints[: len(seam.after)]
        told = np.isfinite(now) & (now == first) & (seam.after >= self.window)
        if told.sum() < self.fewest or not told[np.isfinite(now)].all() or len(np.unique(now[told])) < self.fewest:
            return "", False
        own = prints[max(int(seam.after[0]) - REACH, self.window) : seam.after[0]]
        back = int(np.sum(seam.table.step[: seam.after[0]] < seam.table.step[seam.after[0]]))
        total = run.header.total_steps or np.inf
        if np.isin(own, first[told]).any():  # epochs repeat themselves here
            return "", False
        return f"the data begins anew, with the batches of the run's first {told.sum()} rows", back > (
            self.repeated * total if np.isfinite(total) else 0
        )

    def _scale(self, seam: Seam) -> str:
        now, _, before = seam.first("amp/scale")
        jumped = before > 0 and now > 0 and not 1 / self.rescaled < now / before < self.rescaled
        return f"the gradient scaler is at {now:g} where it was {before:g}" if jumped else ""

    @staticmethod
    def _counter(seam: Seam) -> str:
        for name in ("samples", "tokens", "epoch"):
            now, _, before = seam.first(name)
            if now < before:
                return f"the count of {name} went back from {before:,.6g} to {now:,.6g}"
        return ""
