"""Mistakes made in programs that do not list them: what the rules find where nobody tuned them.

    python -m benchmarks.diagnosis.crossed [--trainings N] [--draw SEED] [--kind NAME] [--program NAME]
                                           [--keep FOLDER] [--processes N] [--healthy]

Draws a generic mistake (`mistakes.py`), a tuning program that has no stored training of it, one of its healthy
variants, and a strength; trains each once and asks trainwatch. A mistake counts where it does harm, measured by the
stored healthy runs of the same variant, or where it is a fact that the log states. Prints the share that is alarmed
and named, by kind. `--healthy` draws healthy variants instead, and trains them from seeds that nobody has looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.diagnosis import corpus, score
from benchmarks.diagnosis.corpus import Case, Record
from benchmarks.diagnosis.kinds import KINDS
from benchmarks.diagnosis.loop import Parts
from benchmarks.diagnosis.mistakes import MISTAKES, WHEN_BROKEN
from benchmarks.small_cures import levels

HARM = 0.2  # of what the healthy run learned is not learned: more than seeds of one program differ by
LEARNS = 0.1  # of its first loss is what a run has to learn, so that one can say what was not learned
STRENGTHS: dict[str, tuple[dict[str, Any], ...]] = {
    "rate-too-high": ({"by": 10.0}, {"by": 30.0}, {"by": 100.0}, {"by": 300.0}),
    "rate-too-low": ({"by": 1e-3}, {"by": 1e-4}, {"by": 1e-5}),
    "growing-weights": ({"by": -0.003}, {"by": -0.01}, {"by": -0.03}),
    "dead-relus": ({"bias": -30.0}, {"bias": -1e3}),
    "exploding-recurrence": ({"by": 10.0}, {"by": 40.0}),
    "local-counter": ({"stride": 3}, {"stride": 8}),
    "absolute-anneal": ({"by": 10}, {"by": 40}),
    "counter-reset": ({"share": 0.3}, {"share": 0.7}),
    "bad-sample": ({"share": 0.2}, {"share": 0.7}),
    "tiny-clip": ({"by": 1e-2}, {"by": 1e-3}, {"by": 1e-4}),
    "component-scale": ({"by": 100.0}, {"by": 1e3}, {"by": 1e5}),
    "component-sign": ({"weight": -0.2}, {"weight": -1.0}),
    "component-untracked": ({"by": 1e-2}, {"by": 1e-1}),
    "stuck-loader": ({"batches": 1}, {"batches": 3}, {"batches": 8}),
    "same-seed-workers": ({"workers": 2}, {"workers": 8}),
    "unscaled-input": ({"by": 100.0, "shift": 0.0}, {"by": 300.0, "shift": 500.0}),
    "labels-break": ({"share": 0.3}, {"share": 0.6}),
    "too-little-data": ({"batches": 2}, {"batches": 5}),
    "one-bad-batch": ({"by": 1e2}, {"by": 1e4}),
    "slow-loader": ({"seconds": 0.02}, {"seconds": 0.08}),
    "slowing-down": ({"share": 0.2}, {"share": 0.6}),
    "leaking-memory": ({"floats": 60_000}, {"floats": 600_000}),
    "resume-old-weights": ({"old": 5}, {"old": 20}),
    "crash-type-error": ({"share": 0.2}, {"share": 0.8}),
    "killed": ({"share": 0.2}, {"share": 0.8}),
}
"""Arguments that are tried beside a mistake's own."""
RATE, DATA, CLOCK = "lr/", "data/fingerprint", "clock/"
SEEN_BY = {
    **dict.fromkeys(
        ("rate-zero", "warmup-ignored", "scheduler-twice", "skips-counted", "resume-restarts-schedule"), RATE
    ),
    **dict.fromkeys(("scheduler-per-micro-batch", "scheduler-per-batch", "scheduler-per-epoch"), RATE),
    **dict.fromkeys(("stuck-loader", "same-seed-workers", "resume-repeats-data"), DATA),
    **dict.fromkeys(("local-counter", "stuck-counter"), CLOCK),
    **dict.fromkeys(("component-sign", "component-untracked", "divided-twice"), "weight/"),
    "absolute-anneal": "schedule/",
    "resume-weights-only": "state_steps/",
}
"""Channels without which a log does not state such a mistake, though it has an exact beginning."""
NAMED_BY = {
    **dict.fromkeys(("bad-sample", "poisoned-weight", "nan-filtered-log"), "bad/"),
    **dict.fromkeys(("unscaled-input", "constant-input"), "data/input_"),
    **dict.fromkeys(("stuck-loader", "too-little-data"), DATA),
}
"""Channels without which a log shows what such a mistake does, and not the mistake: to see that is enough."""
FRESH = 1000  # where seeds begin that no stored training has
NAMELESS = ("component-scale", "component-sign", "component-detached")  # want the name of a component


