"""`python -m trainer evaluate CHECKPOINT`: its weights on test spectra, beside the spectrum graph."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import faults
from trainer.commands import scores
from trainer.stored import stored
from trainer.tasks.peptide.grid import LENGTHS, cells

if TYPE_CHECKING:
    from argparse import Namespace


def main(asked: Namespace) -> int:
    """One row for every field of the grid and each of: live weights, their moving average, the baseline."""
    found = stored(Path(asked.checkpoint), asked.settings)
    config, room = found.run.config, found.run.shape.positions - 1
    solvers: dict[str, scores.Solver] = {name: partial(found.peptides, name) for name in found.models}
    solvers["baseline"] = scores.baseline
    table = scores.rows(cells(room), config.data, found.run.shape, asked.count, solvers)
    scores.show(f"{found.path}, step {found.step:,}, on test spectra, {config.data.source}", table, asked.json)
    shortest, longest = faults.running(config).lengths()
    said = f"its curriculum draws {shortest} to {longest} residues, its answers have room for {room}"
    hint = f"; data.max_length={LENGTHS[-1][1]} makes room for all" if room < LENGTHS[-1][1] else ""
    print(f"trainer: {said}{hint}", file=sys.stderr)
    return 0
