"""What evaluations tell of a class that a model neglects."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trainwatch.run import Run
from trainwatch.views.evaluations import Course, direction, scatter

LAST = 5  # evaluations that all say so: one of a small class is right or wrong by chance
OF_ONE = re.compile(
    r"(^|[/_.-])(acc\w*|recall\w*|precision\w*|sensitivity|f1\w*|m?ap\d*|m?iou\w*|dice)($|[/_.-])", re.IGNORECASE
)
"""Figures that there are of each class; 0 says that it is never answered rightly."""
SPREAD = re.compile(r"(^|[/_.-])(gap|std\w*|var\w*|diff\w*|delta|spread)($|[/_.-])", re.IGNORECASE)
"""What tells how far figures lie apart: 0 is its best."""
LOWEST = re.compile(r"(^|[/_.-])(lowest|worst|min|rare(st)?)($|[/_.-])", re.IGNORECASE)
POSITIVE = re.compile(r"metric/(recall|sensitivity|tpr|f1(_score)?)")
"""Figures that there are of one of two classes alone: the one that is looked for, which is the rare one."""
ACCURACY = ("metric/acc", "metric/accuracy", "metric/top1")
NEAR = 0.05  # of what the other classes have: accuracy that moves by less says nothing of them
BETTER = 3.0  # standard deviations of one evaluation: another figure of merit has learned to tell the classes apart
RISES = 3.0  # standard errors between the means of the first and the last half
DEARER = 1.5  # x the training loss, in all of the last three evaluations; where nothing got lost they come to about 1
ALIKE = 2.0  # x, at most, at the first evaluation: the same quantity


def done(run: Run, part: float = 1.0) -> bool:
    """Whether the run has ended, or this part of the planned steps is done: rare classes are learned late."""
    planned = run.header.total_steps
    return run.end is not None or bool(planned and (run.last_step or 0) >= part * planned)


def never_right(courses: Sequence[Course], name: str, *, lowest: bool) -> str:
    """The figure of a class, or the ``lowest`` of all classes, that stands at 0 in the last evaluations."""
    own = figures(courses, name)
    if any(course.value[-LAST:].any() for course in own):
        return ""
    of_all = [course for course in courses if lowest and _of_one(course) and LOWEST.search(course.name)]
    for course in [*own, *of_all]:
        if len(course.value) >= LAST and not course.value[-LAST:].any():
            return course.name.removeprefix("metric/")
    return ""


def never_found(courses: Sequence[Course]) -> str:
    """The figure of one of two classes that stands at 0 in the last evaluations."""
    ours = (course for course in courses if POSITIVE.fullmatch(course.name) and len(course.value) >= LAST)
    return next((course.name.removeprefix("metric/") for course in ours if not course.value[-LAST:].any()), "")


def figures(courses: Sequence[Course], name: str) -> list[Course]:
    """Those named after a class; a number is the class only as the last word, since others are thresholds and ranks."""
    word = rf"(?<!top)(?<!at)[/_-]{name}$" if name.isdecimal() else rf"(^|[/_.-]){re.escape(name)}($|[/_.-])"
    own = re.compile(word, re.IGNORECASE)
    return [course for course in courses if _of_one(course) and own.search(course.name)]


def only_the_largest(courses: Sequence[Course], share: float) -> bool:
    """Whether accuracy stands at the largest class's share, and no other figure of merit tells of anything better."""
    return any(_stands(course, share) for course in courses if course.name in ACCURACY) and not told_apart(courses)


def told_apart(courses: Sequence[Course]) -> bool:
    """Whether a figure of merit gets better that the large classes alone do not raise, as they do accuracy."""
    return any(better(course) for course in courses if course.name not in ACCURACY)


def dearer(courses: Sequence[Course]) -> str:
    """Where validation costs far more than training does, of what cost the same at first; "" if nothing does."""
    for course in courses:
        known = (course.value > 0) & (course.train > 0)
        ratio = course.value[known] / course.train[known]
        if course.name.startswith("metric/") or len(ratio) < LAST or not 1 / ALIKE < ratio[0] < ALIKE:
            continue
        if ratio[-3:].min() > DEARER:
            return f", and the {course.split} {course.name} is {np.median(ratio[-3:]):.2g} x that of training"
    return ""


def better(course: Course) -> bool:
    """Whether a figure of merit has plainly become better than it was at first."""
    cost = -direction(course.name) * course.value
    known = course.name.startswith("metric/") and direction(course.name) and len(cost)
    return bool(known and cost[0] - cost.min() > BETTER * scatter(course.value))


def _of_one(course: Course) -> bool:
    return bool(OF_ONE.search(course.name)) and not SPREAD.search(course.name)


def _stands(course: Course, share: float) -> bool:
    """Whether it has come to a share, and has not risen since by more than chance."""
    far = np.flatnonzero(np.abs(course.value - share) >= NEAR * (1 - share))
    value = course.value[far[-1] + 1 if len(far) else 0 :]
    if len(value) < LAST:
        return False
    first, last = np.array_split(value, 2)
    error = float(np.hypot(first.std(), last.std())) / len(first) ** 0.5
    return bool(last.mean() - first.mean() <= RISES * error)
