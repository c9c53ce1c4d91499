"""Whether what trainwatch prescribes cures: each of the trainer's faults as it was, cured, and its healthy twin.

    python benchmarks/cure.py [FAULT...] [--seeds 3] [--processes 2] [--stored]
    python benchmarks/cure.py --corpus [--seeds 2]

Reads the sick runs and the twins that benchmarks/faults.py has stored, asks trainwatch for the patch, and trains the
sick config with that patch, from the start. A cured config that is the twin's to the last setting is not trained again:
its record is the twin's. Keeps the others under benchmarks/cures/, prints the tables, writes docs/cure.md once all
faults are there. With --corpus the small programs of the diagnosis corpus instead (benchmarks/small_cures.py), which
is the last section of the same page.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import small_cures
from departures import curve
from faults import SEEDS, Pair, pair
from tables import markdown, show
from trainings import Training, ensure, read, there

import trainwatch
from trainer.config import Config, as_dict, default
from trainer.faults import FAULTS
from trainer.resume import differing
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import Header
from trainwatch.trial import healthy

STORED, KEPT = Path("benchmarks/faults"), Path("benchmarks/cures")
LAST = 3  # evaluations whose mean is a run's loss: a single one is noisy


@dataclass(frozen=True)
class Case:
    """One sick run, what is prescribed for it, and the training that takes it; None where nothing is."""

    sick: Training
    twin: Training
    said: Diagnosis
    cured: Training | None

    @property
    def same(self) -> bool:
        """Whether the cured config is the twin's."""
        return self.cured is not None and self.cured.config() == self.twin.config()


def case(one: Pair, seed: int, told: bool) -> Case:
    """Judge a stored run; ``told``: its header says the program's defaults, as the trainer now writes them."""
    sick, twin = one.sick[seed], one.healthy[seed]
    run = read(sick, STORED)
    if told:
        for index, header in enumerate(run.headers):
            run.headers[index] = Header.parse({**header.raw, "config_defaults": defaults(header.config)})
    said = trainwatch.diagnose(run)
    patch = said.prescription.patch
    overrides = tuple(f"{path}={written(value)}" for path, value in patch.items())
    name = f"{sick.name}-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:6]}"
    return Case(sick, twin, said, replace(sick, name=name, settings=(*sick.settings, *overrides)) if patch else None)


def defaults(config: dict[str, Any]) -> dict[str, Any]:
    """What the trainer says of its own defaults."""
    return {path: default(path) for path in differing(as_dict(Config()), config)}


def written(value: Any) -> str:
    """A value as an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def loss(run: trainwatch.Run) -> float:
    """The sequence's loss on the validation set at the end; infinite where it is not a number."""
    values = np.nan_to_num(curve(run, "loss/sequence")[1], nan=np.inf)
    return float(np.mean(values[-LAST:]))


