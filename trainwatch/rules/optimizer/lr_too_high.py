"""See the rule's docstring: it is the page that `trainwatch rules lr-too-high` prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Floats, History, fall, median, noise, running_medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles, components
from trainwatch.views.games import paid, plays


@dataclass
class LrTooHigh(Rule):
    """Each step replaces more than a tenth of the weights, and the loss does not come down.

    What it sees:
        The update ratio (norm of the update over norm of the weights) of some group above 0.1 in the median of three
        and more samples, while the loss ends no lower than it began, or gave back more than half of what it had come
        down; or above 0.1 in any sample, where the loss stands at ten times its first by the next one and at the end,
        or is not finite, or where all weights together are twice as large in the next sample and the loss never comes
        down. A fiftieth is enough in the median where all weights together grew by half between two samples, and the
        loss, of which more than half is left, has not come down since the first fifth of the run; and in any sample,
        where they grew so between the first two and the loss has stood a quarter above its first value ever since, as
        where something trained is trained on. Or weights that from one sample to the next grew fivefold, by more than
        0.1 of their norm a step, while the loss stood at a quarter above its first value and more, or at a tenth above
        it, or was back there from a quarter below, and then stood still, at more than half of it, for the rest of the
        run. Or all weights together, two and a half times as large in the next sample (five times, where the run has
        stages) and by a fiftieth a step, where more than half of the loss is left at the end; or one update that is
        longer than all weights together, and a loss at ten times its first before the next sample, by which it has not
        come down to half of that. Where recorded weights of the components move, the loss counts by those of the first
        row too, whichever is lower. Where the goal itself moves (rewards, adversaries) it is an info, unless the
        weights grew so, or where the weights grew by half between the first two samples, and half of the recorded
        reward at first is gone ever since.

    Why it matters:
        About 1e-3 is usual. Steps that rewrite the weights jump over every minimum; what looks like a hard task or
        noisy data is the rate.

    What to do:
        Divide the rate by the ratio over 1e-3, at most by 100 at a time; lengthen the warm-up.

    When it is wrong:
        Weights that begin at 0 (biases, adapters) have a large ratio at first and a small one soon: that is no finding
        while the loss falls. Without update ratios nothing is said.

    References:
        Bottou et al.; the 1e-3 rule of thumb of CS231n; torchmortem (median above 0.1).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("update_ratio/<group>|weight_norm/<group>", "loss")
    wants: ClassVar[tuple[str, ...]] = ("update_ratio/<group>", "weight_norm/<group>", "lr/<group>")
    causes: ClassVar[tuple[str, ...]] = (
        *("gradient-explosion", "gradient-spike", "loss-divergence", "loss-oscillation", "loss-spike", "loss-stuck"),
        *("non-finite-loss", "non-finite-gradient", "weight-growth", "clipping-saturated", "dead-module"),
        *("component-dead", "loss-scale-imbalance", "component-divergence", "aggressive-ramp", "gradient-vanishing"),
        *("curriculum-shock", "loss-plateau", "slow-convergence", "hidden-nan", "mode-collapse"),
        *("repetitive-outputs", "invalid-outputs", "length-collapse"),
    )

    ratio: float = 0.1  # norm of the update over that of the weights; the trainer's healthy runs reach 0.006
    samples: int = 3  # of the ratio: those of the first steps are large where weights begin at 0
    back: float = 0.5  # of what the loss had come down
    blown: float = 10.0  # x the first loss: the run is lost, and one sample is proof enough
    leap: float = 5.0  # x, what the weights grew by between two samples; healthy ones come to 2.3 in fifty steps
    hurt: float = 0.25  # of the first loss, above it: what begins at 0 leaps too, and the loss comes down
    hurt_sure: float = 2.0  # standard errors of the level of an eighth of the run, each of which stands so
    hurt_stuck: float = 0.1  # of the first loss, above it, where hardly anything is learned after such a leap
    sigmas: float = 3.0  # of the loss's noise, above its first value as well
    rows: int = 3  # of the loss, in their median: more than a spike
    doubled: float = 2.0  # x all weights together, from a sample that is too high to the next; healthy ones come to 1.4
    stirred: float = 0.02  # norm of the update over that of the weights, beside
    grown: float = 1.5  # x all weights together, between two samples: the first steps threw them elsewhere
    outgrown: float = 2.5  # x all weights together, between two samples; where half the loss is left healthy ones: 1.5
    nothing: float = 0.5  # of all weights, one step: so begins what begins at 0
    swelling: float = 0.6  # of the updates' length went along the weights; a rate that is too high comes to 0.3
    usual: float = 1e-3  # the ratio to aim for
    loud: float = 100.0  # x the other tasks, right before a leap: the step, and maybe the fault, is that one's

    _history: History = field(default_factory=History, init=False)
    _rows: int = field(default=0, init=False)
    _staged: bool = field(default=False, init=False)
    _roles: Roles = field(default_factory=Roles, init=False)

    def start(self, header: Header) -> Findings:
        """A stage may hold the loss where it is; which components are tasks."""
        self._roles = Roles.of(header)
        curriculum = header.plan
        self._staged = curriculum is not None and len(curriculum.stages) > 1
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Ratios and loss at bounded resolution."""
        self._history.push(_columns(chunk))
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Whether the rate is too high for the run as it stands."""
        series = self._history.series(_columns(rest))
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        loss = _steady(whole, series.get("loss", np.empty(0)))
        known = loss[np.isfinite(loss)]
        if len(known) < 6:
            return
        first, last, best = _first(whole), float(np.median(known[-3:])), float(np.min(known))
        lost = bool((whole.nonfinite("loss")[-5:] > 0).any()) or last > first + (self.blown - 1) * abs(first)
        worse = fall(loss) <= 0 or last - best > self.back * max(first - best, 0.0) + self.back * abs(best)
        updates = {name: values[np.isfinite(values)] for name, values in series.items() if name.startswith("update")}
        groups = {name: values for name, values in updates.items() if len(values)}
        high = {name: float(np.median(values)) for name, values in groups.items() if len(values) >= self.samples}
        sick = {name: ratio for name, ratio in high.items() if ratio > self.ratio and worse}
        if lost:
            sick |= {name: ratio for name in groups if (ratio := self._blew(whole, name, first)) > self.ratio}
        if not sick and fall(loss) <= 0 and self._doubled(whole, series):
            sick = {name: float(values.max()) for name, values in groups.items() if (values > self.ratio).any()}
        sick = sick or self._churned(whole, series, high, first)
        swept = list(self._leapt(whole, series, first)) if not sick or plays(whole.channels) else []
        swept = swept or ([] if sick or plays(whole.channels) else list(self._thrown(whole, series, first)))
        ruined = {} if swept else self._ruined(whole, series, first)
        if (sick or ruined) and not swept:
            yield self._finding(whole, sick or ruined, (first, last), lost, bool(ruined))
        yield from swept

    def _blew(self, whole: Chunk, name: str, first: float) -> float:
        """The highest ratio at whose next sample the loss was beyond measure; 0 for none.

        The first steps of RMSprop and of a schedule without warm-up are large in health, and may cost a row or two:
        what the loss did long after is not of them.
        """
        values, loss = whole[name], whole["loss"]
        at = np.flatnonzero(np.isfinite(values))
        beyond = (whole.nonfinite("loss") > 0) | (loss > first + (self.blown - 1) * abs(first))
        ends = [*(at[1:] + 1).tolist(), len(loss)]
        stands = [
            2 * int(beyond[max(0, end - self.rows) : end].sum()) > min(self.rows, end)
            and not self._learnt(loss[begin:end], beyond[begin:end])
            for begin, end in zip(at.tolist(), ends, strict=True)
        ]
        return max(values[at[stands]].tolist(), default=0.0)

    def _learnt(self, loss: Floats, beyond: NDArray[np.bool_]) -> bool:
        """Whether the loss came down to half after a sample and only then was lost: that came of something else."""
        level = running_medians(loss[: int(beyond.argmax())], self.rows)
        return bool(len(level) and np.nanmin(level, initial=np.inf) < loss[0] - self.back * abs(loss[0]))

    def _doubled(self, whole: Chunk, series: dict[str, Floats]) -> bool:
        """Whether a sample that is too high was followed by one in which all weights together are twice as large."""
        ratio = [whole[name] for name in series if name.startswith("update_ratio/")]
        at, grew = self._together(whole, series)
        if not ratio or not len(grew):
            return False
        return bool(((np.fmax.reduce(ratio)[at[:-1]] > self.ratio) & (grew > self.doubled)).any())

    @staticmethod
    def _together(whole: Chunk, series: dict[str, Floats]) -> tuple[NDArray[np.int64], Floats]:
        """Rows in which all weights were sampled, and by what they grew together from each to the next."""
        norm = [whole[name] for name in series if name.startswith("weight_norm/")]
        total = np.sqrt(np.sum(np.square(norm), axis=0)) if norm else np.empty(0)
        at = np.flatnonzero(np.isfinite(total) & (total > 0))
        return at, total[at[1:]] / total[at[:-1]]

    def _churned(
        self, whole: Chunk, series: dict[str, Floats], high: dict[str, float], first: float
    ) -> dict[str, float]:
        """Groups that each step stirs up, after weights that grew at once and a loss that has stood ever since."""
        after = whole["loss"][len(whole) // 5 :]
        stood = not self._staged and fall(after) <= 0 and median(after) > self.back * abs(first)
        if not stood or not (self._together(whole, series)[1] > self.grown).any():
            return {}
        return {n: ratio for n, ratio in high.items() if ratio > self.stirred and not self._swells(whole, n)}

    def _ruined(self, whole: Chunk, series: dict[str, Floats], first: float) -> dict[str, float]:
        """Groups of a model that knew more when it came: the first steps made its weights as large again by half, and
        the loss has stood above its first value ever since; of a policy, half of what it was paid at first is gone for
        good. What is new begins where nothing can be lost.
        """
        loss, hurt, reward = whole["loss"], self.hurt, paid(whole.channels) if plays(whole.channels) else None
        if reward is not None:
            known = -whole[reward]
            loss, hurt = known[np.isfinite(known)], self.back
            first = _start(loss)
        loss = loss[len(loss) // 20 :]
        error = noise(loss) * (1 + np.pi / 2 * 8 / max(len(loss), 1)) ** 0.5  # of a first row, and an eighth's median
        bar = first + max(hurt * abs(first), self.hurt_sure * error)
        stood = [median(part) > bar for part in np.array_split(loss, 8)] if len(loss) >= 8 * self.rows else [False]
        reweighed = any(_moves(whole[name]) for name in whole.channels if name.startswith("weight/"))
        at, grew = self._together(whole, series)
        aside = self._staged or reweighed or (reward is None and plays(whole.channels))
        if aside or not all(stood) or not len(grew) or self._loudest(whole, int(at[0])):
            return {}
        steps, begun = np.maximum(np.diff(whole.step[at]), 1), grew[0] > self.grown
        moved = {name: float(np.nanmax(whole[name])) for name in series if name.startswith("update_ratio/")}
        fast = begun and (grew[0] - 1) / steps[0] > self.stirred / 2
        return (
            {n: ratio for n, ratio in moved.items() if ratio > self.stirred and not self._swells(whole, n)}
            if fast
            else {}
        )

    def _swells(self, whole: Chunk, name: str) -> bool:
        """Whether the updates only blow the weights up: that is no rate, but a decay of the wrong sign, say."""
        ratio, norm = whole[name], whole[name.replace("update_ratio/", "weight_norm/")]
        at = np.flatnonzero(np.isfinite(ratio) & (norm > 0))
        went = (ratio[at[1:]] + ratio[at[:-1]]) / 2 * np.diff(whole.step[at])
        return bool(len(at) > 2 and (np.diff(np.log(norm[at])) > self.swelling * went).all())

    def _leapt(self, whole: Chunk, series: dict[str, Floats], first: float) -> Iterator[Finding]:
        """The group whose weights were swept away: the samples tell by how much, the rows between what it cost."""
        worst: tuple[float, str, int, int] | None = None
        for name in [name for name in series if name.startswith("weight_norm/")]:
            if (series[name][np.isfinite(series[name])] > 0).any() and self._grew(series[name]):
                values = whole[name]
                at = np.flatnonzero(np.isfinite(values) & (values > 0))
                times, steps = values[at[1:]] / values[at[:-1]], np.maximum(np.diff(whole.step[at]), 1)
                for index in np.flatnonzero((times > self.leap) & (times - 1 > self.ratio * steps))[:1].tolist():
                    begin, end = int(at[index]), int(at[index + 1])
                    peak = running_medians(whole["loss"][begin : end + self.rows], self.rows)
                    best = np.nanmin(running_medians(whole["loss"][: begin + 1], self.rows), initial=first)
                    learnt = first - best > self.back * abs(first)  # with this rate: then something else came
                    hurt = self.hurt_stuck if self._stands(whole["loss"][end:], first, len(whole)) else self.hurt
                    bar = max(hurt * abs(first), self.sigmas * noise(whole["loss"][: end + 1]))
                    hit = np.nanmax(peak, initial=-np.inf) - first > bar or self._undone(whole, end, first)
                    if hit and not learnt:
                        worst = max(worst or (0.0, "", 0, 0), (float(times[index]), name, begin, end))
        if worst:
            yield self._swept(whole, *worst, first)

    def _undone(self, whole: Chunk, end: int, first: float) -> bool:
        """Whether all that the loss had come down was given back by then, and hardly anything was learned since."""
        loss = whole["loss"][: end + 1]
        level = running_medians(loss, self.rows)
        level = level[np.isfinite(level)]
        rose = level - np.minimum.accumulate(level)
        gave = (level >= first) & (rose > max(self.hurt * abs(first), self.sigmas * noise(loss)))
        return bool(gave.any()) and self._stands(whole["loss"][end:], first, len(whole))

    def _stands(self, after: Floats, first: float, rows: int) -> bool:
        """Whether the rest of the run, at least half of it, takes hardly anything from a loss that is mostly there."""
        return 2 * len(after) >= rows and fall(after) <= self.hurt_stuck and median(after) > self.back * abs(first)

    def _grew(self, norms: Floats) -> bool:
        known = norms[np.isfinite(norms) & (norms > 0)]
        return bool(len(known) > 1 and (known[1:] / known[:-1]).max() > self.leap**0.5)  # a bin may halve it

    def _swept(self, whole: Chunk, times: float, name: str, begin: int, end: int, first: float) -> Finding:
        group, loss = name.removeprefix("weight_norm/"), whole["loss"][begin : end + 1]
        loud = self._loudest(whole, begin)
        blame = f"; the {loud} loss outweighed the others a hundredfold then, and may be the cause" if loud else ""
        return self.finding(
            "warning",
            f"group:{group}",
            (int(whole.step[begin]), int(whole.step[-1])),
            f"The weights of {group} grew {times:,.3g}-fold from step {whole.step[begin]:,} to {whole.step[end]:,}, "
            f"and the loss went from {first:.4g} to {np.nanmax(loss):.4g} meanwhile{blame}.",
            evidence={"growth": times, "first_loss": first, "highest_loss": float(np.nanmax(loss))},
            advice=f"Lower the learning rate of {group} tenfold and more, or lengthen the warm-up; what was learned "
            "after such a step began from ruins.",
            confidence=0.6 if loud else 0.85,
        )

    def _thrown(self, whole: Chunk, series: dict[str, Floats], first: float) -> Iterator[Finding]:
        """All weights at once: by many steps that were too long, or by one that was longer than all of them."""
        (at, grew), fell = self._together(whole, series), fall(_steady(whole, whole["loss"]))
        if not len(grew) or not (self._staged or fell < self.back):
            return
        norms = [name for name in series if name.startswith("weight_norm/")]
        moved = [whole[name] * whole[name.replace("weight_norm/", "update_ratio/")] for name in norms]
        total = np.sqrt(np.sum([np.square(whole[name]) for name in norms], axis=0))
        length = (np.sqrt(np.sum(np.square(moved), axis=0)) / total)[at[:-1]]  # of the update, by that of all weights
        steps = np.maximum(np.diff(whole.step[at]), 1)
        outgrew = (grew > self.outgrown) & (grew - 1 > self.stirred * steps) & (length < self.nothing)
        outgrew &= (not self._staged) | ((grew > self.leap) & (fell < self.back))
        peak = [np.nanmax(whole["loss"][a : b + 1], initial=-np.inf) for a, b in itertools.pairwise(at.tolist())]
        left = [median(whole["loss"][(a + b) // 2 : b + 1]) for a, b in itertools.pairwise(at.tolist())]
        blew = (length > 1) & (np.array(peak) > first + (self.blown - 1) * abs(first))
        blew &= ~(np.array(left) < first - self.back * abs(first))  # such a first step can be made good
        level = np.minimum.accumulate(np.nan_to_num(running_medians(whole["loss"], self.rows), nan=np.inf))
        unlearnt = first - level[at[:-1]] <= self.back * abs(first)  # else the rate was well until then
        for index in np.flatnonzero((outgrew | blew) & unlearnt)[:1].tolist():
            begin, end = int(at[index]), int(at[index + 1])
            times = {name: float(whole[name][end] / whole[name][begin]) for name in norms if whole[name][begin] > 0}
            worst = max(times, key=lambda name: times[name])
            if not self._swells(whole, worst.replace("weight_norm/", "update_ratio/")):
                yield self._swept(whole, times[worst], worst, begin, end, first)

    def _loudest(self, whole: Chunk, row: int) -> str:
        """The component that outweighed all tasks beside it in a row: its scale makes such steps at any rate."""
        parts: dict[str, float] = {}
        for name in components(whole):
            weight = whole[f"weight/{name}"][row]
            parts[name] = float(np.abs(whole[f"loss/{name}"][row] * (1.0 if np.isnan(weight) else weight)))
        loudest = max(parts, key=lambda name: np.nan_to_num(parts[name]), default="")
        tasks = sum(size for name, size in parts.items() if name != loudest and not self._roles.aside(name))
        return loudest if tasks > 0 and parts[loudest] > self.loud * tasks and not plays(whole.channels) else ""

    def _finding(
        self, whole: Chunk, sick: dict[str, float], loss: tuple[float, float], lost: bool, ruined: bool
    ) -> Finding:
        name = max(sick, key=lambda key: sick[key])
        ratio, group = sick[name], name.removeprefix("update_ratio/")
        values = whole[name]
        onset = _since(values, self.ratio)
        rates = whole[f"lr/{group}"][np.isfinite(whole[f"lr/{group}"])]
        aim = f" from {rates.max():.2g} to about {rates.max() / min(ratio / self.usual, 100):.1g}" if len(rates) else ""
        game, said = plays(whole.channels), "loss"
        if game and ruined and (reward := paid(whole.channels)):
            known, said = whole[reward][np.isfinite(whole[reward])], "reward"
            loss, lost = (-_start(-known), float(np.median(known[-3:]))), False
        return self.finding(
            "info" if game and not ruined else "critical" if lost else "warning",
            f"group:{group}",
            (int(whole.step[onset]), int(whole.step[-1])),
            f"A step changes the weights of {group} by {ratio:.2g} of their norm, and the {said} goes from "
            f"{loss[0]:.4g} to "
            f"{'what is not finite' if lost and whole.nonfinite('loss')[-1] else f'{loss[1]:.4g}'}.",
            evidence={"update_ratio": ratio, f"first_{said}": loss[0], said: loss[1]},
            advice=f"Lower the learning rate of {group}{aim}; an update ratio of 1e-3 is usual.",
            confidence=0.85,
        )


def _since(values: Floats, ratio: float) -> int:
    """The row after the last sample that was good; the first row of all, where the first sample was bad already."""
    known = np.flatnonzero(np.isfinite(values))
    high = np.flatnonzero(values[known] > ratio)
    return int(known[high[0] - 1]) + 1 if len(high) and high[0] else 0


def _moves(weight: Floats) -> bool:
    """Whether a weight of the total is another at times."""
    known = weight[np.isfinite(weight)]
    return bool(len(known) and np.ptp(known) > 0.05 * np.abs(known).max())


def _steady(whole: Chunk, loss: Floats) -> Floats:
    """Where recorded weights move, the total by those of the first rows if that is lower: weighed up is not lost."""
    names = components(whole)
    weights = {name: whole[f"weight/{name}"][np.isfinite(whole[f"weight/{name}"])] for name in names}
    if not any(_moves(values) for values in weights.values()) or not all(len(values) for values in weights.values()):
        return loss
    total: Floats = np.sum([weights[name][0] * whole[f"loss/{name}"] for name in names], axis=0)
    both = np.flatnonzero(np.isfinite(total) & np.isfinite(whole["loss"]))[:6]
    explained = len(both) == 6 and np.allclose(total[both[0]], whole["loss"][both[0]], rtol=0.05)
    lower: Floats = np.fmin(total, whole["loss"]) if explained else loss
    return lower


def _columns(chunk: Chunk) -> dict[str, Floats]:
    names = [name for name in chunk.channels if name.startswith(("update_ratio/", "weight_norm/"))][: 2 * MOST]
    return {"loss": chunk["loss"]} | {name: chunk[name] for name in names}


def _first(whole: Chunk) -> float:
    """The loss before the rate had done anything: of the first row, or of a few, whichever is lower."""
    known = whole["loss"][: 10 * MOST]
    return _start(known[np.isfinite(known)])


def _start(known: Floats) -> float:
    return float(min(known[0], np.median(known[:6]))) if len(known) else np.nan
