"""Run against run: what differs in settings, in values and in findings, since which step, and which setting did it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainwatch.diagnosis import Diagnosis
from trainwatch.header import flat
from trainwatch.parting import Floats, Pair, Steps, part
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES
from trainwatch.table import Table

Told = tuple[Run, Diagnosis]
Pick = Callable[[Run], tuple[Steps, Floats]]
End = tuple[float | str | None, float | None, int | None]

ABSENT = "(absent)"  # a setting that a run does not have; differs from one that is null
FACTS = ("total_steps", "horizon", "components", "schedules", "max_grad_norm", "dtypes", "parameters", "world_size")
PLACE = ("device", "git", "packages", "python")  # where it ran: told apart from what was set
LABELS = frozenset(["name", "run", "logs", "log", "output", "out", "dir", "path", "folder", "resume", "tag", "notes"])
KNOBS = ("weight/", "lr/", "schedule/", "stage")  # what a plan decides, so that any difference is a difference
FALLING = re.compile(r"loss|error|perplexity|ppl|mae|mse|rmse|ppm|wer|cer|nll|distance|seconds|time")
KNOB_WORDS = {
    "weight": frozenset(["curriculum", "weight", "weights", "stage", "stages", "loss", "losses", "ramp"]),
    "stage": frozenset(["curriculum", "stage", "stages"]),
    "lr": frozenset(["lr", "learning", "rate", "warmup", "scheduler", "schedule", "optimizer", "optim"]),
    "schedule": frozenset(["schedule", "schedules", "scheduler", "anneal"]),
}


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same everywhere; ``values`` has one entry a run, ``ABSENT`` where it is not set."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Values:
    """A channel's last and best value in each run, None where it has none; a name where it is not finite."""

    channel: str
    final: tuple[float | str | None, ...]
    best: tuple[float | None, ...]
    best_step: tuple[int | None, ...]
    spread: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Found:
    """A finding's rule and subject, and the step from which each run has it (None: it has not)."""

    rule: str
    subject: str
    first_step: tuple[int | None, ...]


@dataclass(frozen=True)
class Apart:
    """How one channel of the run number ``run`` (from 0) relates to the first run's; see ``trainwatch.parting``."""

    run: int
    channel: str
    exact: bool
    pair: Pair

    @property
    def step(self) -> int | None:
        """The step from which they part, None if they do not."""
        return self.pair.parting.step if self.pair.parting else None


@dataclass(frozen=True)
class Suspect:
    """A setting that may have parted run number ``run`` from the first, and why it is suspected."""

    run: int
    path: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """Everything that sets the runs apart. Plain data, for every face; the first run is what the others are held to."""

    runs: tuple[dict[str, Any], ...]
    config: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    values: tuple[Values, ...]
    findings: tuple[Found, ...]
    partings: tuple[Apart, ...]
    suspects: tuple[Suspect, ...]
    seeds: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return asdict(self)


def compare(judged: Sequence[Told]) -> Comparison:
    """Hold runs against the first of them."""
    runs = [run for run, _ in judged]
    config = differences([run.header.config for run in runs])
    one_plan = len({_plan(run).get("name") for run in runs}) == 1
    facts = differences([_facts(run, stages=one_plan) for run in runs])
    seeds = _seed_groups([*_set(facts), *config], len(runs))
    partings = tuple(item for index in range(1, len(runs)) for item in _partings(runs[0], runs[index], index))
    found = [
        suspect
        for index in range(1, len(runs))
        for suspect in _suspects(index, [*_set(facts), *config], [item for item in partings if item.run == index])
    ]
    return Comparison(
        runs=tuple(_identity(run, said) for run, said in judged),
        config=config,
        facts=facts,
        values=tuple(values(runs, seeds)),
        findings=tuple(_found([said for _, said in judged])),
        partings=partings,
        suspects=tuple(found),
        seeds=seeds,
    )


def _identity(run: Run, said: Diagnosis) -> dict[str, Any]:
    """What a run is; ``settings`` counts those in its config, for of none nothing can be said."""
    root = said.root_cause.rule if said.root_cause else None
    reach = {"first_step": said.first_step, "last_step": said.last_step}
    found = {"worst": said.worst, "root": root, "failed": said.failed}
    settings = sum(1 for path, _ in flat(run.header.config) if path)
    return {"run": said.run, "source": said.source, "status": said.status, **reach, **found, "settings": settings}


