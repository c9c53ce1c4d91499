"""What cures a finding, as settings of the run's own config: a path that is there, and the value to write instead.

A cure is derived from what was measured (weights from shares of the gradient, a rate from the update's ratio) or from
what the program says of itself (its defaults). Where neither tells one setting apart from all others there is no cure:
a guess would be tried on somebody's GPU hours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainwatch.header import flat, mapping, number
from trainwatch.run import Run
from trainwatch.schema import Finding


@dataclass(frozen=True)
class Setting:
    """One setting as it should be, and how the value was found."""

    path: str
    value: Any
    why: str


Settings = Iterable[Setting]
Cure = Callable[[Finding, Run], Settings]

WEIGHTS = frozenset(["weight", "weights", "lambda", "coef", "coefficient", "scale", "factor", "beta", "alpha"])
RATES = ("lr", "learning_rate", "base_lr", "max_lr", "peak_lr")
MAYBE_RATES = ("rate", "eta", "step_size")  # of learning, where the optimiser had that value
LIMITS = (
    *("max_grad_norm", "gradient_clip_val", "grad_clip", "grad_clip_norm", "gradient_clip", "clip_grad_norm"),
    *("clip_grad", "max_norm"),
)
MAYBE_LIMITS = ("clip", "clipping")  # of the norm, where the header says that it is
DECAYS = ("weight_decay", "decay", "wd", "l2")
WARMUPS = ("warmup", "warmup_ratio", "warmup_steps", "num_warmup_steps", "lr_warmup_steps", "warmup_iters")
HALVES: Mapping[Any, str] = {"fp16": "bf16", "float16": "bfloat16", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}
LENGTHS = ("t_max", "total_steps", "num_training_steps", "max_decay_steps", "lr_decay_iters", "decay_steps")
CLASS_WEIGHTS = ("class_weight", "class_weights")
UPDATE_RATIO = 1e-3  # norm of the update over that of the weights: what is usual, and what lr-too-high advises
FIRST_RATIO = 2e-2  # where weights begin: gradients are largest there; healthy runs come to 0.01 to 0.1
FARTHEST = 100.0  # times: where weights were swept away, the first samples tell that it was far too high, not how far
NEAREST = 30.0  # times: the bound where the first steps were not that long
LONGEST_FIRST = 6e-2  # of the weights: healthy runs' first steps come to 0.02 to 0.1
STIRRED = 0.02  # of the weights in one step, after the first: healthy runs come to half of it
USUAL_LIMIT = 0.1  # of the norm: published ones lie between this and 10
FAR_ABOVE = 10.0  # x a usual limit: healthy norms that are clipped at each step come to 8
ROSE = 3.0  # x what it was: a loss or a norm that went away before it broke
CALMER = 3.0  # what a rate is divided by where nothing was measured but that it was too high
LONGER = 4.0  # what a ramp or a warm-up is multiplied by
WARMUP = 0.05  # of the run, where there was none
HEARD = 0.05  # of the gradient: what component-ignored advises a component to own
BESIDE = 0.2  # of the gradient: what a regulariser that drowned the tasks is brought to; it grows as it is heard less


def cure(finding: Finding, run: Run) -> tuple[Setting, ...]:
    """The settings that would cure a finding; empty where none is known.

    What the rule itself prescribes comes first. A default that the program declares for the same setting is better than
    a number that was derived, where that default leaves the length to a ratio.
    """
    own = [Setting(path, _ratio_instead(path, value, run), "") for path, value in finding.patch.items()]
    found = own or list(CURES.get(finding.rule, _none)(finding, run))
    config = dict(flat(run.header.config))
    return tuple(item for item in found if item.path not in config or config[item.path] != item.value)


def _none(_finding: Finding, _run: Run) -> Settings:
    return ()


def _ratio_instead(path: str, value: Any, run: Run) -> Any:
    """0 instead of a number of steps, where that is the default and a ratio stands beside it."""
    parent = path.rpartition(".")[0]
    beside = {name.rpartition(".")[2] for name, _ in flat(run.header.config) if name.rpartition(".")[0] == parent}
    default = _defaults(run).get(path)
    return default if default == 0 and {"ratio", "share", "fraction"} & beside else value


def words(text: str) -> set[str]:
    """The words of a name: ``half_precision_masses`` and ``warmupSteps`` are three and two."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", text)}


