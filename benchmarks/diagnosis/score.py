"""What trainwatch says of each training of the corpus, set against what was really wrong with it.

An *alarm* is a finding of warning or worse. Of a sick run: was there an alarm at all, one by a rule that may rightly
speak, was the root cause named first, was it among the first three; how far from the first faulty step it was dated,
and how many steps after it a live face would have alarmed. Of a healthy run every alarm is a false one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import trainwatch
from benchmarks.diagnosis import corpus
from benchmarks.diagnosis.corpus import LONG_AGO, Case, Record, lay
from benchmarks.diagnosis.kinds import KINDS, Kind
from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import Engine
from trainwatch.readers import open_run
from trainwatch.schema import Finding

PIECE = 10  # rows that a live face gets at once
FIRST = 3  # findings that somebody reads before doing something
RESAMPLED = 1000  # draws of the bootstrap: the ends of an interval then move by about a percent


@dataclass(frozen=True)
class Verdict:
    """What was said of one run."""

    case: Case
    kind: str  # empty: healthy
    held_out: bool
    onset: int
    alarms: tuple[str, ...]  # rules of all alarms, in the diagnosis' order
    root: str
    dated: float | None  # first step of the root rules' finding minus the onset, in rows of the log
    delay: float | None  # steps from the onset to the first live alarm; None: no alarm, or not asked for
    live: str  # rule of that alarm
    said: str  # the root cause, in its own words
    failed: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.kind

    @property
    def about(self) -> Kind:
        return KINDS[self.kind]

    @property
    def alarmed(self) -> bool:
        return bool(self.alarms)

    @property
    def named(self) -> bool:
        return bool(set(self.alarms) & {*self.about.root, *self.about.also})

    @property
    def root_first(self) -> bool:
        return self.root in self.about.root

    @property
    def among_three(self) -> bool:
        return bool(set(self.alarms[:FIRST]) & set(self.about.root))

    @property
    def wrong(self) -> tuple[str, ...]:
        """Alarms by rules that have nothing to say here."""
        right = set() if self.healthy else {*self.about.root, *self.about.also}
        return tuple(rule for rule in dict.fromkeys(self.alarms) if rule not in right)


def judge(record: Record, live: bool = True) -> Verdict:
    """Ask trainwatch about one training."""
    run = record.run()
    told = trainwatch.diagnose(run)
    alarms = [finding for finding in told.findings if finding.severity != "info"]
    delay, first = follow(record) if live and (alarms or not record.kind) else (None, "")
    return Verdict(
        case=record.case,
        kind=record.kind.name if record.kind else "",
        held_out=record.held_out,
        onset=record.onset,
        alarms=tuple(finding.rule for finding in alarms),
        root=told.root_cause.rule if told.root_cause else "",
        dated=dated(record, run, alarms),
        delay=None if delay is None else delay - record.onset,
        live=first,
        said=sentence(told),
        failed=tuple(f"{rule}: {why}" for rule, why in told.failed.items()),
    )


def dated(record: Record, run: trainwatch.Run, alarms: Sequence[Finding]) -> float | None:
    """How many rows of the log the root rules' first finding lies from the onset; negative: it is dated too early."""
    own = [finding.first_step for finding in alarms if record.kind and finding.rule in record.kind.root]
    steps = run.train.step[run.train.live]
    if not own or not len(steps):
        return None
    backwards = bool((np.diff(steps) < 0).any())  # the log's own counter was set back: rows are then told by `applied`
    place = run.train["applied"][run.train.live] if backwards else steps
    onset = int(np.argmax(place >= record.onset)) if (place >= record.onset).any() else len(place)
    rows = np.flatnonzero(steps == own[0])
    rows = rows if len(rows) else np.array([int((steps < own[0]).sum())])
    return float(rows[np.abs(rows - onset).argmin()] - onset)


def sentence(told: Diagnosis) -> str:
    """What the diagnosis says first."""
    root = told.root_cause
    return f"{root.rule} ({root.subject}, step {root.first_step}): {root.message}" if root else "nothing"


def follow(record: Record) -> tuple[int | None, str]:
    """Step and rule of the first alarm that a live face raises, which gets ten rows at a time; None if it raises none.

    After the last row the file is left alone for long, so that what is seen only then (a kill) counts at its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = lay(dict.fromkeys(record.files, b""), Path(folder))
        source, engine = None, Engine()
        for piece in pieces(record.files):
            grow(path, piece)
            source = source or open_run(path)
            source.poll()
            if not source.runs:
                continue
            run = source.runs[-1]
            engine.feed(run)
            first = next((one for one in engine.findings(run) if one.severity != "info"), None)
            if first:
                return run.last_step or 0, first.rule
    return None, ""


def grow(path: Path, piece: dict[str, bytes]) -> None:
    """Append to the files of all ranks; an empty piece lets time go by instead."""
    for suffix, lines in piece.items():
        with path.with_name(f"run{suffix}.jsonl").open("ab") as file:
            file.write(lines)
    if not piece:
        for each in path.parent.glob("*.jsonl"):
            os.utime(each, (LONG_AGO, LONG_AGO))


def pieces(files: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """The files in pieces of ten rows of training; all ranks keep step. The last piece is empty: time goes by."""
    lines = {suffix: content.splitlines(keepends=True) for suffix, content in files.items()}
    at = dict.fromkeys(lines, 0)
    while any(at[suffix] < len(rows) for suffix, rows in lines.items()):
        piece = {}
        for suffix, rows in lines.items():
            start, steps = at[suffix], 0
            while at[suffix] < len(rows) and steps < PIECE:
                steps += b'"kind":"step"' in rows[at[suffix]][:20]
                at[suffix] += 1
            piece[suffix] = b"".join(rows[start : at[suffix]])
        yield piece
    yield {}


def judged(records: Iterable[Record], live: bool = True, processes: int = 1) -> Iterator[Verdict]:
    """The verdicts, as they come."""
    if processes <= 1:
        yield from (judge(record, live) for record in records)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(judge, records, [live] * 10**6, chunksize=4)


Measure = Callable[[Verdict], float]


def share(verdicts: Sequence[Verdict], measure: Measure) -> float:
    """The mean of a measure; NaN of nothing."""
    return float(np.mean([measure(verdict) for verdict in verdicts])) if verdicts else float("nan")


def interval(verdicts: Sequence[Verdict], measure: Measure, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share: programs are drawn anew, and runs within each, since runs of a program are alike."""
    groups = [
        np.array([measure(one) for one in group]) for group in by(verdicts, lambda one: one.case.program).values()
    ]
    if not groups:
        return float("nan"), float("nan")
    random, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLED):
        drawn = [groups[index] for index in random.integers(len(groups), size=len(groups))]
        values = np.concatenate([group[random.integers(len(group), size=len(group))] for group in drawn])
        found.append(values.mean())
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def by(verdicts: Iterable[Verdict], key: Callable[[Verdict], str]) -> dict[str, list[Verdict]]:
    """Verdicts in groups, in the order of their first ones."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict), []).append(verdict)
    return groups


MEASURES: dict[str, Measure] = {
    "alarmed": lambda one: one.alarmed,
    "named": lambda one: one.named,
    "root first": lambda one: one.root_first,
    "among three": lambda one: one.among_three,
}
"""What is asked of a sick run."""


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def wanted(split: str, program: Sequence[str], kind: Sequence[str]) -> Iterator[Record]:
    """The stored trainings that are asked for."""
    for name in program or corpus.names():
        for record in corpus.records(name):
            here = split == "all" or record.held_out == (split == "held-out")
            if here and (not kind or (record.kind is not None and record.kind.name in kind)):
                yield record
