"""Masses as features, computed in float64 outside autocast: bfloat16 has a grid of 4 Da at 1,000 Da.

Suffixes of tensors: B samples, P peaks, S positions, N nodes, R residues, D features; K is any number of masses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.tasks.peptide.chemistry import FIRST_RESIDUE, PROTON, RESIDUE_MASS, WATER

SHORTEST, LONGEST = 1e-3, 1e4
"""Wavelengths in Da between which a mass is told; a single long one makes I and N the same (pepTRM's first bug)."""
WAVES = 32
MASSES = torch.float64
"""What masses are held in: 1,000 Da are a million of the shortest waves, and float32 has 4 bits for the last one."""
TOLERANCE = 0.02
"""How near two masses are the same, in Da (standard deviation of the kernel): 15 ppm at 1,300 Da."""

LOUDNESS = 8.0
"""Of a node that is there. Adam moves a weight by no more than the learning rate a step, so a logit that hangs on a
feature of size 1 needs thousands of steps to become sure."""


class MassEncoding(nn.Module):
    """Sine and cosine of a mass at `WAVES` wavelengths from `SHORTEST` to `LONGEST` Da, evenly spaced in logarithm."""

    features = 2 * WAVES
    rates: Tensor

    def __init__(self, masses: torch.dtype = MASSES) -> None:
        """`masses` is what they are held in; less than `MASSES` is a published mistake."""
        super().__init__()
        self.masses = masses
        waves = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), WAVES, dtype=torch.float64)
        self.register_buffer("rates", 2 * math.pi / waves, persistent=False)

    def forward(self, mass_K: Tensor) -> Tensor:
        """Masses float64 [..., K] in Da -> features float32 [..., K, 2 * WAVES]."""
        angle = mass_K.to(self.masses).double().unsqueeze(-1) * self.rates
        return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class SpectrumGraph:
    """Where the peaks of a spectrum may lie on the ladder of suffix masses: each as a y ion and as a b ion.

    A node is the sum of the residues behind a cleavage, in Da. The features that it answers with (is there a node one
    residue further?) are PointNovo's (Qiao et al. 2021), taken from the nearest node instead of from every peak.
    """

    def __init__(
        self,
        mz_BP: Tensor,
        present_BP: Tensor,
        mass_B: Tensor,
        residue_mass_R: Tensor,
        masses: torch.dtype = torch.float64,
    ) -> None:
        """`mz_BP`, `mass_B` and `residue_mass_R` in float64, Da; peaks that are not `present_BP` lie nowhere.

        `masses` is what measured masses are held in, as in `MassEncoding`.
        """
        self.residue_mass_R = residue_mass_R
        self.total_B = mass_B.to(masses).double() - WATER
        fragment_BP = mz_BP.to(masses).double() - PROTON
        self.views = (fragment_BP - WATER, self.total_B[:, None] - fragment_BP)
        nowhere = torch.full_like(fragment_BP, math.inf)
        views = [torch.where(present_BP, view, nowhere) for view in self.views]
        ends = torch.stack([torch.zeros_like(self.total_B), self.total_B], dim=-1)
        self.nodes_BN = torch.cat([*views, ends], dim=-1).sort(dim=-1).values

    def near(self, mass_BK: Tensor) -> Tensor:
        """How near the nearest node is to each mass (Da): float32 [B, K], `LOUDNESS` on it, 0 a few `TOLERANCE` off."""
        at = torch.searchsorted(self.nodes_BN, mass_BK).clamp(1, self.nodes_BN.shape[1] - 1)
        above, below = (self.nodes_BN.gather(1, index) for index in (at, at - 1))
        away = torch.minimum((above - mass_BK).abs(), (mass_BK - below).abs())
        return _near(away)

    def step(self, mass_BK: Tensor, direction: int) -> Tensor:
        """For each mass and residue, whether a node lies one such residue up (1) or down (-1): float32 [B, K, R]."""
        target_BKR = mass_BK.unsqueeze(-1) + direction * self.residue_mass_R
        return self.near(target_BKR.flatten(1)).view(target_BKR.shape)


def _near(away: Tensor) -> Tensor:
    """A Gaussian of a distance in Da."""
    return LOUDNESS * torch.exp(-0.5 * (away / TOLERANCE).float() ** 2)


def _enter(layer: nn.Linear, features: Tensor) -> Tensor:
    """Features, which are float32, into a layer that may have float64 weights: gradients are checked in it."""
    return layer(features.to(layer.weight.dtype))  # type: ignore[no-any-return]


def residue_masses() -> Tensor:
    """Masses of the residues alone, float64 [R], Da."""
    return torch.from_numpy(RESIDUE_MASS[FIRST_RESIDUE:].copy())


class PeakEncoder(nn.Module):
    """A peak as a vector: its m/z, what its complement weighs, its height, and its edges in the spectrum graph."""

    def __init__(self, width: int, masses: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.mass = MassEncoding(masses)
        edges = 2 * 2 * (len(RESIDUE_MASS) - FIRST_RESIDUE)
        self.enter = nn.Linear(2 * MassEncoding.features + 1 + edges, width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)

    def forward(self, graph: SpectrumGraph, height_BP: Tensor) -> Tensor:
        """Graph of the peaks and their heights -> float32 [B, P, width]."""
        seen = [self.mass(view) for view in graph.views]
        edges = [graph.step(view, direction) for view in graph.views for direction in (1, -1)]
        features = torch.cat([*seen, height_BP.sqrt().unsqueeze(-1), *edges], dim=-1)
        return self.leave(nn.functional.silu(_enter(self.enter, features)))  # type: ignore[no-any-return]


class PrecursorEncoder(nn.Module):
    """The precursor as a vector: neutral mass and charge; m/z and charge would have to be multiplied first."""

    def __init__(self, width: int, masses: torch.dtype = torch.float64, charges: int = 8) -> None:
        super().__init__()
        self.mass = MassEncoding(masses)
        self.enter = nn.Linear(MassEncoding.features, width, bias=False)
        self.charge = nn.Embedding(charges, width)

    def forward(self, mass_B: Tensor, charge_B: Tensor) -> Tensor:
        """Neutral masses (Da) and charges -> [B, width]."""
        return _enter(self.enter, self.mass(mass_B)) + self.charge(charge_B)  # type: ignore[no-any-return]


class LadderEncoder(nn.Module):
    """The answer so far, as the masses it puts before and after each position, and what the spectrum says to them."""

    evidence = 2 * (len(RESIDUE_MASS) - FIRST_RESIDUE) + 1

    def __init__(self, width: int, masses: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.mass = MassEncoding(masses)
        self.enter = nn.Linear(3 * MassEncoding.features + self.evidence, width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)

    def forward(self, graph: SpectrumGraph, residue_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Masses of the residues that the answer has (float64, Da, 0 from its EOS on).

        -> vectors [B, S, width], and the evidence for each residue at each position, and for the end, alone: float32
        [B, S, evidence].
        """
        total = graph.total_B[:, None]
        after_BS = residue_BS.cumsum(1)
        before_BS = after_BS - residue_BS
        from_end_BS = total - (after_BS[:, -1:] - after_BS)  # where the position ends, counted from the answer's end
        rungs = [self.mass(rung) for rung in (before_BS, from_end_BS, total - before_BS)]
        ends = _near(total - before_BS).unsqueeze(-1)
        evidence = torch.cat([graph.step(before_BS, 1), graph.step(from_end_BS, -1), ends], dim=-1)
        features = torch.cat([*rungs, evidence], dim=-1)
        return self.leave(nn.functional.silu(_enter(self.enter, features))), evidence
