"""The three losses, each in its natural unit, each a mean over samples, all computed in float32 or float64.

A mean over samples (within one, over its tokens) makes accumulation exact: micro-batches add up by their sizes.
Suffixes of tensors: B samples, P peaks, S positions, T supervision steps, V tokens, F fragments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.tasks.peptide.chemistry import EOS, PAD, PROTON, RESIDUE_MASS, WATER
from trainer.tasks.peptide.spectra import SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.tasks.peptide.chemistry import IonType
    from trainer.tasks.peptide.data import Batch

COMPONENTS = ("sequence", "spectrum", "precursor")
SUPERVISION = ("uniform", "linear", "exponential")
TYPICAL_RESIDUE = 110.0  # Da: the unit of `huber_residue`
HUBER_BETA = 0.1  # residues (11 Da): below it the loss is quadratic
UNITS = {
    "huber_residue": "residue of 110 Da",
    "log1p_ppm": "log(1 + ppm / 1e5)",
    "clamp_ppm": "ppm, at most 100",
    "raw_ppm": "ppm",
}
"""What `loss.precursor_unit` may be; only the first is bounded in its gradient at any error (facts, section 5)."""


def components(precursor_unit: str) -> dict[str, dict[str, str]]:
    """The losses as the run's header declares them."""
    about = {
        "sequence": ("nat", "cross-entropy of residues and EOS over all supervision steps"),
        "spectrum": ("fraction", "ion current that the answer's fragments do not explain"),
        "precursor": (UNITS[precursor_unit], "mass of the expected answer against the precursor's"),
    }
    return {name: {"unit": unit, "description": text} for name, (unit, text) in about.items()}


def supervision_weights(kind: str, steps: int) -> Tensor:
    """Weights of the supervision steps, summing to 1: float32 [T]. Raises ValueError for an unknown `kind`."""
    if kind not in SUPERVISION:
        raise ValueError(f"loss.supervision '{kind}' does not exist; choose one of {', '.join(SUPERVISION)}")
    step = torch.arange(1.0, steps + 1)
    weights = {"uniform": torch.ones(steps), "linear": step, "exponential": torch.exp(0.5 * step)}[kind]
    return weights / weights.sum()


class DeepSupervisionLoss(nn.Module):
    """Cross-entropy (nat a token) at every supervision step: residues and EOS count, what follows EOS does not."""

    weight_T: Tensor

    def __init__(self, kind: str, steps: int) -> None:
        super().__init__()
        self.register_buffer("weight_T", supervision_weights(kind, steps), persistent=False)

    def forward(self, logits_TBSV: Tensor, tokens_BS: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """-> the weighted sum over supervision steps, and the loss of each of them [T]."""
        steps = logits_TBSV.shape[0]
        target = tokens_BS.expand(steps, -1, -1).flatten()
        flat = functional.cross_entropy(
            logits_TBSV.flatten(0, 2), target, ignore_index=PAD, reduction="none", label_smoothing=smoothing
        )
        counted_BS = tokens_BS != PAD
        loss_T = (flat.view(steps, *tokens_BS.shape).sum(2) / counted_BS.sum(1)).mean(1)
        return (loss_T * self.weight_T).sum(), loss_T


def living(probability_BSV: Tensor) -> Tensor:
    """Probability that the answer has not ended at or before each position: [B, S]."""
    return (1.0 - probability_BSV[..., EOS]).cumprod(1)


def expected_residues(probability_BSV: Tensor, token_mass_V: Tensor) -> Tensor:
    """Expected mass (Da, float64) that each position adds; soft: a position beyond a likely end adds little."""
    probability = probability_BSV.double()
    before = torch.cat([torch.ones_like(probability[:, :1, 0]), living(probability)[:, :-1]], dim=1)
    return before * (probability @ token_mass_V)


class PrecursorMassLoss(nn.Module):
    """How far the expected mass of the answer is from the precursor's, in the `unit` that it is told."""

    token_mass_V: Tensor

    def __init__(self, unit: str = "huber_residue") -> None:
        """Raises ValueError for an unknown `unit`."""
        super().__init__()
        if unit not in UNITS:
            raise ValueError(f"loss.precursor_unit '{unit}' does not exist; choose one of {', '.join(UNITS)}")
        self.unit = unit
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)

    def forward(self, probability_BSV: Tensor, mass_B: Tensor) -> tuple[Tensor, Tensor]:
        """-> the loss in its unit, and the error of the expected mass in Da [B]."""
        error_B = expected_residues(probability_BSV, self.token_mass_V).sum(1) + WATER - mass_B
        return self._measure(error_B, mass_B).mean().float(), error_B

    def _measure(self, error_B: Tensor, mass_B: Tensor) -> Tensor:
        if self.unit == "huber_residue":
            residues = error_B / TYPICAL_RESIDUE
            return functional.smooth_l1_loss(residues, torch.zeros_like(residues), reduction="none", beta=HUBER_BETA)
        ppm_B = 1e6 * error_B.abs() / mass_B
        if self.unit == "log1p_ppm":
            return torch.log1p(ppm_B / 1e5)
        return ppm_B.clamp(max=100.0) if self.unit == "clamp_ppm" else ppm_B


