"""Test spectra in a grid of peptide lengths and noise levels: the same ones for every model and for the baseline.

They are drawn online, so they depend on the source and the data's seed alone, not on how many peptides a run's shards
hold; their peptides are of the test split, which no run trains or is chosen on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.curriculum import Corruption
from trainer.tasks.peptide.bank import Online
from trainer.tasks.peptide.data import draw

if TYPE_CHECKING:
    from trainer.config import DataConfig
    from trainer.tasks.peptide.data import Shape, Spectrum

LENGTHS = ((7, 10), (11, 14), (15, 18), (19, 30))
"""Bins of peptide lengths, in residues; the first is the curricula's first stage."""
LEVELS = {
    "clean": Corruption(0, 0),
    "light": Corruption(0, 0, noise_peaks=5, dropout=0.05, ppm_error=5.0),
    "heavy": Corruption(0, 0, noise_peaks=10, dropout=0.15, ppm_error=15.0),
}
"""What is done to spectra, lengths aside: nothing, EXTENDED's middle, EXTENDED's end."""
TEST_STREAM = 2**33
"""Added to the data's seed: test spectra share no random number with any run or validation set."""


@dataclass(frozen=True)
class Cell:
    """One field of the grid: peptides of `shortest` to `longest` residues at a noise level."""

    shortest: int
    longest: int
    noise: str

    @property
    def lengths(self) -> str:
        """Its lengths in words."""
        return f"{self.shortest}-{self.longest}"

    def spectra(self, data: DataConfig, shape: Shape, count: int) -> list[Spectrum]:
        """The first `count` test spectra of this field."""
        level = LEVELS[self.noise]
        asked = Corruption(self.shortest, self.longest, level.noise_peaks, level.dropout, level.ppm_error)
        stream = TEST_STREAM + data.seed
        return [draw(Online(data.source), "test", asked, stream, index, shape) for index in range(count)]


def cells(longest: int) -> list[Cell]:
    """The fields with peptides of up to `longest` residues; the last bin may end early."""
    bins = [(low, min(high, longest)) for low, high in LENGTHS if low <= longest]
    return [Cell(low, high, noise) for low, high in bins for noise in LEVELS]