def _defaults(run: Run) -> dict[str, Any]:
    """What the program would have taken for the settings that are off their defaults."""
    return mapping(run.header.raw.get("config_defaults"))


def restored(run: Run, keys: set[str]) -> Iterator[Setting]:
    """The default of the one setting off its default that is named for these words; none where two are as near."""
    config = dict(flat(run.header.config))
    near = {path: _common(words(path), keys) for path in _defaults(run) if path in config}
    best = [path for path in near if near[path] and near[path] == max(near.values())]
    if len(best) == 1:
        yield Setting(best[0], _defaults(run)[best[0]], "its default; no other setting named for this is off its own")


def _common(one: set[str], other: set[str]) -> int:
    """How many words two names share; ``clip`` and ``clipping`` are one."""
    return sum(any(a == b or (len(b) > 3 and a.startswith(b)) for b in other) for a in one)


NO_KEYS = frozenset(["data", "run", "loss", "step", "steps", "grad", "model", "ratio", "non", "post", "desync"])
"""Words of a rule's name that every other setting has too, or none."""


def named(finding: Finding, run: Run) -> Settings:
    """A setting that is named for the rule and its subject, back to its default."""
    kind, _, subject = finding.subject.partition(":")
    about = words(subject) if kind in ("module", "component", "tensor") else set()
    return restored(run, (words(finding.rule) | about) - NO_KEYS)


def of_component(finding: Finding, run: Run) -> Settings:
    """A setting that is named for the component, back to its default."""
    return restored(run, words(_component(finding)) - NO_KEYS)


def _component(finding: Finding) -> str:
    kind, _, name = finding.subject.partition(":")
    return name if kind == "component" else ""


def too_loud(finding: Finding, run: Run) -> Settings:
    """A component that drowns the others: its unit's default, else a weight with which it has an equal part."""
    return tuple(of_component(finding, run)) or tuple(_rebalanced(finding, run, None))


def too_quiet(finding: Finding, run: Run) -> Settings:
    """A component that nobody hears: a weight with which it owns a few percent of the gradient."""
    return _rebalanced(finding, run, HEARD)


def _rebalanced(finding: Finding, run: Run, share: float | None) -> Iterator[Setting]:
    """The component's weight, by what it was measured to contribute; ``share`` None is as much as the others each."""
    name = _component(finding)
    path = _weight_path(run, name)
    if path is None:
        return
    shares = _medians(run, "grad_share/", finding)
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


def _medians(run: Run, family: str, finding: Finding) -> dict[str, float]:
    """The median of each channel of a family over the rows that the finding is about."""
    rows = run.train
    steps = np.flatnonzero(rows.live & (rows.step >= finding.first_step) & (rows.step <= finding.last_step))
    found = {}
    for channel in rows.channels:
        values = rows[channel][steps] if channel.startswith(family) else np.empty(0)
        values = values[np.isfinite(values)]
        if values.size:
            found[channel.removeprefix(family)] = float(np.median(values))
    return found


def rounded(value: float) -> float:
    """Two digits: more were not measured."""
    return float(f"{value:.2g}")


