"""Samples and batches. Every sample is a pure function of (seed, global sample index), and so is its stage.

So it does not matter how many workers there are, no worker holds an old curriculum, and a resume continues exactly.
Suffixes of arrays: B samples, P peaks, S positions.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.config import UsageError
from trainer.tasks.peptide.chemistry import EOS, PAD, fragment_mz, neutral_mass
from trainer.tasks.peptide.spectra import SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.curriculum import Corruption, Curriculum
    from trainer.horizon import Horizon, Micro
    from trainer.tasks.peptide.bank import Peptides

LOWEST_MZ = 50.0  # Da per charge: where instruments begin to record
SMALLEST_PEAK = 0.01  # share of the largest peak; Casanovo drops what is below
REDRAWS = 1000  # of a spectrum with too few peaks, before one says that there is none with more
SUFFIXES = np.array([ion.series == "suffix" for ion in SERIES])
NOISE_HEIGHT = 0.05  # mean height of a noise peak, as a share of the largest peak


@dataclass(frozen=True)
class Spectrum:
    """One sample: peaks in order of m/z (float64, Da per charge), heights relative to the largest (float32).

    `mass` is the neutral precursor mass in Da, `tokens` the residues without EOS; the rest is what was done to it.
    """

    mz: NDArray[np.float64]
    heights: NDArray[np.float32]
    mass: float
    charge: int
    tokens: NDArray[np.uint8]
    noise_peaks: int
    ppm: NDArray[np.float64]
    confidence: NDArray[np.float32]
    """How far the kept peaks support each residue, 0 to 1 (`confidences`)."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees, and under `facts` what the data turned out to be (host numbers, one a name)."""

    mz_BP: Tensor  # float64, Da per charge; 0 where no peak is
    height_BP: Tensor  # float32, share of the largest peak
    present_BP: Tensor  # bool
    mass_B: Tensor  # float64, neutral precursor mass in Da
    charge_B: Tensor  # int64
    tokens_BS: Tensor  # int64: residues from the C-terminus, EOS, PAD. The target; the model is never given it
    confidence_BS: Tensor  # float32, of each residue of the target; 1 at EOS, 0 at PAD
    facts: dict[str, float]
    micro: Micro

    def pin_memory(self) -> Batch:
        """The same in pinned memory, so that `to` need not wait."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in TENSORS})

    def to(self, device: torch.device) -> Batch:
        """The same on a device, copied without waiting."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        return replace(self, **moved)


TENSORS = tuple(field.name for field in fields(Batch) if field.name.rpartition("_")[2].isupper())


@dataclass(frozen=True)
class Shape:
    """How large a batch's tensors are: peaks a spectrum, positions an answer (the longest peptide and its EOS).

    A spectrum with fewer than `min_peaks` is drawn again.
    """

    peaks: int
    positions: int
    min_peaks: int = 4


