"""The table of `baseline` and `evaluate`: who answers test spectra how well, by length and noise."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from trainer.progress import Bar
from trainer.tasks.peptide.baseline import solve
from trainer.tasks.peptide.data import spelled
from trainer.tasks.peptide.evaluation import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config import DataConfig
    from trainer.tasks.peptide.data import Shape, Spectrum
    from trainer.tasks.peptide.grid import Cell

    Solver = Callable[[list[Spectrum]], list[NDArray[np.integer]]]
    """From spectra to peptides, each its residues' tokens from the N-terminus."""

WIDTH = 120  # columns of a table that goes to a file
BATCH = 50  # spectra between two movements of the bar


@dataclass(frozen=True)
class Row:
    """One solver in one field of the grid; rates are shares, `standard_error` is that of `sequence_accuracy`."""

    length: str
    noise: str
    who: str
    n: int
    sequence_accuracy: float
    standard_error: float
    peptide_precision: float
    aa_recall: float
    aa_precision: float
    ms_per_spectrum: float


def baseline(spectra: list[Spectrum]) -> list[NDArray[np.integer]]:
    """The spectrum graph's answers."""
    return [solve(spectrum) for spectrum in spectra]


def rows(grid: list[Cell], data: DataConfig, shape: Shape, count: int, solvers: dict[str, Solver]) -> list[Row]:
    """Every solver on the first `count` spectra of every field, with a bar."""
    found: list[Row] = []
    with Bar(len(grid) * count * len(solvers), unit="spectra") as bar:
        for field in grid:
            spectra = field.spectra(data, shape, count)
            for who, solver in solvers.items():
                answers, seconds, before = list[NDArray[np.integer]](), 0.0, len(found) * count
                for first in range(0, count, BATCH):
                    began = time.perf_counter()
                    answers += solver(spectra[first : first + BATCH])
                    seconds += time.perf_counter() - began
                    bar.step(before + len(answers), f"{who}, length {field.lengths}, {field.noise}")
                found.append(_row(field, who, spectra, answers, seconds))
    return found


def _row(field: Cell, who: str, spectra: list[Spectrum], answers: list[NDArray[np.integer]], seconds: float) -> Row:
    truths, count = [spectrum.tokens for spectrum in spectra], len(spectra)
    room = max(map(len, [*answers, *truths])) + 1
    values = score(spelled(answers, room), spelled(truths, room))
    exact = values["sequence_accuracy"]
    return Row(
        length=field.lengths,
        noise=field.noise,
        who=who,
        n=count,
        sequence_accuracy=exact,
        standard_error=math.sqrt(exact * (1 - exact) / count),
        peptide_precision=values["peptide_precision"],
        aa_recall=values["aa_recall"],
        aa_precision=values["aa_precision"],
        ms_per_spectrum=1e3 * seconds / count,
    )


def show(title: str, found: list[Row], as_json: bool) -> None:
    """Print the rows: for a person, or one JSON array."""
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    headings = (
        "length",
        "noise",
        "who",
        "n",
        "exact",
        "± s.e.",
        "peptide prec.",
        "aa recall",
        "aa prec.",
        "ms",
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 3 else "right", no_wrap=heading in ("who", "n", "ms"))
    for before, row in zip([None, *found[:-1]], found, strict=True):
        if before and before.length != row.length:
            table.add_section()
        rates = (row.sequence_accuracy, row.standard_error, row.peptide_precision, row.aa_recall, row.aa_precision)
        cells = [row.length, row.noise, row.who, str(row.n), *(f"{rate:.3f}" for rate in rates)]
        table.add_row(*cells, f"{row.ms_per_spectrum:.1f}")
    console().print(table)


def console() -> Console:
    """Where results go: as wide as the terminal, or as wide as a table wants where it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
