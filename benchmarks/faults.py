"""What each fault does to a run: when it begins, when the damage does, which channel shows it, which rule names it.

    python benchmarks/faults.py [FAULT...] [--quick] [--processes 2]

Trains every fault and its healthy twin, the same run without the mistake, with three seeds at size tiny on MS2PIP
spectra; keeps the records under benchmarks/faults/, prints the table, and writes docs/faults.md once all are there.
Records that are there are not trained again: remove the folder after a change of the trainer. `--quick` is a small
trial of the same on ion ladders, below logs/.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from departures import Alarm, Runs, Shown, alarms, curve, damage, first_shown
from tables import markdown, show
from trainings import Training, ensure, read

from trainer.config import Config
from trainer.faults import FAULTS, Fault
from trainer.loading import load
from trainwatch.engine import catalogue

SETTINGS = (
    "size=tiny", "steps=160", "batch_size=6", "device=cpu", "threads=1", "data.max_peaks=32", "data.peptides=300",
    "optimizer.lr=2e-3", "optimizer.warmup=0.1", "optimizer.max_grad_norm=5", "evaluation.every=0.05",
    "evaluation.samples=48", "checkpoint.every=0.5",
)  # fmt: skip
"""Of every run."""
SPECIAL = {
    "precision=fp16": ("steps=60", "batch_size=2", "evaluation.every=0.1", "evaluation.samples=16"),  # slow on a CPU
    "accumulation=2": ("batch_size=3",),  # as many samples a step as all others
}
"""Of the runs whose fault has such a base, besides."""
QUICK = (
    "data.source=theoretical", "data.peptides=50", "data.max_peaks=12", "steps=8", "batch_size=1",
    "evaluation.samples=2", "evaluation.every=0.25",
)  # fmt: skip
SEEDS = 3


@dataclass(frozen=True)
class Pair:
    """A fault's runs and its healthy twins, one of each a seed; faults of one base share their twins."""

    fault: Fault
    config: Config
    resumed: int
    sick: tuple[Training, ...]
    healthy: tuple[Training, ...]


def pair(fault: Fault, extra: tuple[str, ...], seeds: int) -> Pair:
    """What is trained for a fault. A mistake of resuming is made half-way."""
    base = dotted(fault.base)
    common = (*SETTINGS, *(setting for item in base for setting in SPECIAL.get(item, ())), *extra)
    mistake = f"fault={fault.name}"
    config, _ = load([], [*common, mistake])
    resumed = 0 if fault.first else config.horizon().total_steps // 2
    twin = "-".join(["healthy", *(item.replace("=", "-").lower() for item in base), *["resumed"] * bool(resumed)])

    def runs(name: str, settings: list[str]) -> tuple[Training, ...]:
        each = range(seeds)
        return tuple(Training(f"{name}-{seed}", (*common, *settings, f"seed={seed}"), resumed) for seed in each)

    return Pair(fault, config, resumed, runs(fault.name, [mistake]), runs(twin, base))