class SpectrumMatchingLoss(nn.Module):
    """Which share of the observed ion current the answer's fragments do not explain: 0 (all) to 1 (none).

    Every peak counts by its height and by its distance to the nearest fragment, through a Gaussian of `sigma` Da.
    """

    token_mass_V: Tensor

    def __init__(self, sigma: float = 2.0, ions: Sequence[IonType] = SERIES) -> None:
        super().__init__()
        self.sigma, self.ions = sigma, tuple(ions)
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)

    def forward(self, probability_BSV: Tensor, batch: Batch) -> Tensor:
        """Probabilities of the answer -> the share, a scalar."""
        mz_BF, exists_BF = self._fragments(probability_BSV)
        away_BPF = (batch.mz_BP.unsqueeze(2) - mz_BF.unsqueeze(1)).float()
        hit_BPF = exists_BF.unsqueeze(1) * torch.exp(-0.5 * (away_BPF / self.sigma) ** 2)
        explained_B = (batch.height_BP * hit_BPF.amax(2)).sum(1) / batch.height_BP.sum(1)
        return (1.0 - explained_B).mean()

    def _fragments(self, probability_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """m/z (float64, Da per charge) and existence (float32, 0 to 1) of all fragments: [B, ions * (S - 1)]."""
        residue_BS = expected_residues(probability_BSV, self.token_mass_V)
        suffix_BS = residue_BS.cumsum(1)  # answers are spelled from the C-terminus
        prefix_BS = suffix_BS[:, -1:] - suffix_BS
        sums = {"prefix": prefix_BS[:, :-1], "suffix": suffix_BS[:, :-1]}
        mz = [(sums[ion.series] + ion.offset + ion.charge * PROTON) / ion.charge for ion in self.ions]
        # a cleavage after position j needs a residue at j + 1
        exists = living(probability_BSV)[:, 1:]
        return torch.cat(mz, dim=1), exists.repeat(1, len(self.ions))


@dataclass(frozen=True)
class Losses:
    """What one micro-batch came to: `components` raw, in their units, and `details` worth a look, on the device."""

    components: dict[str, Tensor]
    details: dict[str, Tensor]


class CombinedLoss(nn.Module):
    """The components side by side; who weighs and sums them is the loop, in sight of the recorder."""

    def __init__(self, supervision: str, steps: int, unit: str, sigma: float, scales: dict[str, float]) -> None:
        """`scales` multiplies a component's raw value; 1 unless somebody confused units."""
        super().__init__()
        self.sequence = DeepSupervisionLoss(supervision, steps)
        self.spectrum = SpectrumMatchingLoss(sigma)
        self.precursor = PrecursorMassLoss(unit)
        self.scales = scales

    def forward(self, logits_TBSV: Tensor, batch: Batch, smoothing: float = 0.0) -> Losses:
        """Logits of all supervision steps, float32. Spectrum and precursor judge the last answer alone."""
        with torch.autocast(logits_TBSV.device.type, enabled=False):
            sequence, by_step = self.sequence(logits_TBSV, batch.tokens_BS, smoothing)
            probability_BSV = logits_TBSV[-1].softmax(-1)
            spectrum = self.spectrum(probability_BSV, batch)
            precursor, error_B = self.precursor(probability_BSV, batch.mass_B)
        raw = {"sequence": sequence, "spectrum": spectrum, "precursor": precursor}
        scaled = {name: value * self.scales.get(name, 1.0) for name, value in raw.items()}
        return Losses(scaled, _details(logits_TBSV, by_step, error_B, batch))


@torch.no_grad()
def _details(logits_TBSV: Tensor, by_step: Tensor, error_B: Tensor, batch: Batch) -> dict[str, Tensor]:
    log_p = logits_TBSV[-1].log_softmax(-1)
    details = {f"sequence/step_{step}": value for step, value in enumerate(by_step.detach().unbind(), 1)}
    details["absmax/logits"] = logits_TBSV.detach().abs().amax()
    details["logits/entropy"] = -(log_p.exp() * log_p).sum(-1).mean()
    error = error_B.detach().abs()
    details["mass_error/da"] = error.mean().float()
    details["mass_error/ppm"] = (1e6 * error / batch.mass_B).mean().float()
    return details
