"""What a rise of the training loss cost: whether the weights got worse, or the training only asks for more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainwatch.run import Run
from trainwatch.views.curve import Leap, Points
from trainwatch.views.evaluations import direction, held_out, scatter

Floats = NDArray[np.float64]

EVALUATIONS = 4  # since the best point of the training loss, that tell whether the weights got worse
TWO = 2  # since a rise, that must be as good as any before: an average of the weights is late by one
CLEAR = 4.0  # standard deviations of one evaluation that they must gain, as the training loss must
HARM = 0.25  # of a rise that validation may share, if a figure of merit says that nothing was lost; and
HARMLESS = 0.1  # where there is none: smoothed labels alone cost validation a tenth of the rise
LEARNS = 0.5  # of such a rise that validation must have moved by before: what never moves is no witness
MADE_GOOD = 0.3  # of a rise from one row to the next, at most, is left at the end: what came with it has been learned
WITNESS = (
    3.0  # standard deviations of one evaluation that a figure of merit has gained if it tells what is learned; and
)
FURTHER = 0.1  # of what it had gained then: less is no new best to speak of
KEPT = 0.25  # of what was gained may be lost, by validation or within the noise of a figure of merit
SHORTER = 0.6  # of the outputs' length before it: the answers of the data are others


def unharmed(run: Run, stage: Points, first: float, rise: float) -> bool:
    """Whether validation has hardly been worse since a rise than at its best before, in the same stage if it was
    evaluated there: the weights do what they did, and it is the training that asks for more.
    """
    before, after = _around(run, "loss", stage.step[0], first)
    ever = _around(run, "loss", -np.inf, first)[0]
    if len(before) < 2 or not len(after) or np.ptp(ever) < LEARNS * rise:
        return False
    names = [name for name in run.eval.channels if name.startswith("metric/") and direction(name)]
    merits = [_around(run, name, stage.step[0], first) for name in names]
    merits = [(then, late) for then, late in merits if len(then) and len(late)]
    lost = any(np.median(late) > then.min() + 2 * scatter(then) for then, late in merits)
    share = HARM if merits else HARMLESS
    return not lost and bool(np.median(after) - before.min() < share * rise)


def harder(run: Run, since: float) -> bool:
    """Whether the held-out loss got better and better while the training loss rose: the weights do what they are asked
    for, and the training asks for more (harder data, heavier components) that the log does not tell.

    The second half of the later evaluations is better than any before, clearly beyond their noise, and better than the
    first half: weights that are lost cannot do it.
    """
    steps, values = held_out(run)
    before, after = values[steps <= since], values[steps > since]
    if not len(before) or len(after) < EVALUATIONS:
        return False
    early, late = np.array_split(after, 2)
    gained = before.min() - np.median(late) > CLEAR * scatter(values)
    return bool(gained and late.max() < before.min() and np.median(late) < np.median(early))


def keeps_its_best(run: Run, stage: Points, since: float) -> bool:
    """Whether the last held-out loss of a stage, the second since a step at least, is as good as the best before it: of
    a training loss that rises from where it began (a helping hand that is withdrawn, harder data).
    """
    steps, values = held_out(run)
    here = (steps >= stage.step[0]) & (steps <= stage.step[-1])
    steps, values = steps[here], values[here]
    return bool((steps >= since).sum() >= TWO and values[-1] <= values[:-1].min() + scatter(values))


def less_merit(run: Run, since: float) -> bool:
    """Whether a figure of merit was never again, from that step on, as good as at its best before."""
    for name in run.eval.channels:
        if not name.startswith("metric/") or not direction(name):
            continue
        values = direction(name) * run.eval.column(name, 0, run.eval.size)
        known = np.isfinite(values)
        steps, values = run.eval.step[: len(values)][known], values[known]
        before, after = values[steps < since], values[steps >= since]
        if len(before) and len(after) and after.max() < before.max() - scatter(before):
            return True
    return False


def at_its_best(run: Run, before: float, since: float) -> bool:
    """Whether evaluations since a step are clearly better by a figure of merit than any up to ``before``, and by none
    worse than at its best: nothing was lost, whatever the loss does. What a loss measures may move (a teacher that
    sharpens, harder data). One that had stood still until then is no witness.
    """
    gained = False
    for name in run.eval.channels:
        if not name.startswith("metric/") or not direction(name):
            continue
        steps, values = held_out(run, name)
        costs, noise = -direction(name) * values, scatter(values)
        then, late = costs[steps <= before], costs[steps > since]
        if not len(then) or not len(late):
            continue
        if late[-3:].min() > costs.min() + 2 * noise:
            return False
        learned, now = float(then[0] - then.min()), float(np.median(late[len(late) // 2 :]))
        moved = len(then) == 1 or learned > WITNESS * noise
        gained |= moved and now < then.min() - max(noise, FURTHER * learned)
    return gained


def holds_its_merit(run: Run, since: float) -> bool:
    """Whether every figure of merit has kept, since a step, what it had learned, in four evaluations and more, and
    validation most of what it had gained: what a loss measures that rises slowly moves (a teacher that is less sure).
    """
    held = held_out(run)[1]
    if len(held) < EVALUATIONS or np.median(held[-3:]) - held.min() > KEPT * (held[0] - held.min()):
        return False
    names = [name for name in run.eval.channels if name.startswith("metric/") and direction(name)]
    learned = False
    for name in names:
        steps, values = held_out(run, name)
        costs = -direction(name) * values
        gained, noise, late = float(costs[:1].sum() - costs.min(initial=np.inf)), scatter(costs), costs[steps > since]
        bar = max(min(2 * noise, KEPT * gained), FURTHER * gained)
        if len(late) < EVALUATIONS or np.median(late[-3:]) > costs.min() + bar:
            return False
        learned |= gained > WITNESS * noise
    return learned


def left(stage: Points, broke: Leap) -> float:
    """What of a rise from one row to the next is left in the end, as a share of it."""
    return (float(np.median(stage.loss[-max(3, len(stage) // 20) :])) - broke.level) / broke.height


def other_answers(run: Run, stage: Points, broke: Leap) -> bool:
    """Whether training made such a rise good, and the outputs have been much shorter since."""
    if left(stage, broke) > MADE_GOOD:
        return False
    lengths = run.sample.column("quality/length_mean", 0, run.sample.size)
    known = np.isfinite(lengths)
    steps, lengths = run.sample.step[: run.sample.size][known], lengths[known]
    before, since = lengths[steps < stage.step[broke.row]], lengths[steps >= stage.step[broke.row]]
    return bool(len(before) and len(since) and since[-1] < SHORTER * np.median(before))


def _around(run: Run, name: str, begin: float, first: float) -> tuple[Floats, Floats]:
    """What held-out evaluations cost before a step, since ``begin`` if there are two, and the later half since then."""
    steps, values = held_out(run, name)
    values = -direction(name) * values
    before, after = values[(steps >= begin) & (steps < first)], values[steps >= first]
    return before if len(before) > 1 else values[steps < first], after[len(after) // 2 :]