@dataclass(frozen=True)
class Draw:
    """One training that is to be done."""

    kind: str
    program: str
    variant: str
    strength: tuple[tuple[str, Any], ...]
    seed: int

    def __str__(self) -> str:
        return f"{self.program}-{self.variant}-{self.kind}" + "".join(
            f"-{name}{value:g}" for name, value in self.strength
        )


@dataclass(frozen=True)
class Crossed:
    """What was said of it, and the share of what the healthy run learned that it did not learn."""

    draw: Draw
    verdict: score.Verdict
    harm: float
    channels: tuple[str, ...]  # of the log

    @property
    def counts(self) -> bool:
        """Whether somebody would have to be told: it does harm, or the log states it, whatever it does."""
        stated = KINDS[self.draw.kind].exact and self._has(SEEN_BY)
        return stated or not self.harm < HARM

    @property
    def root_first(self) -> bool:
        """Whether the root cause is the mistake, or what it does where the log cannot tell the mistake."""
        kind = KINDS[self.draw.kind]
        return self.verdict.root in (kind.root if self._has(NAMED_BY) else (*kind.root, *kind.also))

    def _has(self, wanted: dict[str, str]) -> bool:
        return any(name.startswith(wanted.get(self.draw.kind, "")) for name in self.channels)


def drawn(trainings: int, seed: int, kinds: list[str], programs: list[str]) -> list[Draw]:
    """So many trainings, as many of each kind as there are; the same for the same seed."""
    chance, able = random.Random(seed), {}
    for kind in kinds or MISTAKES:
        named = [name for name, program in corpus.found().items() if not program.HELD_OUT and kind not in program.SICK]
        chosen = [name for name in named if name in programs] if programs else named
        able[kind] = chance.sample(chosen, len(chosen))
    draws: list[Draw] = []
    while len(draws) < trainings and any(able.values()):
        for kind, names in able.items():
            if names:
                name, strength = names.pop(), chance.choice(({}, *STRENGTHS.get(kind, ())))
                draws.append(Draw(kind, name, _variant(name, chance), tuple(strength.items()), seed=0))
    return draws[:trainings]


def _variant(name: str, chance: random.Random) -> str:
    """The plain one, or as often any of them."""
    variants = corpus.found()[name].HEALTHY
    return str(variants[0] if chance.random() < 0.5 else chance.choice(variants))


def crossed(draw: Draw, keep: Path | None = None) -> Crossed | None:
    """Train and judge one; None where the program has no place for the mistake, or it never acted."""
    import torch

    torch.set_num_threads(1)
    made: list[int] = []
    case = Case(draw.program, draw.kind, draw.seed, healthy=False)
    twins = getattr(corpus.found()[draw.program], "TWINS", {})
    ours = mock.patch.dict(MISTAKES, {draw.kind: partial(_made, draw, made)})
    with ours, mock.patch.dict(twins, {draw.kind: draw.variant}), contextlib.redirect_stdout(io.StringIO()):
        try:
            onset, files = corpus.once(case)
        except Exception:  # whatever a program does with parts that are not its own
            return None
    if not made or (made[0] == WHEN_BROKEN and not onset) or not files:
        return None
    suffixed = _suffixed(case, files)
    record = Record(case, held_out=False, onset=onset, files=suffixed, kind=KINDS[draw.kind])
    if keep:
        for suffix, content in suffixed.items():
            (keep / f"{draw}{suffix}.jsonl").write_bytes(content)
    channels = tuple(record.run().train.channels)
    return Crossed(draw, score.judge(record, live=False), harm(record, draw.variant), channels)


def _made(draw: Draw, made: list[int], parts: Parts) -> int:
    """The mistake with its strength, which tells that it was made."""
    strength = dict(draw.strength)
    if draw.kind in NAMELESS:
        names = sorted(parts.weights(0)) if parts.weights else []
        strength["name"] = random.Random(str(draw)).choice(names)
    onset = plain[draw.kind](parts, **strength)
    made.append(onset)
    return onset


plain = dict(MISTAKES)


