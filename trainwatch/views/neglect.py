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
LOWEST = re.compile(r"(^|[/_.-])(lowest|worst|min|rare(st)?)($|[/_.-])", re.IGNORECASE)
ACCURACY = ("metric/acc", "metric/accuracy", "metric/top1")
NEAR = 0.05  # of what the other classes have: accuracy that moves by less says nothing of them
BETTER = 3.0  # standard deviations of one evaluation: another figure of merit has learned to tell the classes apart
DEARER = 1.5  # x the training loss, in all of the last three evaluations; where nothing got lost they come to about 1
ALIKE = 2.0  # x, at most, at the first evaluation: the same quantity


def halfway(run: Run) -> bool:
    """Whether half of the planned steps are done: rare classes are learned late."""
    planned = run.header.total_steps
    return run.end is not None or bool(planned and (run.last_step or 0) >= planned / 2)


def never_right(courses: Sequence[Course], name: str, *, lowest: bool) -> str:
    """The figure of a class, or the ``lowest`` of all classes, that stands at 0 in the last evaluations."""
    own = re.compile(rf"(^|[/_.-]){re.escape(name)}($|[/_.-])", re.IGNORECASE)
    for course in courses:
        of_it = OF_ONE.search(course.name) and (own.search(course.name) or (lowest and LOWEST.search(course.name)))
        if of_it and len(course.value) >= LAST and not course.value[-LAST:].any():
            return course.name.removeprefix("metric/")
    return ""


def only_the_largest(courses: Sequence[Course], share: float) -> bool:
    """Whether accuracy stands at the largest class's share, and no other figure of merit tells of anything better."""
    accuracies = [course.value for course in courses if course.name in ACCURACY and len(course.value) >= LAST]
    stands = any(np.abs(value[-LAST:] - share).max() < NEAR * (1 - share) for value in accuracies)
    others = [course for course in courses if course.name.startswith("metric/") and course.name not in ACCURACY]
    return stands and not any(_better(course) for course in others)


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


def _better(course: Course) -> bool:
    cost = -direction(course.name) * course.value
    return bool(direction(course.name) and len(cost) and cost[0] - cost.min() > BETTER * scatter(course.value))
