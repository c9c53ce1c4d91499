"""Does DEFAULT end in NaN? Every loss unit, precision, reach of the gradient and clipping limit, beside EXTENDED.

    python benchmarks/diverge.py [--quick] [--processes 2]

Trains DEFAULT and its twin EXTENDED once for each combination at size tiny on MS2PIP spectra, as many steps as minutes
allow on a CPU, keeps the records below logs/diverge, prints the table and writes docs/diverge.md. What is there is not
trained again: remove the folder after a change of the trainer. `--quick` is a trial of some steps on ion ladders.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from departures import by_step, curve
from tables import markdown, show
from trainings import Training, ensure, read

import trainwatch

UNITS = ("raw_ppm", "clamp_ppm", "log1p_ppm", "huber_residue")
PRECISIONS = {"fp32": (200, 4), "bf16": (150, 4), "fp16": (50, 2)}
"""Steps, and samples a step: what a CPU computes in less than a minute."""
REACHES = ("trm", "full", "6")
"""How far gradients reach back: one supervision step, all of them, half of the 12 passes of size tiny."""
LIMITS = ("1", "1e9")
"""Of the gradient's norm: as published, and none."""
SETTINGS = (
    "size=tiny", "device=cpu", "threads=1", "data.max_peaks=32", "data.peptides=300", "optimizer.lr=2e-3",
    "evaluation.every=0.25", "evaluation.samples=32", "checkpoint.every=1.0",
)  # fmt: skip
QUICK = ("data.source=theoretical", "data.peptides=50", "data.max_peaks=12", "evaluation.samples=2")


@dataclass(frozen=True)
class Cell:
    """One combination, and its two runs."""

    unit: str
    precision: str
    reach: str
    limit: str
    steps: int
    batch: int
    default: Training
    extended: Training


def cells(quick: bool) -> list[Cell]:
    """All combinations with the published limit; without one those in fp32, where nothing else keeps a number small."""
    if quick:
        return [cell(unit, "fp32", REACHES[0], LIMITS[0], quick) for unit in (UNITS[0], UNITS[-1])]
    clipped = itertools.product(PRECISIONS, UNITS, REACHES, LIMITS[:1])
    free = itertools.product(("fp32",), UNITS, REACHES, LIMITS[1:])
    return [cell(unit, precision, reach, limit, quick) for precision, unit, reach, limit in (*clipped, *free)]


def cell(unit: str, precision: str, reach: str, limit: str, quick: bool) -> Cell:
    """DEFAULT as asked for; EXTENDED with the published limit, and its gradients through one supervision step."""
    steps, batch = (4, 1) if quick else PRECISIONS[precision]
    settings = (
        *SETTINGS, *(QUICK if quick else ()), f"loss.precursor_unit={unit}", f"precision={precision}",
        f"steps={steps}", f"batch_size={batch}",
    )  # fmt: skip

    def training(curriculum: str, reach: str, clip: str) -> Training:
        own = f"curriculum={curriculum}", f"model.bptt={reach}", f"optimizer.max_grad_norm={clip}"
        return Training(f"{curriculum}-{unit}-{precision}-{reach}-clip{clip}", (*settings, *own))

    default, extended = training("DEFAULT", reach, limit), training("EXTENDED", REACHES[0], LIMITS[0])
    return Cell(unit, precision, reach, limit, steps, batch, default, extended)


@dataclass(frozen=True)
class Course:
    """How one run went. `nan` is the first step that was not skipped and whose loss is not finite, 0 if there is none;
    `scale` is the gradient scaler's last factor, None without one; `share` the precursor's part of the gradient at the
    logits, a median; `clipped` the share of steps.
    """

    nan: int
    skipped: int
    scale: float | None
    norm: float
    share: float
    clipped: float
    accuracy: float


def course(run: trainwatch.Run) -> Course:
    """What a run's record tells."""
    amp = "amp/skipped" in run.train
    taken = np.nan_to_num(by_step(run, "amp/skipped")) == 0
    lost = np.flatnonzero(taken & np.isinf(by_step(run, "loss")))
    norms, shares = by_step(run, "grad_norm"), by_step(run, "grad_share/precursor")
    return Course(
        nan=int(lost[0]) + 1 if lost.size else 0,
        skipped=int((~taken).sum()),
        scale=float(by_step(run, "amp/scale")[-1]) if amp else None,
        norm=float(norms[np.isfinite(norms)].max(initial=0.0)),
        share=float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else 0.0,
        clipped=float(np.nanmean(by_step(run, "clip"))),
        accuracy=float(curve(run, "metric/token_accuracy")[1][-1]),
    )