def differences(settings: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """The dotted paths under which nested mappings do not all hold the same."""
    flattened = [dict(flat(item)) for item in settings]
    paths = dict.fromkeys(path for item in flattened for path in item)
    found = (Difference(path, tuple(item.get(path, ABSENT) for item in flattened)) for path in paths)
    return tuple(item for item in found if any(value != item.values[0] for value in item.values[1:]))


def _facts(run: Run, *, stages: bool) -> dict[str, Any]:
    """What the header says besides the config; the stages only where all runs have a plan of one name.

    Two curricula of different names differ in nearly every number: their names are the difference.
    """
    raw = run.header.raw
    facts = {name: raw[name] for name in (*FACTS, *PLACE) if name in raw}
    plan = _plan(run)
    if plan:
        listed = plan.get("stages") if stages and isinstance(plan.get("stages"), list) else []
        numbered = {str(index): stage for index, stage in enumerate(listed or [], 1)}
        facts["curriculum_running"] = {"name": plan.get("name")} | ({"stages": numbered} if numbered else {})
    return facts


def _plan(run: Run) -> Mapping[str, Any]:
    """The curriculum that ran, where that is known; else the declared one."""
    raw = run.header.raw
    plan = raw.get("curriculum_running") or raw.get("curriculum")
    return plan if isinstance(plan, Mapping) else {}


def _words(path: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Za-z]+", path)}


def _set(facts: Iterable[Difference]) -> list[Difference]:
    """Those that somebody set, not those of the place where the run ran."""
    return [item for item in facts if item.path.partition(".")[0] not in PLACE]


def is_seed(path: str) -> bool:
    """Whether a setting is a seed."""
    return "seed" in _words(path)


def _about_seed(path: str) -> bool:
    label = not path.startswith("curriculum") and bool(_words(path.rpartition(".")[2]) & LABELS)
    return label or is_seed(path)


def _seed_groups(config: Sequence[Difference], count: int) -> tuple[tuple[int, ...], ...]:
    """Runs whose config is the same but for the seed and for names of things, where there are several."""
    groups: dict[str, list[int]] = {}
    for run in range(count):
        key = repr([(item.path, item.values[run]) for item in config if not _about_seed(item.path)])
        groups.setdefault(key, []).append(run)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _partings(first: Run, other: Run, index: int) -> Iterator[Apart]:
    """The loss, every component's contribution, and what was planned, each on the steps that both runs have."""
    yield from _parting("loss", False, index, (first, other), lambda run: _column(run.train, "loss"))
    for name in first.components():
        if f"loss/{name}" in first.train and f"loss/{name}" in other.train:
            yield from _parting(f"contribution/{name}", False, index, (first, other), _contribution(name))
    for channel in first.train.channels:
        if channel.startswith(KNOBS) and channel in other.train:
            yield from _parting(channel, True, index, (first, other), _plain(channel))


def _plain(channel: str) -> Pick:
    return lambda run: _column(run.train, channel)


def _contribution(name: str) -> Pick:
    """Weight times raw value: what the component adds to the loss. A weight that is not logged counts as 1."""

    def pick(run: Run) -> tuple[Steps, Floats]:
        rows = run.train
        there = rows.live & (np.isfinite(rows[f"loss/{name}"]) | (rows.codes(f"loss/{name}") > 0))
        weight = rows[f"weight/{name}"] if f"weight/{name}" in rows else np.ones(rows.size)
        weight = np.where(np.isnan(weight), 1.0, weight)
        added = np.where(weight == 0.0, 0.0, rows[f"loss/{name}"] * weight)  # switched off, so its NaN is out as well
        return rows.step[there], added[there]

    return pick


def _column(rows: Table, name: str) -> tuple[Steps, Floats]:
    """Steps and values of the rows in which ``name`` was written; NaN where it is not finite."""
    there = rows.live & (np.isfinite(rows[name]) | (rows.codes(name) > 0))
    return rows.step[there], rows[name][there]


def _parting(channel: str, exact: bool, index: int, runs: tuple[Run, Run], pick: Pick) -> Iterator[Apart]:
    (step_a, a), (step_b, b) = pick(runs[0]), pick(runs[1])
    common, at_a, at_b = np.intersect1d(step_a, step_b, return_indices=True)
    if len(common):
        yield Apart(index, channel, exact, part(common, a[at_a], b[at_b], exact=exact))


def _suspects(index: int, settings: Iterable[Difference], partings: list[Apart]) -> Iterator[Suspect]:
    """Settings that speak of what parted first; the only setting that differs, if there is one. None parted: none."""
    differing = [item for item in settings if item.values[index] != item.values[0]]
    chosen = [item for item in differing if not _about_seed(item.path)]
    ways = sorted((item for item in partings if item.step is not None), key=lambda item: (item.step, not item.exact))
    if not ways:
        return
    if len(chosen) == 1:
        yield Suspect(index, chosen[0].path, "the only setting that differs")
        return
    leading = [item for item in ways if item.channel != "loss" and item.step == ways[0].step] or ways[:1]
    for item in chosen:
        way = next((way for way in leading if _speaks_of(item.path, way.channel)), None)
        if way:
            yield Suspect(index, item.path, f"{way.channel} is the first to part, at step {way.step:,}")


def _speaks_of(path: str, channel: str) -> bool:
    family, _, name = channel.partition("/")
    named = {name.lower()} if family in ("contribution", "weight") else set()
    return bool(_words(path) & (KNOB_WORDS.get(family, frozenset()) | named))


def values(runs: Sequence[Run], seeds: tuple[tuple[int, ...], ...] = ()) -> Iterator[Values]:
    """Final and best values: the loss, its components, and every figure of every evaluated split."""
    columns = [dict(_columns(run)) for run in runs]
    for channel in dict.fromkeys(name for item in columns for name in item):
        ends: list[End] = [item.get(channel, (None, None, None)) for item in columns]
        final = tuple(end[0] for end in ends)
        spread = {"+".join(map(str, group)): found for group in seeds if (found := _spread(final, group))}
        yield Values(channel, final, tuple(end[1] for end in ends), tuple(end[2] for end in ends), spread)


def _columns(run: Run) -> Iterator[tuple[str, End]]:
    for name in run.train.channels:
        if name == "loss" or name.startswith("loss/"):
            yield name, _end(run.train, name, run.train.live)
    splits = run.eval.text.get("split", {})
    for split in dict.fromkeys(str(value) for value in splits.values()):
        mine = run.eval.live & np.array([str(splits.get(row)) == split for row in range(run.eval.size)])
        for name in run.eval.channels:
            if name == "loss" or name.startswith(("loss/", "metric/")):
                yield f"{split} {name}", _end(run.eval, name, mine)


def _end(rows: Table, name: str, which: NDArray[np.bool_]) -> End:
    """Last value, best value and its step: the smallest of what should fall, else the largest."""
    values, codes = rows[name], rows.codes(name)
    written = np.flatnonzero(which & (np.isfinite(values) | (codes > 0)))
    finite = written[np.isfinite(values[written])]
    if not len(written):
        return None, None, None
    final = NONFINITE_NAMES.get(int(codes[written[-1]]), float(values[written[-1]]))
    if not len(finite):
        return final, None, None
    best = finite[(np.argmin if FALLING.search(name) else np.argmax)(values[finite])]
    return final, float(values[best]), int(rows.step[best])


def _spread(final: Sequence[float | str | None], group: tuple[int, ...]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds."""
    numbers = [value for value in (final[run] for run in group) if isinstance(value, float)]
    return (float(np.mean(numbers)), float(np.std(numbers, ddof=1))) if len(numbers) == len(group) else None


def _found(diagnoses: Sequence[Diagnosis]) -> Iterator[Found]:
    keys = dict.fromkeys((finding.rule, finding.subject) for said in diagnoses for finding in said.findings)
    for rule, subject in keys:
        steps = [
            [finding.first_step for finding in said.findings if (finding.rule, finding.subject) == (rule, subject)]
            for said in diagnoses
        ]
        yield Found(rule, subject, tuple(min(item, default=None) for item in steps))
