"""See the rule's docstring: it is the page that `trainwatch rules loss-stuck` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.curve import CurveRule
from trainwatch.header import mapping, number
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import median, middle
from trainwatch.table import Chunk
from trainwatch.views.components import Roles
from trainwatch.views.curve import Points, wanders
from trainwatch.views.evaluations import direction, held_out, scatter

Floats = NDArray[np.float64]

CHANCE = ("metric/acc", "metric/accuracy", "metric/top1")
SKILL = (
    (re.compile(r"metric/(.*[/_.-])?(r2|mcc|kappa|pearson\w*|spearman\w*|corr\w*)", re.IGNORECASE), 0.0),
    (re.compile(r"metric/(.*[/_.-])?(auc|auroc|roc_auc)", re.IGNORECASE), 0.5),
)
"""Figures of which everybody knows what a guess is worth."""
ERRORS = re.compile(r"metric/(.*[/_.-])?(wer|cer|error|error_rate)", re.IGNORECASE)
"""Shares of words or letters that are wrong: 1 is what saying nothing costs."""
UNSURE = re.compile(r"perplexity|ppl|nll", re.IGNORECASE)
"""Figures that fall as a model that knows nothing becomes less sure of it."""
RIGHT = re.compile(
    r"metric/(.*[/_.-])?(acc(uracy)?|exact(_match)?|em|(top|recall|hits)_?(at_?|@)?\d+|mrr)", re.IGNORECASE
)
"""Shares of answers that are right."""
NOTHING = re.compile(
    r"metric/(.*[/_.-])?(exact\w*|em|m?iou\w*|jaccard|dice|f1\w*|bleu\w*|rouge\w*|solved|hits?)", re.IGNORECASE
)
"""Figures that are 0 where nothing is right, and of which chance gives next to nothing."""


@dataclass
class Said:
    """What the figures of validation say of a model that may have learned nothing."""

    known: list[str] = field(default_factory=list)  # by those of which everybody knows what a guess is worth
    told: list[str] = field(default_factory=list)  # by others
    unsaid: bool = False  # an accuracy without declared classes leaves the word to those


@dataclass
class LossStuck(CurveRule):
    """The loss does not move from where it began.

    What it sees:
        From the first row to the last the smoothed loss gained less than 2 %, and less than its noise can tell. It is a
        warning with a proof: the loss is the very same number in every row, or for every batch within a two-thousandth,
        where fingerprints tell that those differ, and validation's figures do not; the gradient or the update is 0; or
        it stands at what guessing costs (ln K for K declared classes, or the entropy of their counts; or exp(-loss) is
        the evaluated accuracy), and a warm-up is over for as long as it took. Without a proof it is an info. Or,
        however the loss went, validation was never better than a guess in 80 % of the planned steps, by every figure
        that tells it: an accuracy and a loss at what the declared classes' shares give (where a task of several stands
        there, in training and validation alike, the accuracy may be lucky now and then, or be missing), an R2 or a
        correlation of 0, an AUC of a half, and no error has come down by a quarter; or no single answer was ever right
        (an accuracy, an exact match, an overlap or an F1 of 0 all along), or a rate of errors never left 1, which is
        what saying nothing costs, and the loss stands. Or every share of right answers, all below a half, was best in
        its first evaluation and has lost a fifth since, while the training loss gained nothing.

    Why it matters:
        Nothing is learned, however long it runs.

    What to do:
        Overfit a single batch first. If that fails: the loss is cut off from the parameters (a detach, no_grad, frozen
        or stale parameters in the optimiser), the learning rate is 0 or so large that the units died. If it works:
        the labels do not belong to the inputs.

    When it is wrong:
        Fine-tuning near the floor, the first steps of a slow warm-up, and games (reinforcement learning, GANs) stand
        still in health: without a proof they are no alarm. Some tasks stay at chance for long and then learn at once;
        a quarter of the planned steps is waited for.

    References:
        Karpathy, "A recipe for training neural networks" (2019): verify the loss at initialisation.
    """

    wants: ClassVar[tuple[str, ...]] = ("grad_norm", "update_ratio/<group>", "run:classes|eval:metric/<name>")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-plateau", "slow-convergence", "mode-collapse", "length-collapse", "invalid-outputs"),
    )

    rows: int = 20  # fewer cannot tell a slow start from none
    telling: int = 200  # rows after which a standstill without a proof is worth a word
    least: float = 0.02  # of the first loss: less in a whole run is nothing
    sure: float = 4.0  # standard errors
    resolved: float = 0.05  # of the level, for its error: a few noisy rows stand at any level
    blind: float = 0.6  # nat: below, no guess costs so little, and exp(-loss) is the accuracy of whoever is sure
    unskilled: float = 0.05  # of a figure's range: so far a guess may come by chance
    evaluations: int = 5  # that are no better than a guess
    alike: float = 5e-4  # of the loss, between nine batches of ten: a thousand samples each differ by one in fifty
    through: float = 0.8  # of the planned steps: who has learned nothing by then will not
    hardly: float = 0.01  # of the answers are right: one or the other by chance, among as many as one likes
    seldom: float = 0.02  # of what an exact match, an overlap or an F1 can be: less, all along, is chance
    stands: float = 0.05  # of the loss, in the second half of the run, where no single answer was right
    worse: float = 0.2  # of the first figure is lost: in health a twentieth, and in a model
    fell: float = 0.25  # of the first error, in each of the last evaluations: what knows nothing keeps it
    low: float = 0.5  # that was no good to begin with: a good one may be spoilt on purpose
    left: float = 0.4  # of the first loss: with less of it, something was learned, and the figure is at fault
    share: float = 0.25  # of the planned steps: plateaus at the start rarely last longer

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Flat at all? Then look for a proof."""
        points, rows = self._curve.points(rest), self._curve.rows + len(rest)
        planned, ended = run.header.total_steps, run.end is not None or _left(run)
        flat = rows >= self.rows and len(points) >= self.rows and self._flat(points)
        early = points.step[-1:].sum() < self.share * planned if planned else rows < self.telling and not ended
        proof = self._proof(run, rest, points) if flat and not early else ""
        if proof:
            yield self._finding("warning", points, self._curve.span(run, rest), proof)
            return
        late = ended if planned is None else points.step[-1:].sum() >= self.through * planned
        guess, since = self._guessing(run, points) if late and len(points) and not self._resumed else ("", 0)
        guess = f"than a guess: {guess}" if guess else ""
        if not guess and late and len(points) >= self.rows and not (self._resumed or run.header.curriculum):
            guess, since = self._unlearned(run, points), int(points.step[0])
            guess = f"than it began: {guess}" if guess else ""
        if guess and not wanders(run, points):
            yield self._unskilled(run, points, guess, since)
        elif flat and not (early or self._resumed or rows < self.telling or wanders(run, points)):
            yield self._finding(
                "info", points, self._curve.span(run, rest), "no zero gradient, zero update or guess level explains it"
            )

    def _flat(self, points: Points) -> bool:
        """Whether neither the whole nor any part of it lies clearly below the beginning, nor far above."""
        if not np.any(points.loss):
            return False  # exactly 0 is another sickness
        first, levels, bar = self._levels(points)
        return bool(first - levels.min() < bar and levels.max() - first < 2 * bar)

    def _levels(self, points: Points) -> tuple[float, Floats, float]:
        """Where the loss began, where each fifth of it stands, and what is no difference between them."""
        parts = np.array_split(points.loss, 5)
        error = 1.25 * points.noise / len(parts[-1]) ** 0.5
        first = middle(points.loss[: max(1, len(points) // 20)])
        return first, np.array([median(part) for part in parts]), max(self.least * abs(first), self.sure * error)

    def _proof(self, run: Run, rest: Chunk, points: Points) -> str:
        """Why it will not move, in words; nothing if it may."""
        level, loss = float(np.median(points.loss)), self._curve.raw(run, "loss", rest)
        if np.ptp(loss[np.isfinite(loss)]) == 0 and float(f"{level:.2g}") != level:
            return f"it is {level:.6g} in every row"
        norm = self._curve.raw(run, "grad_norm", rest)
        norm = norm[np.isfinite(norm)]
        if len(norm) >= self.rows and np.mean(norm == 0) > 0.9:
            return "the gradient is exactly 0"
        names = [name for name in run.train.channels if name.startswith("update_ratio/")]
        ratios = np.array([self._curve.raw(run, name, rest)[1:] for name in names])  # a warm-up's first step is of 0
        if names and np.isfinite(ratios).any(axis=0).sum() >= 2 and np.nanmax(ratios) == 0:
            return "the parameters do not move"
        if self._alike(run, loss[np.isfinite(loss)], self._curve.raw(run, "data/fingerprint", rest)):
            return "it is the same for every batch, and so is what validation shows: the inputs do not reach it"
        return self._chance(run, level, 1.25 * points.noise / len(points) ** 0.5)

    def _alike(self, run: Run, loss: Floats, batches: Floats) -> bool:
        """Whether the batches differ, and neither the loss nor any figure of validation does."""
        known = batches[np.isfinite(batches)]
        spread = np.quantile(loss, 0.9) - np.quantile(loss, 0.1)
        if 2 * len(np.unique(known)) < len(loss) or spread > self.alike * abs(float(np.median(loss))):
            return False
        figures = [run.eval.curve(name)[1] for name in run.eval.channels if name.startswith("metric/")]
        told = [values for values in figures if len(values) >= self.evaluations]
        return bool(told) and all(np.ptp(values) <= self.least * np.abs(values).max() for values in told)

    def _chance(self, run: Run, level: float, error: float) -> str:
        """Whether the loss is what guessing costs."""
        bar, shares = 0.01 * abs(level) + self.sure * error, _shares(run)
        if _warms_up(run):
            return ""
        if len(shares) > 1:
            prior = _entropy(shares)
            if bar > self.resolved * level:
                return ""
            if abs(level - math.log(len(shares))) < bar:
                return f"it is ln {len(shares)} = {math.log(len(shares)):.4g}, a blind guess among that many"
            if abs(level - prior) < bar:
                return f"it is {prior:.4g}, what guessing by the {len(shares)} classes' shares costs"
        for name in CHANCE:
            known = run.eval.curve(name)[1] if name in run.eval else np.empty(0)
            if len(known) >= 2 and self.blind < level < 20 and np.abs(known * math.exp(level) - 1).max() < 0.1:
                return f"the accuracy is {known[-1]:.3g} = exp(-loss), a blind guess"
        return ""

    def _guessing(self, run: Run, points: Points) -> tuple[str, int]:
        """Whether validation was never better than a guess, by every figure that tells it: in words, and since when.

        Where no figure tells, a task's loss does: it is computed of the same answers.
        """
        shares, said = _shares(run), Said()
        for name in run.eval.channels:
            values = run.eval.curve(name)[1]
            if len(values) >= self.evaluations and self._skilled(run, points, name, values, said):
                return "", 0
        losses = run.eval.curve("loss")[1] if "loss" in run.eval else np.empty(0)
        single = sum(name.startswith("loss/") for name in run.train.channels) <= 1
        learned = shares and single and len(losses) and losses.min() < (1 - self.least) * _entropy(shares)
        if learned or (said.told and self._errs_less(run)):
            return "", 0
        if said.known or said.told or said.unsaid:
            return ", ".join(said.known if said.unsaid else said.known + said.told), int(points.step[0])
        return self._blind(run, shares)

    def _skilled(self, run: Run, points: Points, name: str, values: Floats, said: Said) -> bool:
        """Whether a figure of validation is better than a guess; what it says otherwise is kept."""
        short, best = name.removeprefix("metric/"), f"{values.max():.2g} at best"
        guess = next((guess for pattern, guess in SKILL if pattern.fullmatch(name)), None)
        if name in CHANCE:
            return self._accurate(run, points, values, short, said)
        if guess is not None:
            if values.max() > guess + self.unskilled:
                return True
            said.known.append(f"{short} {best}")
        if NOTHING.fullmatch(name):
            if values.max() > self.seldom:
                return True
            if self._stands(points):
                said.told.append(f"{short} {best}")
        if ERRORS.fullmatch(name) and np.abs(values - 1).max() < self.unskilled and self._stands(points):
            said.told.append(f"{short} {values.min():.2g} at best")
        return False

    def _accurate(self, run: Run, points: Points, values: Floats, short: str, said: Said) -> bool:
        """The same of an accuracy, of which only declared classes tell what a guess is worth."""
        shares = _shares(run)
        above = (max(shares) if shares else 0.0) + self.unskilled
        if values.max() <= above:
            if shares or (values.max() <= self.hardly and self._stands(points)):
                said.told.append(f"{short} {values.max():.2g} at best")
            return False
        if not shares:
            said.unsaid = True
            return False
        blind, _ = self._blind(run, shares)
        if not blind or np.median(values) > above:
            return True
        said.told.append(f"{short} {np.median(values):.2g} in the median, {blind}")
        return False

    def _errs_less(self, run: Run) -> bool:
        """Whether an error that no guess bounds came down in validation: of several tasks one was learned."""
        for name in run.eval.channels:
            bounded = ERRORS.fullmatch(name) or UNSURE.search(name)
            if name.startswith("metric/") and direction(name) < 0 and not bounded:
                values = held_out(run, name)[1]
                late = values[-self.evaluations :]
                if len(values) > self.evaluations and 0 < late.max() < (1 - self.fell) * values[0]:
                    return True
        return False

    def _blind(self, run: Run, shares: list[float]) -> tuple[str, int]:
        """The component that costs what guessing costs, in training and validation alike: in words, and since when it
        is taught; else nothing.

        One evaluation in twenty is lucky; so many losses are not.
        """
        roles, guess = Roles.of(run.header), _entropy(shares) if shares else 0.0
        for channel in run.eval.channels if guess else ():
            name = channel.removeprefix("loss/")
            since = _taught_since(run, name) if channel in run.train and name != channel else None
            if since is None or roles.aside(name):
                continue
            held, trained = run.eval.curve(channel)[1], run.train.curve(channel)[1]
            levels = (
                np.array([np.median(part) for part in np.array_split(trained, 5)]) if len(trained) > 5 else held[:0]
            )
            every = np.concatenate([held, levels])
            near = len(levels) and every.min() > (1 - self.least) * guess and every.max() < (1 + self.resolved) * guess
            if near and len(held) >= self.evaluations:
                return f"{name} costs {np.median(held):.4g} where guessing costs {guess:.4g}", since
        return "", 0

    def _unlearned(self, run: Run, points: Points) -> str:
        """The figures that only got worse, every one, while the training loss gained nothing: in words."""
        _, levels, bar = self._levels(points)
        told = []
        held = held_out(run)[1]
        gained = levels[0] - levels[1:].min() >= bar or (len(held) > 1 and held[-1] < (1 - self.least) * held[0])
        for name in filter(_right, () if gained else run.eval.channels):
            values = held_out(run, name)[1]
            if len(values) <= self.evaluations:
                continue
            fell = values[0] - float(np.median(values[-self.evaluations :]))
            bad = self.low > values[0] > values[1:].max() and fell > self.worse * values[0]
            if not bad or fell < self.sure * scatter(values):
                return ""
            told.append(f"{name.removeprefix('metric/')} {values[0]:.2g} at first and {values[0] - fell:.2g} at last")
        return ", ".join(told)

    def _stands(self, points: Points) -> bool:
        """Whether the loss hardly fell in the second half of the run, and much of it is left."""
        half = points.loss[len(points) // 2 :]
        third, level = max(1, len(half) // 3), float(np.median(half))
        error = 1.25 * points.noise * (2 / third) ** 0.5
        fell = float(np.median(half[:third]) - np.median(half[-third:]))
        return fell < self.stands * abs(level) + error and level > self.left * float(points.loss[0])

    def _unskilled(self, run: Run, points: Points, guess: str, since: int) -> Finding:
        steps = (since, max(since, run.last_step or int(points.step[-1])))
        return self.finding(
            "warning",
            "run",
            steps,
            f"Validation was never better {guess}, while the loss went from {points.loss[0]:.4g} to "
            f"{points.loss[-1]:.4g}.",
            evidence={"first": float(points.loss[0]), "now": float(points.loss[-1])},
            advice="Look at a few samples beside their labels as the model gets them: they may not belong together.",
            confidence=0.8,
        )

    def _finding(self, severity: Severity, points: Points, steps: tuple[int, int], why: str) -> Finding:
        first, now = float(points.loss[0]), float(np.median(points.loss[-max(1, len(points) // 5) :]))
        return self.finding(
            severity,
            "run",
            steps,
            f"The loss has not moved: {first:.4g} at step {steps[0]:,}, {now:.4g} at step {steps[1]:,}; {why}.",
            evidence={"first": first, "now": now, "noise": points.noise},
            advice="Overfit a single batch; if that fails, check what requires a gradient, the optimiser's parameters "
            "and the learning rate; if it works, the labels.",
            confidence=0.9 if severity == "warning" else 0.5,
        )


def _left(run: Run) -> bool:
    """Whether a log whose writer leaves no end was left alone: it is as finished as such a log can be."""
    return not run.tells_end and run.status() == "finished"


def _warms_up(run: Run) -> bool:
    """Whether a learning rate has risen for most of the run so far: little was tried yet."""
    for name in run.train.channels:
        steps, rates = run.train.curve(name) if name.startswith("lr/") else (np.empty(0, np.int64), np.empty(0))
        if len(rates) and rates[0] < 0.5 * rates.max() and steps[-1] < 2 * steps[np.argmax(rates)]:
            return True
    return False


def _taught_since(run: Run, name: str) -> int | None:
    """The first step at which a component counts; None where it does in less than half of them."""
    weight = f"weight/{name}"
    steps, values = run.train.curve(weight if weight in run.train else f"loss/{name}")
    counts = values > 0 if weight in run.train else np.ones(len(values), bool)
    return int(steps[np.argmax(counts)]) if 2 * counts.sum() > len(counts) else None


def _shares(run: Run) -> list[float]:
    """The declared classes' shares of the data."""
    counts = [number(value) or 0.0 for value in mapping(run.header.raw.get("classes")).values()]
    known = [count for count in counts if count > 0]
    return [count / sum(known) for count in known] if len(known) > 1 else []


def _entropy(shares: list[float]) -> float:
    """What guessing by the classes' shares costs, in nat."""
    return -sum(share * math.log(share) for share in shares)


def _right(name: str) -> bool:
    """Whether a metric is a share of right answers; ``err_top1`` is one of wrong ones."""
    return RIGHT.fullmatch(name) is not None and direction(name) >= 0