COLUMNS = (
    "precursor unit", "precision", "bptt", "clip", "steps x batch", "NaN at", "skipped", "last scale", "largest norm",
    "precursor's share", "clipped", "token accuracy", "EXTENDED: NaN at", "its accuracy",
)  # fmt: skip


def row(one: Cell, default: Course, extended: Course) -> list[str]:
    """The row of the table."""
    return [
        one.unit,
        one.precision,
        one.reach,
        one.limit if one.limit == LIMITS[0] else "none",
        f"{one.steps} x {one.batch}",
        str(default.nan or "no"),
        str(default.skipped),
        "" if default.scale is None else f"{default.scale:g}",
        f"{default.norm:.3g}",
        f"{default.share:.4f}",
        f"{default.clipped:.0%}",
        f"{default.accuracy:.3f}",
        str(extended.nan or "no"),
        f"{extended.accuracy:.3f}",
    ]


def verdict(courses: list[tuple[Cell, Course, Course]]) -> str:
    """The answer in words, and for each unit of the loss."""
    lost = sum(default.nan > 0 for _, default, _ in courses)
    twins = {one.extended: extended.nan > 0 for one, _, extended in courses}
    how = f"{lost} of {len(courses)} runs of DEFAULT" if lost else f"None of {len(courses)} runs of DEFAULT"
    lines = [f"{how} came to a loss that is not finite, and {sum(twins.values())} of {len(twins)} of EXTENDED.", ""]
    for unit in dict.fromkeys(one.unit for one, _, _ in courses):
        mine = [(default, extended) for one, default, extended in courses if one.unit == unit]
        accuracy = [statistics.median(pair[side].accuracy for pair in mine) for side in (0, 1)]
        share = statistics.median(default.share for default, _ in mine)
        lines.append(
            f"- {unit}: {sum(default.nan > 0 for default, _ in mine)} of {len(mine)} not finite; the precursor has "
            f"{share:.2%} of the gradient (median); token accuracy {accuracy[0]:.3f}, with EXTENDED "
            f"{accuracy[1]:.3f} (medians)."
        )
    return "\n".join(lines)


ABOUT = f"""# Does DEFAULT end in NaN?

Written by `python benchmarks/diverge.py`: DEFAULT for each unit of the precursor loss, precision and reach of the
gradient, clipped at 1 as published, and in fp32 without clipping too; beside it EXTENDED with the same unit and
precision, clipped at 1, its gradients through one supervision step; one seed each: `{" ".join(SETTINGS)}`.
Both curricula are shrunk to the run, so every stage is passed through; fp16 has fewer steps and smaller batches, for a
CPU computes it several times more slowly. This tells of a model of a million parameters and of some hundred steps: a
run that stays finite here may still be lost at step 50,000, and on a GPU sums are rounded otherwise.

- *NaN at*: the first step that was not skipped whose loss is not finite. *Skipped* steps and the *last scale* are the
  gradient scaler's. *Largest norm* is of the whole gradient before clipping, over the finite ones.
- *Precursor's share* of the components' gradients at `gradient_at`, the median of the steps at which it has a weight.
"""


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a trial of some steps")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side; 0: in this process")
    asked = parser.parse_args(arguments)
    folder = Path("logs/diverge-quick" if asked.quick else "logs/diverge")
    grid = cells(asked.quick)
    ensure([training for one in grid for training in (one.default, one.extended)], folder, asked.processes)
    courses = [(one, course(read(one.default, folder)), course(read(one.extended, folder))) for one in grid]
    table = [row(*found) for found in courses]
    show("DEFAULT, and EXTENDED beside it", COLUMNS, table)
    print(verdict(courses))
    page = folder / "diverge.md" if asked.quick else Path("docs/diverge.md")
    page.write_text("\n\n".join((ABOUT.strip(), verdict(courses), markdown(COLUMNS, table))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
