"""See the rule's docstring: it is the page that `trainwatch rules lr-too-high` prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Bools, Floats, History, fall, median, noise, running_medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles, components
from trainwatch.views.games import contested, paid
from trainwatch.views.weights import Weights


@dataclass
class LrTooHigh(Rule):
    """Each step replaces more than a tenth of the weights, and the loss does not come down.

    What it sees:
        The update ratio (norm of the update over norm of the weights) of some group above 0.1, in the median of three
        and more samples, while the loss ends no lower than it began, or gave back more than half of what it had come
        down. One such sample is enough where the loss stands at ten times its first by the next one and at the end, or
        is not finite; or where it stood so for more than ten rows and a fifth of the run, and came back to no less
        than half of its first; or where all weights together are twice as large in the next sample and the loss never
        comes down.

        A fiftieth is enough in the median where all weights together grew by half between two samples, and the loss, of
        which more than half is left, has not come down since the first fifth of the run; and in any sample, where they
        grew so between the first two and the loss has stood a quarter above its first value ever since, as where
        something trained is trained on.

        Weights that were swept away from one sample to the next: a group grew fivefold, by more than 0.1 of its norm a
        step, while the loss stood at a quarter above its first value (a tenth, if it hardly moved for the rest of the
        run, at more than half of it), or gave back all that it had come down and then stood so. Or all together grew
        two and a half times (five times, where the run has stages), by a fiftieth a step, where more than half of the
        loss is left at the end. Or one update was longer than all weights together, and the loss at ten times its
        first before the next sample, by which it has not come down by a third of that.

        Where recorded weights of the components move, the loss counts by those of the first row too, whichever is
        lower. Where the goal itself moves (rewards, adversaries) it is an info, unless the weights were swept away, or
        grew by half between the first two samples, and half of the recorded reward at first is gone ever since.

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
    mended: float = 0.33  # of the first loss is gone by the next sample: a first step of RMSprop cost one row
    blown: float = 10.0  # x the first loss: the run is lost, and one sample is proof enough
    leap: float = 5.0  # x, what the weights grew by between two samples; healthy ones come to 2.3 in fifty steps
    hurt: float = 0.25  # of the first loss, above it: what begins at 0 leaps too, and the loss comes down
    hurt_sure: float = 2.0  # standard errors of the level of an eighth of the run, each of which stands so
    hurt_stuck: float = 0.1  # of the first loss, above it, where hardly anything is learned after such a leap
    sigmas: float = 3.0  # of the loss's noise, above its first value as well
    rows: int = 3  # of the loss, in their median: more than a spike
    long: int = 10  # rows beyond measure that a loss which came back must have had; RMSprop's first steps: two
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
    _game: bool = field(default=False, init=False)
    _roles: Roles = field(default_factory=Roles, init=False)

    def start(self, header: Header) -> Findings:
        """A stage may hold the loss where it is; which components are tasks."""
        self._roles = Roles.of(header)
        self._staged = header.plan is not None and len(header.plan.stages) > 1
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Ratios and loss at bounded resolution."""
        self._history.push(_columns(chunk))
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Whether the rate is too high for the run as it stands; by a copy that knows whether it is a game."""
        trial = copy(self)
        trial._game = contested(run)
        yield from trial._judge(rest)

    def _judge(self, rest: Chunk) -> Iterator[Finding]:
        """The whole run."""
        series = self._history.series(_columns(rest))
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        loss = _steady(whole, series.get("loss", np.empty(0)))
        known = loss[np.isfinite(loss)]
        if len(known) < 6:
            return
        first, last = _first(whole), float(np.median(known[-3:]))
        lost = bool((whole.nonfinite("loss")[-5:] > 0).any()) or last > first + (self.blown - 1) * abs(first)
        norms = [name.removeprefix("weight_norm/") for name in series if name.startswith("weight_norm/")]
        weights = Weights(whole, tuple(norms))
        sick = self._rewritten(weights, series, loss, first, lost) or self._churned(weights, self._high(series), first)
        swept = self._leapt(weights, series, first) if self._game or not sick else None
        swept = swept or (None if self._game or sick else self._thrown(weights, first))
        ruined = {} if swept else self._ruined(weights, series, first)
        if swept:
            yield swept
        elif sick or ruined:
            yield self._finding(whole, sick or ruined, (first, last), lost, bool(ruined))

    def _high(self, series: dict[str, Floats]) -> dict[str, float]:
        """The median update ratio of each group that was sampled often enough."""
        known = {group: values[np.isfinite(values)] for group, values in _ratios(series).items()}
        return {group: float(np.median(values)) for group, values in known.items() if len(values) >= self.samples}

    def _rewritten(
        self, weights: Weights, series: dict[str, Floats], loss: Floats, first: float, lost: bool
    ) -> dict[str, float]:
        """Groups of which a step rewrites a tenth, while the loss does not come down; their ratios."""
        known = loss[np.isfinite(loss)]
        last, best = float(np.median(known[-3:])), float(np.min(known))
        back = last - best > self.back * max(first - best, 0.0) + self.back * abs(best)
        worse = fall(loss) <= 0 or back
        sick = {group: ratio for group, ratio in self._high(series).items() if ratio > self.ratio and worse}
        if lost or last > self.back * abs(first):
            blew = {group: self._blew(weights.rows, group, first, lost) for group in _ratios(series)}
            sick |= {group: ratio for group, ratio in blew.items() if ratio > self.ratio}
        if not sick and fall(loss) <= 0 and self._doubled(weights, series):
            most = {group: float(np.nanmax(values)) for group, values in _ratios(series).items()}
            sick = {group: ratio for group, ratio in most.items() if ratio > self.ratio}
        return sick

    def _blew(self, whole: Chunk, group: str, first: float, lost: bool) -> float:
        """The highest ratio at whose next sample the loss was beyond measure, or was so for a fifth of the run before
        it; 0 for none. Only the latter counts where the loss came back.

        The first steps of RMSprop and of a schedule without warm-up are large in health, and may cost a row or two:
        what the loss did long after is not of them.
        """
        values, loss = whole[f"update_ratio/{group}"], whole["loss"]
        at = np.flatnonzero(np.isfinite(values))
        beyond = (whole.nonfinite("loss") > 0) | (loss > first + (self.blown - 1) * abs(first))
        last = float(np.median(loss[np.isfinite(loss)][-3:]))
        thrown = beyond & (loss > self.blown * last)  # what only wanders about a level is not thrown
        ends = [*(at[1:] + 1).tolist(), len(loss)]
        stands = [
            (
                (lost and 2 * int(beyond[max(0, end - self.rows) : end].sum()) > min(self.rows, end))
                or int(thrown[begin:end].sum()) > max(len(loss) // 5, self.long)
            )
            and not self._learnt(loss[begin:end], beyond[begin:end])
            for begin, end in zip(at.tolist(), ends, strict=True)
        ]
        return max(values[at[stands]].tolist(), default=0.0)

    def _learnt(self, loss: Floats, beyond: Bools) -> bool:
        """Whether the loss came down to half after a sample and only then was lost: that came of something else."""
        level = running_medians(loss[: int(beyond.argmax())], self.rows)
        return bool(len(level) and np.nanmin(level, initial=np.inf) < loss[0] - self.back * abs(loss[0]))

    def _doubled(self, weights: Weights, series: dict[str, Floats]) -> bool:
        """Whether a sample that is too high was followed by one in which all weights together are twice as large."""
        ratios = [weights.ratio(group) for group in _ratios(series)]
        if not ratios or not len(weights.grew):
            return False
        ratio = np.fmax.reduce(ratios)[weights.at[:-1]]
        return bool(((ratio > self.ratio) & (weights.grew > self.doubled)).any())

    def _churned(self, weights: Weights, high: dict[str, float], first: float) -> dict[str, float]:
        """Groups that each step stirs up, after weights that grew at once and a loss that has stood ever since."""
        after = weights.rows["loss"][len(weights.rows) // 5 :]
        stood = not self._staged and fall(after) <= 0 and median(after) > self.back * abs(first)
        if not stood or not (weights.grew > self.grown).any():
            return {}
        return self._stirred(weights, high)

    def _stirred(self, weights: Weights, ratios: dict[str, float]) -> dict[str, float]:
        """Groups that are changed by much, and not only blown up: so does a decay of the wrong sign, say."""
        high = {group: ratio for group, ratio in ratios.items() if ratio > self.stirred}
        return {group: ratio for group, ratio in high.items() if not weights.swells(group, self.swelling)}

    def _ruined(self, weights: Weights, series: dict[str, Floats], first: float) -> dict[str, float]:
        """Groups of a model that knew more when it came: the first steps made its weights as large again by half, and
        the loss has stood above its first value ever since; of a policy, half of what it was paid at first is gone for
        good. What is new begins where nothing can be lost.
        """
        whole, grew = weights.rows, weights.grew
        reweighed = any(_moves(whole[name]) for name in whole.channels if name.startswith("weight/"))
        fast = len(grew) and grew[0] > self.grown and (grew[0] - 1) / weights.steps[0] > self.stirred / 2
        if self._staged or reweighed or not fast or not self._lost_ever_since(whole, first):
            return {}
        if self._loudest(whole, int(weights.at[0])):
            return {}
        return self._stirred(weights, {group: float(np.nanmax(weights.ratio(group))) for group in _ratios(series)})

    def _lost_ever_since(self, whole: Chunk, first: float) -> bool:
        """Whether each eighth of the run stands above the first loss; of a game, below half of the first reward."""
        loss, hurt = whole["loss"], self.hurt
        if self._game:
            reward = paid(whole.channels)
            if reward is None:
                return False
            known = -whole[reward]
            loss, hurt = known[np.isfinite(known)], self.back
            first = _start(loss)
        loss = loss[len(loss) // 20 :]
        error = noise(loss) * (1 + np.pi / 2 * 8 / max(len(loss), 1)) ** 0.5  # of a first row, and an eighth's median
        bar = first + max(hurt * abs(first), self.hurt_sure * error)
        return len(loss) >= 8 * self.rows and all(median(part) > bar for part in np.array_split(loss, 8))

    def _leapt(self, weights: Weights, series: dict[str, Floats], first: float) -> Finding | None:
        """The group whose weights were swept away: the samples tell by how much, the rows between what it cost."""
        worst: tuple[float, str, int, int] | None = None
        for group in weights.groups:
            if not self._grew(series[f"weight_norm/{group}"]):
                continue
            values = weights.norm(group)
            at = np.flatnonzero(np.isfinite(values) & (values > 0))
            times, steps = values[at[1:]] / values[at[:-1]], np.maximum(np.diff(weights.rows.step[at]), 1)
            for index in np.flatnonzero((times > self.leap) & (times - 1 > self.ratio * steps))[:1].tolist():
                begin, end = int(at[index]), int(at[index + 1])
                if self._cost(weights.rows, begin, end, first):
                    worst = max(worst or (0.0, "", 0, 0), (float(times[index]), group, begin, end))
        return self._swept(weights.rows, *worst, first) if worst else None

    def _cost(self, whole: Chunk, begin: int, end: int, first: float) -> bool:
        """Whether the loss was hurt between two rows, which had not come down far before: then something else came."""
        loss = whole["loss"]
        best = np.nanmin(running_medians(loss[: begin + 1], self.rows), initial=first)
        if first - best > self.back * abs(first):
            return False
        peak = np.nanmax(running_medians(loss[begin : end + self.rows], self.rows), initial=-np.inf)
        hurt = self.hurt_stuck if self._stands(loss[end:], first, len(whole)) else self.hurt
        bar = max(hurt * abs(first), self.sigmas * noise(loss[: end + 1]))
        return bool(peak - first > bar) or self._undone(whole, end, first)

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

    def _swept(self, whole: Chunk, times: float, group: str, begin: int, end: int, first: float) -> Finding:
        highest = float(np.fmax.reduce(whole["loss"][begin : end + 1]))  # NaN where none was logged between
        cost = "" if np.isnan(highest) else f", and the loss went from {first:.4g} to {highest:.4g} meanwhile"
        loud = self._loudest(whole, begin)
        blame = f"; the {loud} loss outweighed the others a hundredfold then, and may be the cause" if loud else ""
        return self.finding(
            "warning",
            f"group:{group}",
            (int(whole.step[begin]), int(whole.step[-1])),
            f"The weights of {group} grew {times:,.3g}-fold from step {whole.step[begin]:,} to {whole.step[end]:,}"
            f"{cost}{blame}.",
            evidence={"growth": times, "first_loss": first} | ({"highest_loss": highest} if cost else {}),
            advice=f"Lower the learning rate of {group} tenfold and more, or lengthen the warm-up; what was learned "
            "after such a step began from ruins.",
            confidence=0.6 if loud else 0.85,
        )

    def _thrown(self, weights: Weights, first: float) -> Finding | None:
        """All weights at once: by many steps that were too long, or by one that was longer than all of them."""
        whole, loss = weights.rows, weights.rows["loss"]
        steady = _steady(whole, loss)
        left = median(steady[-max(3, len(steady) // 10) :])
        fell = min(fall(steady), (first - left) / max(abs(first), abs(left), 1e-300))  # the blow itself is no height
        if not len(weights.grew) or not (self._staged or fell < self.back):
            return None
        level = np.minimum.accumulate(np.nan_to_num(running_medians(loss, self.rows), nan=np.inf))
        unlearnt = first - level[weights.at[:-1]] <= self.back * abs(first)  # else the rate was well until then
        for index in np.flatnonzero((self._outgrew(weights, fell) | self._burst(weights, first)) & unlearnt)[:1]:
            begin, end = int(weights.at[index]), int(weights.at[index + 1])
            norms = {group: weights.norm(group)[[begin, end]].tolist() for group in weights.groups}
            times = {group: now / was for group, (was, now) in norms.items() if was > 0}
            worst = max(times, key=lambda group: times[group], default="")
            if worst and not weights.swells(worst, self.swelling):
                return self._swept(whole, times[worst], worst, begin, end, first)
        return None

    def _outgrew(self, weights: Weights, fell: float) -> Bools:
        """Samples after which many steps made the weights far larger, where most of the loss is left. [samples - 1]"""
        grew = weights.grew
        outgrew = (grew > self.outgrown) & (grew - 1 > self.stirred * weights.steps) & (weights.length < self.nothing)
        return outgrew & ((grew > self.leap) & (fell < self.back)) if self._staged else outgrew

    def _burst(self, weights: Weights, first: float) -> Bools:
        """Samples of an update longer than all weights, that cost the loss at once and for long. [samples - 1]"""
        loss, between = weights.rows["loss"], list(itertools.pairwise(weights.at.tolist()))
        peak = np.array([np.nanmax(loss[begin : end + 1], initial=-np.inf) for begin, end in between])
        left = np.array([median(loss[(begin + end) // 2 : end + 1]) for begin, end in between])
        blew = (weights.length > 1) & (peak > first + (self.blown - 1) * abs(first))
        return blew & ~(left < first - self.mended * abs(first))  # such a first step can be made good

    def _loudest(self, whole: Chunk, row: int) -> str:
        """The component that outweighed all tasks beside it in a row: its scale makes such steps at any rate."""
        parts: dict[str, float] = {}
        for name in components(whole):
            weight = whole[f"weight/{name}"][row]
            parts[name] = float(np.abs(whole[f"loss/{name}"][row] * (1.0 if np.isnan(weight) else weight)))
        loudest = max(parts, key=lambda name: np.nan_to_num(parts[name]), default="")
        tasks = sum(size for name, size in parts.items() if name != loudest and not self._roles.aside(name))
        return loudest if tasks > 0 and parts[loudest] > self.loud * tasks and not self._game else ""

    def _finding(
        self, whole: Chunk, sick: dict[str, float], loss: tuple[float, float], lost: bool, ruined: bool
    ) -> Finding:
        group = max(sick, key=lambda key: sick[key])
        ratio, onset = sick[group], _since(whole[f"update_ratio/{group}"], self.ratio)
        rates = whole[f"lr/{group}"][np.isfinite(whole[f"lr/{group}"])]
        aim = f" from {rates.max():.2g} to about {rates.max() / min(ratio / self.usual, 100):.1g}" if len(rates) else ""
        said = "loss"
        if self._game and ruined and (reward := paid(whole.channels)):
            known, said = whole[reward][np.isfinite(whole[reward])], "reward"
            loss, lost = (-_start(-known), float(np.median(known[-3:]))), False
        peak = float(np.nanmax(whole["loss"]))
        thrown = said == "loss" and not lost and peak > loss[0] + (self.blown - 1) * abs(loss[0])
        return self.finding(
            "info" if self._game and not ruined else "critical" if lost else "warning",
            f"group:{group}",
            (int(whole.step[onset]), int(whole.step[-1])),
            f"A step changes the weights of {group} by {ratio:.2g} of their norm, and the {said} goes from "
            f"{loss[0]:.4g} to {f'{peak:.4g} and back to ' if thrown else ''}"
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


def _ratios(series: dict[str, Floats]) -> dict[str, Floats]:
    """The update ratios of the groups that were sampled."""
    ratios = {name: values for name, values in series.items() if name.startswith("update_ratio/")}
    return {name.removeprefix("update_ratio/"): values for name, values in ratios.items() if np.isfinite(values).any()}


def _first(whole: Chunk) -> float:
    """The loss before the rate had done anything: of the first row, or of a few, whichever is lower."""
    known = whole["loss"][: 10 * MOST]
    return _start(known[np.isfinite(known)])


def _start(known: Floats) -> float:
    return float(min(known[0], np.median(known[:6]))) if len(known) else np.nan
