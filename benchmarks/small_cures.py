"""Whether what trainwatch prescribes cures the small programs of the corpus: `python benchmarks/cure.py --corpus`.

Each stored sick run that gets a prescription in the settings of its own config is trained again with them, from the
start. Beside it stand the stored sick run and its stored healthy twin of the same seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

import trainwatch
from benchmarks.diagnosis import corpus
from benchmarks.diagnosis.patched import CannotApplyError, config, patched
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import Header
from trainwatch.trial import healthy

SEEDS = 2  # of each kind in each program, at most: kinds say more than seeds
NEAR = 0.1  # of what the twin learns may be missing
WORSE = 0.05  # of what the twin learns, above the sick run
LAST = 3  # evaluations whose median is a run's level
FIGURES = ("metric/return", "metric/episode_length")  # of games, of which more is better
RESAMPLED = 2000  # draws of the interval


@dataclass(frozen=True)
class Cured:
    """One case: what was prescribed, and the levels at the end, sick, cured and of the twin; ``start`` is before."""

    case: corpus.Case
    said: Diagnosis
    after: Diagnosis | None = None
    levels: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    start: float = np.nan
    left_out: str = ""

    @property
    def healthy(self) -> bool:
        """No warning any more."""
        return self.after is not None and healthy(self.after)

    @property
    def missing(self) -> float:
        """The share of what the twin learned that the cured run did not; below 0 where it learned more."""
        _, cured, twin = self.levels
        return (cured - twin) / abs(self.start - twin)

    @property
    def near(self) -> bool:
        """Whether it learned nearly all that the twin did."""
        return self.missing <= NEAR

    @property
    def cured(self) -> bool:
        """Healthy, and near the twin."""
        return self.healthy and self.near

    @property
    def worse(self) -> bool:
        """Whether it ends higher than without the cure; a run that ended in NaN or broke off is at infinity."""
        sick, cured, twin = self.levels
        return cured - sick > WORSE * abs(self.start - twin)

    def cells(self) -> list[str]:
        """The row of the table."""
        changed = self.said.prescription.changes
        changes = "; ".join(f"{item.path}: {_written(item.was)} → {_written(item.value)}" for item in changed)
        by = ", ".join(dict.fromkeys(item.finding.rule for item in changed))
        row = [self.case.program, f"{self.case.name} {self.case.seed}", changes, by]
        if self.after is None:
            return [*row, f"left out: {self.left_out}", "", ""]
        root = self.after.root_cause
        verdict = "cured" if self.cured else "healthy" if self.healthy else root.rule if root else self.after.status
        levels = " / ".join(f"{value:.3g}" for value in self.levels)
        return [*row, verdict, levels, f"{self.missing:+.0%}" + (", worse than untreated" if self.worse else "")]


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


COLUMNS = ("program", "kind, seed", "prescribed", "answers", "afterwards", "loss, sick / cured / twin", "not learned")


def levels(run: trainwatch.Run, ended: bool = True) -> tuple[float, float]:
    """The loss before anything was learned and at the end, on the validation set where that is measured.

    A game's loss says nothing: there it is the return, or how long an episode lasts, with its sign turned. A run that
    broke off or ended in NaN is at infinity.
    """
    figure = next((name for name in FIGURES if name in run.eval.channels), "")
    table, name = (
        (run.eval, figure or "loss") if figure or run.eval.curve("loss")[1].size >= LAST else (run.train, "loss")
    )
    values = np.nan_to_num(np.asarray(table.curve(name)[1], dtype=float), nan=np.inf) * (-1 if figure else 1)
    last = LAST if table is run.eval else max(len(values) // 10, 1)
    broken = not ended or not values.size or not np.isfinite(run.train["loss"][-1])
    first = np.asarray(run.train["loss"][:LAST], dtype=float)
    start = values[0] if figure else np.median(first[np.isfinite(first)]) if np.isfinite(first).any() else np.nan
    return float(start), float("inf") if broken else float(np.median(values[-last:]))


def _ended(said: Diagnosis) -> bool:
    return said.status not in ("failed", "killed", "never-started")


def judged(record: corpus.Record, healthy_ones: dict[str, corpus.Record]) -> Cured | None:
    """One stored sick run, trained again with what is prescribed; None where nothing is."""
    sick = _as_recorded_now(record)
    said = trainwatch.diagnose(sick)
    if not said.prescription.changes:
        return None
    try:
        run = again(record.case, said.prescription.patch)
    except CannotApplyError as missing:
        return Cured(record.case, said, left_out=f"the program has no place for {missing}")
    after, twin = trainwatch.diagnose(run), healthy_ones[_twin(record.case)].run()
    start, best = levels(twin)
    found = (levels(sick, _ended(said))[1], levels(run, _ended(after))[1], best)
    return Cured(record.case, said, after, found, start)


def _as_recorded_now(record: corpus.Record) -> trainwatch.Run:
    """The stored run, with the config that its program records now."""
    run, told = record.run(), config(record.case)
    if told is not None:
        for index, header in enumerate(run.headers):
            run.headers[index] = Header.parse({**header.raw, "config": told})
    return run


def again(case: corpus.Case, patch: dict[str, Any]) -> trainwatch.Run:
    """The case trained with a patch."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()), patched(case, patch):
        path = Path(folder) / "run.jsonl"
        corpus.found()[case.program].train(path, case.seed, case.name)
        return trainwatch.read(path)


def _twin(case: corpus.Case) -> str:
    """The healthy variant that a sick run is one of, and its seed."""
    program = corpus.found()[case.program]
    twins = getattr(program, "TWINS", None) or getattr(program, "TWIN", {})
    return f"{twins.get(case.name, program.HEALTHY[0])}-{case.seed}"


def cures(seeds: int, programs: Sequence[str] = (), kinds: Sequence[str] = ()) -> Iterator[Cured]:
    """Every cure of the corpus, in the order of the programs."""
    import torch

    torch.set_num_threads(1)
    for name in programs or corpus.found():
        records = [record for record in corpus.records(name) if record.case.seed < seeds]
        twins = {record.case.file: record for record in records if record.case.healthy}
        for record in records:
            if not record.case.healthy and (not kinds or record.case.name in kinds):
                one = judged(record, twins)
                if one:
                    yield one


def interval(found: Sequence[Cured]) -> tuple[float, float]:
    """95 % of the share that is cured: programs are drawn anew, since cures of one program are alike."""
    names = dict.fromkeys(one.case.program for one in found)
    by = [np.array([one.cured for one in found if one.case.program == name]) for name in names]
    random = np.random.default_rng(0)
    shares = [np.concatenate([by[i] for i in random.integers(len(by), size=len(by))]).mean() for _ in range(RESAMPLED)]
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def summary(found: Sequence[Cured]) -> str:
    """The table in words."""
    tried = [one for one in found if one.after is not None]
    if not tried:
        return "No cure could be tried."
    low, high = interval(tried)
    well, count = sum(one.cured for one in tried), len(tried)
    programs = len({one.case.program for one in tried})
    said = f"Of {count} cures that were tried in {programs} programs {well} ({well / count:.0%}, 95 % interval "
    said += f"{low:.0%} to {high:.0%}, programs drawn anew) are healthy and near the twin; "
    said += f"{sum(one.healthy for one in tried)} are healthy, {sum(one.near for one in tried)} near the twin, "
    said += f"{sum(one.worse for one in tried)} worse than untreated."
    left = len(found) - count
    return said + (f" {left} could not be applied." if left else "")