def leaves(run: Run, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Settings whose last name is one of these."""
    known = set(names)
    return [(path, value) for path, value in flat(run.header.config) if path.rpartition(".")[2].lower() in known]


def _rate(run: Run, finding: Finding) -> tuple[str, float] | None:
    """The setting of the learning rate: the only one, or the one that the sick group is seen to have had."""
    found = [(path, value) for path, said in leaves(run, RATES) if (value := number(said)) and value > 0]
    maybe = [(path, value) for path, said in leaves(run, MAYBE_RATES) if (value := number(said)) and value > 0]
    kind, _, group = finding.subject.partition(":")
    channels = [f"lr/{group}"] if kind == "group" else [name for name in run.train.channels if name.startswith("lr/")]
    highest = [float(np.nanmax(run.train[name])) for name in channels if np.isfinite(run.train[name]).any()]
    seen = [item for item in found or maybe if any(math.isclose(item[1], value, rel_tol=0.01) for value in highest)]
    return found[0] if len(found) == 1 else seen[0] if len(seen) == 1 else None


def _slower(run: Run, finding: Finding, divisor: float, why: str) -> Iterator[Setting]:
    rate = _rate(run, finding)
    if rate:
        yield Setting(rate[0], rounded(rate[1] / divisor), why)


def rate_down(finding: Finding, run: Run) -> Settings:
    """As much lower as the steps were above the usual one, by what was measured; at least tenfold.

    By the update's ratio, or by what the weights grew in each step, whichever was more: once the weights have been
    swept away the ratio is small again, since they are large.
    """
    ratio = max(number(finding.evidence.get("update_ratio")) or 0.0, _pace(finding, run))
    times = min(max(ratio / UPDATE_RATIO, 10.0), _farthest(finding, run))
    return _slower(run, finding, times, f"a step was {ratio:.2g} of the weights" if ratio else "tenfold lower")


def _farthest(finding: Finding, run: Run) -> float:
    """How far down at most, from how long the first steps were: by the first samples, or as an adaptive optimiser's
    first step is, which moves each parameter by the rate; of any other that is too much, and ends at the bound."""
    rows, rate, parameters = run.train, _rate(run, finding), number(run.header.raw.get("parameters"))
    firsts = {
        name: float(values[np.isfinite(values) & (values > 0)][:1].sum())
        for name in rows.channels
        if name.startswith(("weight_norm/", "update_ratio/"))
        for values in (rows[name],)
    }
    norm = math.hypot(*(value for name, value in firsts.items() if name.startswith("weight_norm/")))
    if not (rate and parameters and norm):
        return FARTHEST
    measured = max((value for name, value in firsts.items() if name.startswith("update_ratio/")), default=0.0)
    first = max(rate[1] * math.sqrt(parameters) / norm, measured)
    return min(max(first / LONGEST_FIRST, NEAREST), FARTHEST)


def _pace(finding: Finding, run: Run) -> float:
    """What a step added to the norm of the weights, at most, as a share; 0 where no two samples are there."""
    rows, group = run.train, finding.subject.removeprefix("group:")
    channels = [name for name in rows.channels if name.startswith("weight_norm/")]
    own = [name for name in channels if name == f"weight_norm/{group}"] or channels
    found = [0.0]
    for name in own:
        at = np.flatnonzero(np.isfinite(rows[name]) & (rows[name] > 0))
        grew = rows[name][at[1:]] / rows[name][at[:-1]] - 1
        found += (grew / np.maximum(np.diff(rows.step[at]), 1)).tolist()
    return float(np.nanmax(found))


def rate_up(finding: Finding, run: Run) -> Settings:
    """As much higher as the update's ratio is below the usual one where weights begin.

    However far that is: weights that stood still are where they began, and there an update is proportional to its rate.
    """
    ratio = number(finding.evidence.get("update_ratio"))
    times = FIRST_RATIO / ratio if ratio and ratio > 0 else 10.0
    return _slower(run, finding, 1 / max(times, 1.0), f"the update was {ratio:.2g} of the weights" if ratio else "")


def calmer(finding: Finding, run: Run) -> Iterator[Setting]:
    """A run that went away: a lower rate, a limit near the norm it had before, a warm-up where there was none.

    Not where the steps before were of the usual size, or nothing rose before it broke: there the data or a formula
    broke it, and a lower rate only learns less.
    """
    limit = number(finding.evidence.get("before"))
    went = _went_away(finding, run)
    if went:
        yield from _slower(run, finding, CALMER, f"{CALMER:g} times lower")
    for path, value in _only(_limits(run)) if went or limit else []:
        if not value:
            yield Setting(path, rounded(limit) if limit and limit > 0 else 1.0, "there was no limit")
        elif limit and 0 < limit < value / 2:
            yield Setting(path, rounded(limit), "what the norm was before")
    if went:
        yield from _warmup(run)
    yield from full_range(finding, run)


def _went_away(finding: Finding, run: Run) -> bool:
    """Whether the steps were too long: by the update's ratios, else by a loss or a norm that rose before it broke.

    A first step may be long in health; one that was not tells as much as any other.
    """
    rows = run.train
    until = rows.step <= finding.first_step
    latest, sampled = [], [name for name in rows.channels if name.startswith("update_ratio/")]
    for name in sampled:
        at = np.flatnonzero((rows[name] > 0) & until)  # NaN where it was not sampled, 0 before a warm-up
        latest += [float(rows[name][at[-1]])] if len(at) and (at[-1] or rows[name][0] <= STIRRED) else []
    if latest:
        return max(latest) > STIRRED
    rose = any(_rose(rows[name][until]) for name in ("loss", "grad_norm") if name in rows.channels)
    return rose or not (sampled or finding.rule.startswith("non-finite"))


def _rose(values: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether the last of these values stands far above the others."""
    known = np.abs(values[np.isfinite(values)])
    return len(known) > 1 and bool(known[-3:].max() > ROSE * np.median(known))


def _warmup(run: Run) -> Iterator[Setting]:
    """A warm-up where there was none: as a share, or in steps of a run whose length is known."""
    total = run.header.total_steps
    for path, value in _only([item for item in leaves(run, WARMUPS) if not isinstance(item[1], bool)]):
        shares = path.lower().endswith(("ratio", "warmup")) or isinstance(value, float)
        if not value and (shares or total):
            yield Setting(path, WARMUP if shares else max(1, round(WARMUP * (total or 0))), "there was none")


def _limits(run: Run) -> list[tuple[str, Any]]:
    """Settings that limit the gradient's norm: by their name, or by a name and the value that the header says."""
    said = number(run.header.raw.get("max_grad_norm"))
    return leaves(run, LIMITS) or [item for item in leaves(run, MAYBE_LIMITS) if said and number(item[1]) == said]


def _only(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A setting that is told apart: one of its kind."""
    return found if len(found) == 1 and (found[0][1] is None or number(found[0][1]) is not None) else []


def full_range(_finding: Finding, run: Run) -> Iterator[Setting]:
    """bfloat16 where the config says float16: it reaches as far as float32 and needs no scaler."""
    for path, value in flat(run.header.config):
        if {"precision", "dtype"} & words(path) and isinstance(value, str) and value.lower() in HALVES:
            yield Setting(path, HALVES[value.lower()], "which overflows as late as float32, and needs no scaler")
    switches = dict(leaves(run, ("fp16", "bf16")))
    for path, value in switches.items():
        other = f"{path[:-4]}bf16"
        if path.endswith("fp16") and value is True and switches.get(other) is False:
            yield Setting(path, False, "which overflows beyond 65,504")
            yield Setting(other, True, "which overflows as late as float32, and needs no scaler")


def longer_ramp(finding: Finding, run: Run) -> Iterator[Setting]:
    """A component that comes in too fast: a longer ramp; one at all, where its curriculum has steps."""
    own = words(_component(finding))
    for path, value in flat(run.header.config):
        said = words(path)
        length = number(value)
        if own and own <= said and {"ramp", "anneal", "warmup"} & said and length and length > 0:
            longer = length * LONGER
            yield Setting(path, int(longer) if isinstance(value, int) else min(longer, 1.0), f"{LONGER:g} times longer")
    plan = run.header.curriculum_running or run.header.curriculum
    for path, value in flat(run.header.config):
        if plan and plan.ramp == value == "step" and "ramp" in words(path):
            yield Setting(path, "linear", "instead of a leap at each boundary")


def whole_length(finding: Finding, run: Run) -> Iterator[Setting]:
    """A schedule that is over before the run: as long as the run."""
    total = run.header.total_steps
    for path, value in leaves(run, LENGTHS):
        length = number(value)
        if total and length and length < total and abs(length - finding.first_step) <= max(2, 0.01 * total):
            yield Setting(path, total, "the steps that are planned")


def guard(_finding: Finding, run: Run) -> Iterator[Setting]:
    """What lets nothing bad through: the one setting that is switched off and is on by default."""
    config = dict(flat(run.header.config))
    off = [(path, said) for path, said in _defaults(run).items() if said and path in config and not config[path]]
    if len(off) == 1:
        yield Setting(*off[0], "its default; nothing else was switched off")


def miscounted(finding: Finding, run: Run) -> Settings:
    """A schedule that moves with each micro-batch, instead of each step: what says that batches are counted."""
    accumulation = number(mapping(run.header.raw.get("horizon")).get("accumulation")) or 1.0
    speed = number(finding.evidence.get("speed")) or 1.0
    batches = any(math.isclose(speed, ratio, rel_tol=0.05) for ratio in (accumulation, 1 / accumulation))
    if accumulation > 1 and batches:
        return restored(run, {"batch", "count", "micro"})
    return named(finding, run)


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


def norm_limit(finding: Finding, run: Run) -> Iterator[Setting]:
    """A limit that clips every step: what the norm is. Beside a usual limit a far larger norm is what is wrong."""
    norm = number(finding.evidence.get("norm"))
    for path, value in _only(_limits(run)):
        small = value and (value < USUAL_LIMIT or (norm or 0.0) <= FAR_ABOVE * value)
        if norm and small and norm > value:
            yield Setting(path, rounded(norm), "the norm's median")


def no_growth(_finding: Finding, run: Run) -> Iterator[Setting]:
    """Weights that grow without end: a decay below 0 does that, and without one they do not."""
    for path, value in _only([item for item in leaves(run, DECAYS) if (number(item[1]) or 0) < 0]):
        yield Setting(path, 0.0, f"{value:g} makes the weights larger at each step")


def positive(finding: Finding, run: Run) -> Iterator[Setting]:
    """A component that is maximised: its weight without the sign, where the config has it."""
    path = _weight_path(run, _component(finding)) or _component(finding)
    value = number(dict(flat(run.header.config)).get(path))
    if value and value < 0:
        yield Setting(path, -value, "without the sign")


def phased(_finding: Finding, run: Run) -> Iterator[Setting]:
    """Losses that all begin at once: the first task alone, the others ramped in one after the other."""
    total, place = run.header.total_steps, run.header.config.get("curriculum")
    tasks = [name for name, said in run.header.components.items() if said.role == "task"]
    stages = place.get("stages") if isinstance(place, Mapping) else None
    if not total or len(tasks) < 2 or not isinstance(stages, list):
        return
    weights = {name: value for name, value in _medians(run, "weight/", _finding).items() if name in tasks}
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


def loud_late(finding: Finding, run: Run) -> Settings:
    """A loss that was silent and is loud at once: its default form, else a ramp."""
    return tuple(of_component(finding, run)) or tuple(longer_ramp(finding, run))


def ending(_finding: Finding, run: Run) -> Settings:
    """Answers that are all too short: what says how they end."""
    return restored(run, {"length", "eos", "end"})


CURES: Mapping[str, Cure] = {
    "aggressive-ramp": longer_ramp,
    "all-at-once": phased,
    "amp-scale-collapse": full_range,
    "class-imbalance": balanced,
    "clipping-saturated": norm_limit,
    "component-dead": of_component,
    "component-ignored": too_quiet,
    "component-sign": positive,
    "curriculum-shock": longer_ramp,
    "gradient-dominance": too_loud,
    "gradient-explosion": calmer,
    "late-activation": loud_late,
    "length-collapse": ending,
    "loss-divergence": calmer,
    "loss-scale-imbalance": too_loud,
    "lr-desync": miscounted,
    "lr-too-high": rate_down,
    "lr-too-low": rate_up,
    "lr-zero": whole_length,
    "non-finite-gradient": calmer,
    "non-finite-input": guard,
    "non-finite-loss": calmer,
    "overflow-risk": full_range,
    "post-clip-norm": named,
    "precision-mismatch": named,
    "resume-discontinuity": named,
    "schedule-desync": miscounted,
    "stale-data": named,
    "warmup-ignored": named,
    "weight-growth": no_growth,
}

SYMPTOMS = frozenset(
    [
        "clipping-saturated",
        "gradient-explosion",
        "length-collapse",
        "loss-divergence",
        "non-finite-gradient",
        "non-finite-loss",
    ]
)
"""Rules whose cure treats what is seen, whatever it comes from."""

PACE = frozenset(["gradient-explosion", "loss-divergence", "lr-too-high", "lr-too-low"])
"""Rules whose cure is another rate, first of all."""
