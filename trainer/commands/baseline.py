"""`python -m trainer baseline`: the spectrum graph's answers to test spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.commands import scores
from trainer.config import UsageError
from trainer.loading import load
from trainer.tasks.peptide.data import Shape
from trainer.tasks.peptide.grid import LENGTHS, cells
from trainer.tasks.peptide.spectra import check_source

if TYPE_CHECKING:
    from argparse import Namespace


def main(asked: Namespace) -> int:
    """One row for every field of the grid."""
    config, _ = load(asked.config, asked.settings)
    check_source(config.data.source)
    longest = config.data.max_length or LENGTHS[-1][1]
    if not (grid := cells(longest)):
        raise UsageError(
            f"data.max_length is {longest}, but the shortest peptide has {LENGTHS[0][0]} residues; raise it"
        )
    shape = Shape(config.data.max_peaks, longest + 1, config.data.min_peaks)
    found = scores.rows(grid, config.data, shape, asked.count, {"baseline": scores.baseline})
    scores.show(f"Spectrum graph on test spectra, {config.data.source}", found, asked.json)
    return 0
