"""Components and classes that are too loud or too quiet: weights, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainwatch.cures.defaults import of_component
from trainwatch.cures.setting import Setting, Settings, component_of, leaves, medians, rounded, words
from trainwatch.header import flat, mapping, number
from trainwatch.run import Run
from trainwatch.schema import Finding

WEIGHTS = frozenset(["weight", "weights", "lambda", "coef", "coefficient", "scale", "factor", "beta", "alpha"])
CLASS_WEIGHTS = ("class_weight", "class_weights")
HEARD = 0.05  # of the gradient: what component-ignored advises a component to own
BESIDE = 0.2  # of the gradient: what a regulariser that drowned the tasks is brought to; it grows as it is heard less


def too_loud(finding: Finding, run: Run) -> Settings:
    """A component that drowns the others: its unit's default, else a weight with which it has an equal part."""
    return tuple(of_component(finding, run)) or tuple(_rebalanced(finding, run, None))


def too_quiet(finding: Finding, run: Run) -> Settings:
    """A component that nobody hears: a weight with which it owns a few percent of the gradient."""
    return _rebalanced(finding, run, HEARD)


def positive(finding: Finding, run: Run) -> Iterator[Setting]:
    """A component that is maximised: its weight without the sign, where the config has it."""
    path = _weight_path(run, component_of(finding)) or component_of(finding)
    value = number(dict(flat(run.header.config)).get(path))
    if value and value < 0:
        yield Setting(path, -value, "without the sign")


def balanced(_finding: Finding, run: Run) -> Iterator[Setting]:
    """Weights of the classes, by how often each comes; where the config has a place for them."""
    counts = {name: value for name, said in mapping(run.header.raw.get("classes")).items() if (value := number(said))}
    places = [item for item in run.header.config.items() if item[0] in CLASS_WEIGHTS]
    places += [item for item in leaves(run, CLASS_WEIGHTS) if "." in item[0]]
    if len(places) == 1 and len(counts) > 1:
        mean = sum(counts.values()) / len(counts)
        weights = {name: rounded(mean / count) for name, count in counts.items()}
        listed = isinstance(places[0][1], list)
        yield Setting(places[0][0], list(weights.values()) if listed else weights, "mean count over the class's own")


def _rebalanced(finding: Finding, run: Run, share: float | None) -> Iterator[Setting]:
    """The component's weight, by what it was measured to contribute; ``share`` None is as much as the others each."""
    name = component_of(finding)
    path = _weight_path(run, name)
    if path is None:
        return
    shares = medians(run, "grad_share/", finding)
    active = max(sum(value > 0 for value in shares.values()), 2)
    declared = run.header.components.get(name)
    wanted = share or (BESIDE if declared and declared.role == "regulariser" else 1 / active)
    mine = shares.get(name, math.nan)
    if 0 < mine < 1:
        times, told = wanted / (1 - wanted) * (1 - mine) / mine, f"it owned {mine:.4g} of the gradient"
    elif share is None and (ratio := number(finding.evidence.get("ratio"))):
        times, told = 1 / ratio / (active - 1), f"it contributed {ratio:,.4g} times what the others did"
    else:
        return
    yield Setting(path, rounded(dict(flat(run.header.config))[path] * times), f"{told}, and should {wanted:.2g}")


def _weight_path(run: Run, component: str) -> str | None:
    """The one setting that is this component's weight, or a factor on it."""
    own = words(component)
    numbers = {path: value for path, value in flat(run.header.config) if number(value)}
    found = [path for path in numbers if own and own <= words(path) and WEIGHTS & words(path)]
    weights = [path for path in found if "weight" in path.lower()]
    chosen = weights if len(weights) == 1 else found
    return chosen[0] if len(chosen) == 1 else None