@lru_cache(maxsize=128)
def learned(program: str, variant: str) -> tuple[float, float]:
    """The loss of a variant's stored runs before anything was learned, and the worst one's at the end."""
    well = [one for one in corpus.records(program) if one.case.healthy and one.case.name == variant]
    starts, ends = zip(*(levels(one.run()) for one in well), strict=True)
    return float(np.median(starts)), float(np.max(ends))


def harm(record: Record, variant: str) -> float:
    """The share of what healthy runs learned that this one did not; infinite if it broke, 0 where they learn little."""
    start, best = learned(record.case.program, variant)
    _, end = levels(record.run())
    if start - best < LEARNS * abs(start):
        return 0.0 if np.isfinite(end) else float("inf")
    return (end - best) / (start - best)


def told(draws: list[Draw], keep: Path | None, processes: int) -> Iterator[Crossed]:
    """All that have a place, as they come."""
    with ProcessPoolExecutor(processes) as pool:
        yield from filter(None, pool.map(partial(crossed, keep=keep), draws))


def sound(trainings: int, seed: int, programs: list[str]) -> list[Case]:
    """So many healthy trainings of tuning programs, each from a seed of its own; the same for the same draw."""
    chance = random.Random(seed)
    named = [(name, program) for name, program in corpus.found().items() if not program.HELD_OUT]
    able = [Case(name, variant, 0, True) for name, program in named for variant in program.HEALTHY]
    able = [case for case in able if not programs or case.program in programs]
    return [replace(case, seed=FRESH + chance.randrange(FRESH)) for case in chance.sample(able, len(able))[:trainings]]


def heard(case: Case) -> score.Verdict:
    """Train and judge a healthy one, at its end and while it ran."""
    import torch

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        _, files = corpus.once(case)
    return score.judge(Record(case, held_out=False, onset=0, files=_suffixed(case, files)))


def _suffixed(case: Case, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name[len(case.file) :].removesuffix(".jsonl"): content for name, content in files.items()}


def show_sound(told: Iterable[score.Verdict]) -> None:
    """How many of them were alarmed, and by what; each as it comes."""
    verdicts = []
    for one in told:
        verdicts.append(one)
        if one.alarmed or one.live:
            print(f"{one.case.program} {one.case.file}: {one.said if one.alarmed else f'live, {one.live}'}", flush=True)
    ended, ran = sum(one.alarmed for one in verdicts), sum(bool(one.live) for one in verdicts)
    print(f"{len(verdicts)} healthy trainings from fresh seeds: {ended} alarmed at their end, {ran} while they ran")


def show(found: list[Crossed]) -> None:
    """The table by kind, and what was missed."""
    table = Table(title="mistakes in programs that do not list them")
    for column in ("kind", "trained", "count", "alarmed", "named", "root first"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, group in [*score.by([one.verdict for one in found], lambda one: one.kind).items(), ("all", None)]:
        able = [one for one in found if group is None or one.draw.kind == kind]
        fair = [one for one in able if one.counts]
        told = [[one.verdict.alarmed, one.verdict.named, one.root_first] for one in fair]
        shares = [f"{share:.0%}" for share in np.mean(told, axis=0)] if fair else [""] * 3
        table.add_row(kind, str(len(able)), str(len(fair)), *shares)
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table)
    for one in found:
        if one.counts and not one.root_first:
            print(f"{one.draw} (harm {one.harm:.2f}): {one.verdict.said}")


def main() -> None:
    """Draw, train, judge, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.crossed", description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=200, help="how many at most; 3 s each")
    parser.add_argument("--draw", type=int, default=0, metavar="SEED")
    parser.add_argument("--kind", action="append", default=[], help="only this kind of mistake; may be repeated")
    parser.add_argument("--program", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="write the run files there")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--healthy", action="store_true", help="healthy variants, from fresh seeds")
    asked = parser.parse_args()
    for what, names, known in (("kind", asked.kind, MISTAKES), ("program", asked.program, corpus.found())):
        if unknown := {*names} - {*known}:
            parser.error(f"{what} '{min(unknown)}' does not exist; choose from {', '.join(known)}")
    if asked.healthy:
        with ProcessPoolExecutor(asked.processes) as pool:
            show_sound(pool.map(heard, sound(asked.trainings, asked.draw, asked.program)))
        return
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    draws = drawn(asked.trainings, asked.draw, asked.kind, asked.program)
    found = []
    for one in told(draws, asked.keep, asked.processes):
        found.append(one)
        print(f"{one.draw}: harm {one.harm:.2f}, {one.verdict.root or 'nothing'}", flush=True)
    show(found)


if __name__ == "__main__":
    main()