def dotted(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as key=value."""
    found = []
    for key, value in settings.items():
        found += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={value}"]
    return found


@dataclass(frozen=True)
class Row:
    """What is known about one fault. `damage` is 0 where none was seen; `accuracy` is of sick and of healthy runs."""

    fault: Fault
    begins: int
    damage: int
    shown: Shown | None
    accuracy: tuple[float, float]
    alarms: list[Alarm]

    def named(self) -> list[Alarm]:
        """By rules that may rightly name it."""
        return [alarm for alarm in self.alarms if alarm.rule in self.fault.named_by]

    def cells(self) -> list[str]:
        """The row of the table."""
        others = [alarm for alarm in self.alarms if alarm.rule not in self.fault.named_by]
        to_come = [rule for rule in self.fault.named_by if rule not in catalogue()]
        nobody = f"nobody; to come: {', '.join(to_come)}" if to_come else "nobody"
        shown = self.shown
        return [
            f"F{self.fault.number}",
            f"{self.fault.name}: {self.fault.about}",
            str(self.begins),
            str(self.damage or "none seen"),
            f"{shown.channel} at {shown.step}: {shown.sick:.3g}" if shown else "none",
            f"{shown.healthy:.3g}" if shown else "",
            " / ".join(f"{value:.3f}" for value in self.accuracy),
            said(self.named()) or nobody,
            said(others) or "none",
        ]


COLUMNS = ("", "fault", "begins", "damage from", "shown first by", "healthy there", "token accuracy, sick / healthy",
           "named by", "other alarms")  # fmt: skip


def said(found: list[Alarm]) -> str:
    """Alarms in words."""
    return ", ".join(f"{alarm.rule} at {alarm.step} ({alarm.runs} of {alarm.of})" for alarm in found)


def accuracy(runs: Runs) -> list[float]:
    """Token accuracy of each run at its last evaluation."""
    return [float(curve(run, "metric/token_accuracy")[1][-1]) for run in runs]


def measure(one: Pair, folder: Path) -> Row:
    """Compare a fault's runs with their twins."""
    sick, healthy = ([read(training, folder) for training in group] for group in (one.sick, one.healthy))
    begins = one.fault.begins(one.config, one.resumed)
    return Row(
        one.fault,
        begins,
        damage(sick, healthy, begins),
        first_shown(sick, healthy, begins),
        (float(np.mean(accuracy(sick))), float(np.mean(accuracy(healthy)))),
        alarms(sick),
    )


TWIN_COLUMNS = ("healthy twin", "token accuracy by seed", "false alarms")


def twin_cells(twins: tuple[Training, ...], folder: Path) -> list[str]:
    """The row of one kind of healthy run: any alarm here is a false one."""
    runs = [read(training, folder) for training in twins]
    name = twins[0].name.rpartition("-")[0]
    return [name, ", ".join(f"{value:.3f}" for value in accuracy(runs)), said(alarms(runs)) or "none"]


def summary(rows: list[Row], twins: list[list[str]]) -> str:
    """The table in two sentences."""
    always = sum(any(alarm.runs == alarm.of for alarm in row.named()) for row in rows)
    ever = sum(bool(row.named()) for row in rows)
    quiet = sum(cells[2] == "none" for cells in twins)
    return (
        f"Of {len(rows)} faults {always} are named in every seed by a rule that may rightly name them, {ever - always} "
        f"in some seeds, {len(rows) - ever} by none of the {len(catalogue())} rules there are. "
        f"Of {len(twins)} kinds of healthy run {quiet} raise no alarm in any seed."
    )


ABOUT = f"""# What each fault does

Written by `python benchmarks/faults.py`, which trains every fault of `trainer/faults.py` and its healthy twin, the same
run without the mistake, with {SEEDS} seeds each: `{" ".join(SETTINGS)}`;
fp16 with `{" ".join(SPECIAL["precision=fp16"])}`. The records are in `benchmarks/faults/`.

- *begins*: the first step that goes otherwise than in the healthy twin; up to there both are the same to the last bit.
- *damage from*: the first evaluation from which the median of the sick seeds' validation losses (sequence) stays worse
  than the worst healthy seed by more than the healthy seeds differ. Evaluated every 5 % of the run.
- *shown first by*: the channel that first departs from the twin of the same seed, in every seed, by more than the
  healthy seeds differ within 5 steps; of several at one step, the one that departs furthest in units of that.
- *named by*: rules that may rightly name the fault, with the first step they name (median over seeds). *Other alarms*
  are warnings and worse of all other rules. On a healthy twin every alarm is a false one.
"""


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="only these")
    parser.add_argument("--quick", action="store_true", help="a trial of some steps, below logs/")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side; 0: in this process")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.faults) - set(FAULTS):
        parser.error(f"fault '{min(unknown)}' does not exist; choose from {', '.join(FAULTS)}")
    folder = Path("logs/faults-quick" if asked.quick else "benchmarks/faults")
    extra, seeds = (QUICK, 1) if asked.quick else ((), SEEDS)
    pairs = [pair(FAULTS[name], extra, seeds) for name in asked.faults or FAULTS]
    ensure([training for one in pairs for training in (*one.healthy, *one.sick)], folder, asked.processes)
    rows = sorted((measure(one, folder) for one in pairs), key=lambda row: row.fault.number)
    twins = [twin_cells(group, folder) for group in dict.fromkeys(one.healthy for one in pairs)]
    table = [row.cells() for row in rows]
    short = [[row[0], row[1].partition(":")[0], *row[2:]] for row in table]
    show("faults", COLUMNS, short)
    show("healthy twins", TWIN_COLUMNS, twins)
    print(summary(rows, twins))
    if not asked.faults:
        page = folder / "faults.md" if asked.quick else Path("docs/faults.md")
        parts = (ABOUT, summary(rows, twins), markdown(COLUMNS, table), markdown(TWIN_COLUMNS, twins))
        page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
