"""Components that come in too fast or all at once: longer ramps, and one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainwatch.cures.defaults import of_component
from trainwatch.cures.setting import Setting, Settings, component_of, medians, words
from trainwatch.header import flat, number
from trainwatch.run import Run
from trainwatch.schema import Finding

LONGER = 4.0  # what a ramp or a warm-up is multiplied by


def longer_ramp(finding: Finding, run: Run) -> Iterator[Setting]:
    """A component that comes in too fast: a longer ramp; one at all, where its curriculum has steps."""
    own = words(component_of(finding))
    for path, value in flat(run.header.config):
        said = words(path)
        length = number(value)
        if own and own <= said and {"ramp", "anneal", "warmup"} & said and length and length > 0:
            longer = length * LONGER
            yield Setting(path, int(longer) if isinstance(value, int) else min(longer, 1.0), f"{LONGER:g} times longer")
    plan = run.header.plan
    for path, value in flat(run.header.config):
        if plan and plan.ramp == value == "step" and "ramp" in words(path):
            yield Setting(path, "linear", "instead of a leap at each boundary")


def loud_late(finding: Finding, run: Run) -> Settings:
    """A loss that was silent and is loud at once: its default form, else a ramp."""
    return tuple(of_component(finding, run)) or tuple(longer_ramp(finding, run))


def phased(_finding: Finding, run: Run) -> Iterator[Setting]:
    """Losses that all begin at once: the first task alone, the others ramped in one after the other."""
    total, place = run.header.total_steps, run.header.config.get("curriculum")
    tasks = [name for name, said in run.header.components.items() if said.role == "task"]
    stages = place.get("stages") if isinstance(place, Mapping) else None
    if not total or len(tasks) < 2 or not isinstance(stages, list):
        return
    weights = {name: value for name, value in medians(run, "weight/", _finding).items() if name in tasks}
    if set(weights) != set(tasks):
        return
    cuts = [round(index * total / len(tasks)) for index in range(len(tasks) + 1)]
    plan = [
        {
            "start": cuts[index],
            "end": cuts[index + 1],
            "name": f"{index + 1}: {', '.join(tasks[: index + 1])}",
            "weights": {name: weights[name] * (place_of <= index) for place_of, name in enumerate(tasks)},
        }
        for index in range(len(tasks))
    ]
    yield Setting("curriculum.stages", plan, f"{tasks[0]} first, then one loss more at each boundary")
    if "ramp" in place:  # type: ignore[operator]  # a mapping, or there were no stages
        yield Setting("curriculum.ramp", "linear", "so that none comes with a leap")