@dataclass(frozen=True)
class Row:
    """What is known of one fault's cure: for each seed the case, and the losses as it was, cured and healthy."""

    one: Pair
    cases: list[Case]
    runs: list[tuple[trainwatch.Run, trainwatch.Run, trainwatch.Run]]

    @property
    def cured(self) -> int:
        """Seeds whose cured run is healthy."""
        return sum(healthy(trainwatch.diagnose(cured)) for _, cured, _ in self.runs)

    @property
    def losses(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """[seeds, 3]"""
        return np.array([[loss(run) for run in runs] for runs in self.runs])

    @property
    def worse(self) -> bool:
        """Whether the cured runs end higher than the sick ones, by more than the healthy seeds differ: from two on."""
        if len(self.runs) < 2:
            return False
        sick, cured, twin = self.losses.T
        return bool(np.median(cured) > np.median(sick) + (twin.max() - twin.min()))

    def cells(self) -> list[str]:
        """The row of the table."""
        prescription = self.cases[0].said.prescription
        changes = [f"{item.path}: {written(item.was)} → {written(item.value)}" for item in prescription.changes]
        by = dict.fromkeys(item.finding.rule for item in prescription.changes)
        fault = self.one.fault
        if not changes:
            root = self.cases[0].said.root_cause
            why = f"no cure known for {root.rule}" if root else "nothing found"
            return [f"F{fault.number}", fault.name, why, "", "", "", ""]
        same = " (the twin's config)" if all(item.same for item in self.cases) else ""
        if not self.runs:
            return [f"F{fault.number}", fault.name, "; ".join(changes), ", ".join(by), "not trained yet", "", ""]
        means = " / ".join(f"{value:.3g}" for value in self.losses.mean(0))
        gap = float(np.median(self.losses[:, 1] - self.losses[:, 2]))
        counted = f"{self.cured} of {len(self.runs)}"
        return [
            f"F{fault.number}", fault.name, "; ".join(changes) + same, ", ".join(by), counted, means,
            f"{gap:+.3f}" + (", worse than sick" if self.worse else ""),
        ]  # fmt: skip


COLUMNS = ("", "fault", "prescribed (seed 0)", "answers", "healthy", "loss, sick / cured / twin", "cured - twin")


def rows(pairs: list[Pair], seeds: int, told: bool, processes: int | None) -> Iterator[Row]:
    """Train what is missing, or with None leave it out; and compare."""
    judged = [(one, [case(one, seed, told) for seed in range(seeds)]) for one in pairs]
    every = [item for _, cases in judged for item in cases]
    if processes is not None:
        ensure([item.cured for item in every if item.cured and not item.same], KEPT, processes)
    for one, cases in judged:
        trained = [item for item in cases if item.cured and (item.same or there(item.cured, KEPT))]
        runs = [(read(item.sick, STORED), _cured(item), read(item.twin, STORED)) for item in trained]
        yield Row(one, cases, runs)


def _cured(item: Case) -> trainwatch.Run:
    assert item.cured is not None
    return read(item.twin, STORED) if item.same else read(item.cured, KEPT)


def summary(found: list[Row]) -> str:
    """The table in words."""
    tried = [row for row in found if row.runs]
    seeds = sum(len(row.runs) for row in tried)
    well = sum(row.cured for row in tried)
    given = {row.one.fault.name: [item for item in row.cases if item.cured] for row in found}
    none = [f"{row.one.fault.name} ({_why(row)})" for row in found if not given[row.one.fault.name]]
    partly = [row.one.fault.name for row in found if 0 < len(given[row.one.fault.name]) < len(row.cases)]
    share = f"{well / seeds:.0%}" if seeds else "none"
    said = f"Of {len(found)} faults {len(found) - len(none)} get a prescription; of {seeds} cured runs {well} ({share})"
    said += f" are healthy, and {sum(row.worse for row in tried)} faults end worse than untreated."
    said += f" No prescription: {', '.join(none)}." if none else ""
    said += f" In some seeds only: {', '.join(partly)}." if partly else ""
    waiting = sum(map(len, given.values())) - seeds
    return said + (f" Not trained yet: {waiting} runs." if waiting else "")


def _why(row: Row) -> str:
    root = row.cases[0].said.root_cause
    return f"no cure known for {root.rule}" if root else "no rule names it"


ABOUT = """# Whether the cures cure

Written by `python benchmarks/cure.py`: for each fault of the trainer the stored sick runs (docs/faults.md), what
`trainwatch prescribe` says to change in their config, and a run of that config from the start beside the healthy twin.

- *healthy*: cured runs without a warning or worse, of all seeds.
- *loss*: the sequence's loss on the validation set, mean of the last three evaluations and of the seeds.
- *the twin's config*: the cured config is the healthy twin's to the last setting. A training is a function of its
  settings to the last bit, so it is not done again: its record is the twin's.
"""
TOLD = """## With the program's defaults in the record

The trainer writes which of its settings are off their defaults, so a setting that is named for what is sick can be put
back. Most of these faults are one such setting by construction, and some bear the name of what they break; read this
table as whether the right setting is found among those that are off, not as how often a real mistake is one setting.
"""
DERIVED = """## Without them

The same runs, as a program records them that says nothing of its defaults: what is left is what the header declares
and what was measured, such as a weight from the shares of the gradient.
"""


PAGE = Path("docs/cure.md")
SMALL = f"""## The corpus of small programs

Written by `python benchmarks/cure.py --corpus`: each stored sick run of the corpus (docs/diagnosis.md) that gets a
prescription in the settings of its own config, trained again with them from the start, on a program that knows nothing
of defaults. Most kinds of mistake are no setting, and get none: this is whether what is prescribed cures. How far a
rate is moved was set while looking at these programs, so the share is of programs that were seen.

- *cured*: no warning or worse, and at most {small_cures.NEAR:.0%} of what the healthy twin learns is missing;
  *healthy*: the first alone; else the root cause that is still there.
- *loss*: on the validation set at the end, median of the last evaluations; of the training where that is not measured.
  Infinite where the run broke off or ended in NaN. Of a game, the return or an episode's length with its sign turned.
- *not learned*: of what the twin of the same seed comes down from its first rows, the share that the cured run lacks.
- *worse than untreated*: by more than {small_cures.WORSE:.0%} of what the twin learns.
"""


def corpus_part(seeds: int) -> str:
    """Train the corpus's cures, print the table; the section of the page."""
    found = []
    for one in small_cures.cures(seeds):
        found.append(one)
        print(f"{len(found)}: {one.case.program} {one.case.file}", file=sys.stderr)
    table = [one.cells() for one in found]
    show("The corpus of small programs", small_cures.COLUMNS, table)
    print(small_cures.summary(found))
    told = f"{seeds} seed{'s' * (seeds > 1)} of each. {small_cures.summary(found)}"
    parts = (SMALL, told, markdown(small_cures.COLUMNS, table))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(trainer: str | None, small: str | None) -> None:
    """The page, of which a part that was not measured now stays as it is."""
    title = SMALL.splitlines()[0]
    before, _, rest = (PAGE.read_text(encoding="utf-8") if PAGE.exists() else "").partition(title)
    kept = title + rest if rest else ""
    PAGE.write_text("\n\n".join(filter(None, [(trainer or before).strip(), (small or kept).strip()])) + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="only these")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1), help="of each fault")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side; 0: in this process")
    parser.add_argument("--stored", action="store_true", help="train nothing; what has no record is left out, and said")
    parser.add_argument("--corpus", action="store_true", help="the small programs instead, each trained here")
    asked = parser.parse_args(arguments)
    if asked.corpus:
        write(None, corpus_part(min(asked.seeds, small_cures.SEEDS)))
        return
    if unknown := set(asked.faults) - set(FAULTS):
        parser.error(f"fault '{min(unknown)}' does not exist; choose from {', '.join(FAULTS)}")
    pairs = [pair(FAULTS[name], (), asked.seeds) for name in asked.faults or FAULTS]
    page = [ABOUT, f"{asked.seeds} seed{'s' * (asked.seeds > 1)} of each."]
    for about, told in ((TOLD, True), (DERIVED, False)):
        found = list(rows(pairs, asked.seeds, told, None if asked.stored else asked.processes))
        table = [row.cells() for row in found]
        title = about.splitlines()[0].removeprefix("## ")
        show(title, COLUMNS, table)
        print(summary(found))
        page += [about, summary(found), markdown(COLUMNS, table)]
    if not asked.faults:
        write("\n\n".join(part.strip() for part in page), None)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
