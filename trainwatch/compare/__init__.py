"""Run against run: what differs in settings, in values and in findings, since which step, and which setting did it.

Each question has its file: ``settings`` (what was set, and who repeats whom), ``partings`` (where curves part, beyond
the noise), ``suspects`` (which setting did it), ``values`` (what came out), ``speed``, ``verdict`` (how sure all that
is). ``written`` holds configs, scripts and notebooks against each other, before anything has run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainwatch.axis import ALIGNED
from trainwatch.compare.partings import Apart, Partings
from trainwatch.compare.settings import ABSENT, Difference, chosen, differences, facts, is_seed, plan, repeats
from trainwatch.compare.speed import Speed, speed
from trainwatch.compare.suspects import Suspect, suspects
from trainwatch.compare.values import Values, merit, ranking, values
from trainwatch.compare.verdict import Verdict, first_of, verdict
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import flat
from trainwatch.run import Run

__all__ = [
    "ABSENT",
    "ALIGNED",
    "Apart",
    "Comparison",
    "Difference",
    "Found",
    "Speed",
    "Suspect",
    "Values",
    "Verdict",
    "compare",
    "differences",
    "first_of",
    "flat",
    "is_seed",
    "values",
]

Told = tuple[Run, Diagnosis]


@dataclass(frozen=True)
class Found:
    """A finding's rule and subject, and the step from which each run has it (None: it has not).

    ``unjudged`` are the runs in which nobody could tell.
    """

    rule: str
    subject: str
    first_step: tuple[int | None, ...]
    unjudged: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that sets the runs apart. Plain data, for every face; the first run is what the others are held to.

    ``align`` is what curves are laid along, and ``notes`` say of whom that cannot be told. ``groups`` are the runs of
    one setting, ``seeds`` those with several. ``merit`` is the channel that ``ranking`` goes by, best first.
    """

    runs: tuple[dict[str, Any], ...]
    align: str
    verdict: Verdict
    config: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    values: tuple[Values, ...]
    findings: tuple[Found, ...]
    partings: tuple[Apart, ...]
    suspects: tuple[Suspect, ...]
    groups: tuple[tuple[int, ...], ...]
    speed: tuple[Speed, ...]
    merit: str | None = None
    ranking: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[tuple[int, ...], ...]:
        """Groups of several runs that differ in nothing but the seed."""
        return tuple(group for group in self.groups if len(group) > 1)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return asdict(self) | {"seeds": self.seeds}


def compare(judged: Sequence[Told], align: str = "step") -> Comparison:
    """Hold runs against the first of them, along ``align`` (one of ``ALIGNED``); by step who does not tell it."""
    runs = [run for run, _ in judged]
    config = differences([run.header.config for run in runs])
    one_plan = len({plan(run).get("name") for run in runs}) == 1
    told = differences([facts(run, stages=one_plan) for run in runs])
    settings = [*chosen(told), *config]
    held = Partings(runs, repeats(runs, settings), align)
    groups = tuple(held.groups)
    partings = tuple(held.all())
    found = tuple(
        suspect
        for index in range(1, len(runs))
        for suspect in suspects(index, settings, [item for item in partings if item.run == index])
    )
    ends = tuple(values(runs, tuple(group for group in groups if len(group) > 1)))
    same_weights = not any(item.channel.startswith("weight/") and item.step is not None for item in partings)
    by = merit(ends, same_weights=same_weights)
    return Comparison(
        runs=tuple(_identity(run, said) for run, said in judged),
        align=align,
        verdict=verdict(partings, found, groups, len(runs) - 1),
        config=config,
        facts=told,
        values=ends,
        findings=tuple(_found([said for _, said in judged])),
        partings=partings,
        suspects=found,
        groups=groups,
        speed=tuple(map(speed, runs)),
        merit=by.channel if by else None,
        ranking=tuple(ranking(by)) if by else (),
        notes=tuple(_notes(held, by, same_weights=same_weights)),
    )


def _notes(held: Partings, by: Values | None, *, same_weights: bool) -> Iterator[str]:
    """What was done otherwise than asked, and what may mislead."""
    if held.without:
        names = ", ".join(held.runs[index].name for index in held.without[:5])
        more = f" and {len(held.without) - 5} more" if len(held.without) > 5 else ""
        all_of = "all are" if 0 in held.without or len(held.without) == len(held.runs) else "those are"
        yield f"{held.against} is not in the log of {names}{more}: {all_of} aligned by step"
    if by is not None and not same_weights and by.channel.endswith("loss"):
        yield f"the runs weigh their losses differently, so {by.channel} ranks what is not the same quantity"


def _identity(run: Run, said: Diagnosis) -> dict[str, Any]:
    """What a run is; ``settings`` counts those in its config, for of none nothing can be said."""
    root = said.root_cause.rule if said.root_cause else None
    reach = {"first_step": said.first_step, "last_step": said.last_step}
    found = {"worst": said.worst, "root": root, "failed": said.failed}
    settings = sum(1 for path, _ in flat(run.header.config) if path)
    place = {"source": said.source, "format": said.format}
    return {"run": said.run, **place, "status": said.status, **reach, **found, "settings": settings}


def _found(diagnoses: Sequence[Diagnosis]) -> Iterator[Found]:
    keys = dict.fromkeys((finding.rule, finding.subject) for said in diagnoses for finding in said.findings)
    for rule, subject in keys:
        steps = [
            min(
                (item.first_step for item in said.findings if (item.rule, item.subject) == (rule, subject)),
                default=None,
            )
            for said in diagnoses
        ]
        blind = [rule in said.withheld or rule in said.failed for said in diagnoses]
        unjudged = tuple(index for index, step in enumerate(steps) if step is None and blind[index])
        yield Found(rule, subject, tuple(steps), unjudged)