def draw(peptides: Peptides, split: str, data: Corruption, seed: int, index: int, shape: Shape) -> Spectrum:
    """Sample `index` of a stream: a peptide of the split, its spectrum, and what the instrument does to it.

    Raises UsageError where no spectrum has the peaks that `shape` asks for.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    for _ in range(REDRAWS):
        spectrum = _draw(peptides, split, data, rng, shape.peaks)
        if len(spectrum.mz) >= shape.min_peaks:
            return spectrum
    few = f"{REDRAWS:,} spectra in a row had fewer than data.min_peaks={shape.min_peaks} peaks"
    raise UsageError(f"{few}; lower it, or the dropout of peaks ({data.dropout:g}).")


def _draw(peptides: Peptides, split: str, data: Corruption, rng: np.random.Generator, most: int) -> Spectrum:
    tokens, charge, heights = peptides.pick(rng, split, int(rng.integers(data.shortest, data.longest + 1)))
    mass, heights = neutral_mass(tokens), heights.ravel()
    seen = (heights > SMALLEST_PEAK) & (rng.random(heights.size) >= data.dropout)
    mz, heights = fragment_mz(tokens, SERIES).ravel()[seen], heights[seen]
    ppm = rng.uniform(-data.ppm_error, data.ppm_error, mz.size)
    heights = heights * np.exp(rng.normal(0.0, data.intensity_error, mz.size))
    noise_mz = rng.uniform(LOWEST_MZ, mass, data.noise_peaks)
    noise_heights = rng.exponential(NOISE_HEIGHT, data.noise_peaks)
    mz = np.concatenate([mz * (1 + ppm * 1e-6), noise_mz])
    heights = np.concatenate([heights, noise_heights])
    kept = np.sort(np.argsort(-heights, kind="stable")[:most])  # the tallest peaks, whatever their m/z
    order = kept[np.argsort(mz[kept], kind="stable")]
    relative = (heights[order] / heights.max(initial=1e-9)).astype(np.float32)
    confidence = confidences(np.flatnonzero(seen)[kept[kept < len(ppm)]], len(tokens))
    return Spectrum(mz[order], relative, mass, charge, tokens, data.noise_peaks, ppm, confidence)


def confidences(fragments: NDArray[np.intp], residues: int) -> NDArray[np.float32]:
    """Share of a residue's two cleavages that an observed fragment supports, from the N-terminus: 0, 0.5 or 1.

    `fragments` are indices into the raveled `fragment_mz(tokens, SERIES)`. A terminus needs no support.
    """
    ion, shorter = np.divmod(fragments, residues - 1)
    cleavage = np.where(SUFFIXES[ion], residues - 1 - shorter, shorter + 1)
    supported = np.zeros(residues + 1, dtype=np.float32)
    supported[[0, residues]] = 1.0
    supported[cleavage] = 1.0
    share: NDArray[np.float32] = np.float32(0.5) * (supported[:-1] + supported[1:])
    return share


def blank(like: Spectrum) -> Spectrum:
    """A scan that recorded nothing: no peak, no precursor. Real files hold some; a loader has to leave them out."""
    nothing = np.zeros(0)
    bare = replace(like, mz=nothing, heights=nothing.astype(np.float32), mass=0.0, ppm=nothing)
    return replace(bare, confidence=confidences(np.flatnonzero(nothing), len(like.tokens)))


def spelled(peptides: Sequence[NDArray[np.integer]], positions: int) -> NDArray[np.int64]:
    """Peptides as answers, int64 [B, positions]: from the C-terminus, as Casanovo spells them, then EOS, then PAD.

    So a y ion of n residues, the strong series, belongs to position n - 1 whatever the peptide's length.
    """
    answers = np.full((len(peptides), positions), PAD)
    for row, peptide in enumerate(peptides):
        answers[row, : len(peptide)] = peptide[::-1]
        answers[row, len(peptide)] = EOS
    return answers


def collate(spectra: list[Spectrum], shape: Shape, micro: Micro) -> Batch:
    """Spectra as tensors of a fixed shape, and their peptides as `spelled` answers."""
    size = len(spectra)
    mz, heights = np.zeros((size, shape.peaks)), np.zeros((size, shape.peaks), dtype=np.float32)
    tokens = spelled([spectrum.tokens for spectrum in spectra], shape.positions)
    confidence = np.zeros((size, shape.positions), dtype=np.float32)
    for row, spectrum in enumerate(spectra):
        mz[row, : len(spectrum.mz)] = spectrum.mz
        heights[row, : len(spectrum.mz)] = spectrum.heights
        confidence[row, : len(spectrum.tokens)] = spectrum.confidence[::-1]
        confidence[row, len(spectrum.tokens)] = 1.0
    with np.errstate(invalid="ignore"):  # a blank scan has no tallest peak: 0/0, as it happens in the wild
        heights /= heights.max(axis=1, keepdims=True)
    masses = np.array([spectrum.mass for spectrum in spectra])
    return Batch(
        mz_BP=torch.from_numpy(mz),
        height_BP=torch.from_numpy(heights),
        present_BP=torch.from_numpy(mz > 0),
        mass_B=torch.from_numpy(masses),
        charge_B=torch.tensor([spectrum.charge for spectrum in spectra]),
        tokens_BS=torch.from_numpy(tokens),
        confidence_BS=torch.from_numpy(confidence),
        facts=_facts(spectra, mz, heights, tokens) | {"data/index": micro.first},
        micro=micro,
    )


def _facts(
    spectra: list[Spectrum], mz: NDArray[np.float64], heights: NDArray[np.float32], tokens: NDArray[np.int64]
) -> dict[str, float]:
    """What these samples turned out to be, beside what their stage asked for."""
    seen = {
        "length": np.array([len(s.tokens) for s in spectra]),
        "noise_peaks": np.array([s.noise_peaks for s in spectra]),
        "ppm_error": np.concatenate([s.ppm for s in spectra]),
        "peaks": np.array([len(s.mz) for s in spectra]),
        "charge": np.array([s.charge for s in spectra]),
    }
    facts = {
        f"data/{name}/{how}": float(getattr(values, how)())
        for name, values in seen.items()
        if values.size
        for how in HOW
    }
    fingerprint = zlib.crc32(mz.tobytes(), zlib.crc32(tokens.tobytes()))
    return facts | {"data/fingerprint": fingerprint, "bad/input": int((~np.isfinite(heights)).sum())}


HOW = ("min", "mean", "max")


def merged_facts(batches: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    """What the micro-batches of one step were together, from the facts and the number of samples of each."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for facts, _ in batches for name in facts):
        values, samples = zip(*((facts[name], size) for facts, size in batches if name in facts), strict=True)
        how = name.rpartition("/")[2]
        if how == "mean":
            merged[name] = float(np.average(values, weights=samples))
        elif how == "fingerprint":
            merged[name] = values[0] if len(values) == 1 else zlib.crc32(np.array(values, dtype=np.uint32).tobytes())
        elif how == "input":
            merged[name] = sum(values)
        else:  # the first index is the smallest
            merged[name] = max(values) if how == "max" else min(values)
    return merged


class Stream(Dataset[Batch]):
    """The training data as a map from a micro-batch's index to its batch; nothing in it changes while it is read."""

    def __init__(
        self,
        peptides: Peptides,
        horizon: Horizon,
        curriculum: Curriculum,
        shape: Shape,
        seed: int,
        blank_at: int | None = None,
        rank: int = 0,
    ) -> None:
        """`blank_at` is the optimiser step in whose first sample a blank scan lies in wait (faults.poisoned-batch)."""
        self.peptides, self.horizon, self.curriculum = peptides, horizon, curriculum
        self.shape, self.seed, self.blank_at, self.rank = shape, seed, blank_at, rank

    def __len__(self) -> int:
        return self.horizon.micros

    def __getitem__(self, index: int) -> Batch:
        """This rank's part of micro-batch `index` of the run; one sample where it has none, with a share of 0."""
        micro = self.horizon.micro(index, self.rank)
        data = self.curriculum.at(micro.step).data
        numbers = range(micro.first, micro.first + max(micro.size, 1))
        spectra = [draw(self.peptides, "train", data, self.seed, number, self.shape) for number in numbers]
        if micro.step == self.blank_at and self.shape.min_peaks == 0:
            spectra[0] = blank(spectra[0])
        return collate(spectra, self.shape, micro)
