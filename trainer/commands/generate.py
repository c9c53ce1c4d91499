"""`python -m trainer generate CHECKPOINT`: its answers to some test spectra, beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from trainer.commands.scores import console
from trainer.stored import stored
from trainer.tasks.peptide.chemistry import TOKENS, neutral_mass, spell
from trainer.tasks.peptide.evaluation import quality, residues_of
from trainer.tasks.peptide.grid import cells

if TYPE_CHECKING:
    from argparse import Namespace

    from numpy.typing import NDArray

    from trainer.tasks.peptide.data import Spectrum

HEADINGS = ("noise", "charge", "answer", "truth", "error, Da", "error, ppm", "")


def main(asked: Namespace) -> int:
    """A line for each of `--count` spectra, the fields of the grid in turn, and what the answers are like together."""
    found = stored(Path(asked.checkpoint), asked.settings)
    grid = cells(found.run.shape.positions - 1)
    each = [field.spectra(found.run.config.data, found.run.shape, -(-asked.count // len(grid))) for field in grid]
    spectra = [one for turn in zip(*each, strict=True) for one in turn][: asked.count]
    noises = [field.noise for _ in each[0] for field in grid]
    name = "average" if "average" in found.models else "live"
    answers = found.answers(name, spectra)
    table = Table(title=f"{found.path}, step {found.step:,}, {name} weights", title_justify="left", box=box.SIMPLE)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", justify="right" if "error" in heading else "left")
    for noise, spectrum, answer in zip(noises, spectra, answers, strict=False):
        table.add_row(*_line(noise, spectrum, residues_of(answer)))
    out = console()
    out.print(table)
    out.print(_together(quality(answers)))
    return 0


def _line(noise: str, spectrum: Spectrum, answer: NDArray[np.integer]) -> list[str | Text]:
    """Residues in green stand where the truth has them, counted from the C-terminus."""
    said = Text()
    for place, token in enumerate(answer):
        behind = len(answer) - place
        right = behind <= len(spectrum.tokens) and spectrum.tokens[-behind] == token
        said.append(TOKENS[token], style="green" if right else "red")
    error = neutral_mass(answer) - spectrum.mass
    equal = np.array_equal(answer, spectrum.tokens)
    masses = [f"{error:+.4f}", f"{1e6 * error / spectrum.mass:+,.1f}"]
    return [noise, str(spectrum.charge), said, spell(spectrum.tokens), *masses, "right" if equal else "wrong"]


def _together(found: dict[str, float]) -> str:
    """What the answers are like together, in one line."""
    length = f"length {found['length_mean']:.1f} ± {found['length_std']:.1f}, longest run {found['longest_run']:.1f}"
    return (
        f"valid {found['validity']:.1%}, diverse {found['diversity']:.1%}, entropy {found['entropy']:.2f} nat, {length}"
    )
