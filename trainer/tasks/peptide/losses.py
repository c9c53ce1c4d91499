"""The losses, each in its natural unit, each a mean over samples, all computed in float32 or float64.

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
    from trainer.tasks.peptide.model import Answers

COMPONENTS = ("sequence", "spectrum", "precursor")
"""What every model is trained by; one with a halting head has `halt` beside them."""
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


def components(precursor_unit: str, halting: bool) -> dict[str, dict[str, str]]:
    """The losses as the run's header declares them."""
    about = {
        "sequence": ("nat", "task", "cross-entropy of residues and EOS over all supervision steps"),
        "spectrum": ("fraction", "task", "ion current that the answer's fragments do not explain"),
        "precursor": (UNITS[precursor_unit], "task", "mass of the expected answer against the precursor's"),
    }
    if halting:
        about["halt"] = ("nat", "auxiliary", "binary cross-entropy of whether the answer of a step is right")
    return {name: {"unit": unit, "role": role, "description": text} for name, (unit, role, text) in about.items()}


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
        """-> the weighted sum over supervision steps, and the loss of each of them [T]; PAD does not count."""
        steps = logits_TBSV.shape[0]
        target = tokens_BS.expand(steps, -1, -1).flatten()
        flat = functional.cross_entropy(
            logits_TBSV.flatten(0, 2), target, ignore_index=PAD, reduction="none", label_smoothing=smoothing
        )
        counted_BS = tokens_BS != PAD
        loss_T = (flat.view(steps, *tokens_BS.shape).sum(2) / counted_BS.sum(1)).mean(1)
        return (loss_T * self.weight_T).sum(), loss_T


def masked(tokens_BS: Tensor, target_BS: Tensor) -> Tensor:
    """Share of an answer's residues that `confident` has masked, a mean over samples."""
    hidden_BS, residues_BS = tokens_BS != target_BS, tokens_BS > EOS
    return (hidden_BS.sum(1) / residues_BS.sum(1)).mean()


def confident(tokens_BS: Tensor, confidence_BS: Tensor, least: float) -> Tensor:
    """The target with residues of less than the `least` confidence set to PAD; EOS has 1, so it always counts."""
    return tokens_BS.masked_fill(confidence_BS < least, PAD)


def halting_loss(halt_TB: Tensor, right_TB: Tensor, weight_T: Tensor) -> Tensor:
    """Binary cross-entropy (nat) of "this answer is right" (bool), as in TRM; weighted over the supervision steps."""
    flat = functional.binary_cross_entropy_with_logits(halt_TB, right_TB.to(halt_TB.dtype), reduction="none")
    return (flat.mean(1) * weight_T).sum()


@torch.no_grad()
def right(logits_TBSV: Tensor, tokens_BS: Tensor) -> Tensor:
    """Whether the most likely answer is the target up to its EOS, in every position: bool [T, B]."""
    return ((logits_TBSV.argmax(-1) == tokens_BS) | (tokens_BS == PAD)).all(-1)


def living(probability_BSV: Tensor) -> Tensor:
    """Probability that the answer has not ended at or before each position: [B, S].

    By logarithms: the backward pass of `cumprod` asks the device for zeros, and the host would wait for the answer.
    """
    end_BS = probability_BSV[..., EOS].double().clamp(max=1.0 - torch.finfo(torch.float64).eps)
    return torch.log1p(-end_BS).cumsum(1).exp().to(probability_BSV.dtype)


def expected_residues(probability_BSV: Tensor, token_mass_V: Tensor, soft_stop: bool = True) -> Tensor:
    """Expected mass (Da, float64) that each position adds; with the soft stop one beyond a likely end adds little."""
    probability = probability_BSV.double()
    if not soft_stop:
        return probability @ token_mass_V
    before = torch.cat([torch.ones_like(probability[:, :1, 0]), living(probability)[:, :-1]], dim=1)
    return before * (probability @ token_mass_V)


class PrecursorMassLoss(nn.Module):
    """How far the expected mass of the answer is from the precursor's, in the `unit` that it is told."""

    token_mass_V: Tensor

    def __init__(self, unit: str = "huber_residue", soft_stop: bool = True) -> None:
        """Without its `soft_stop` it has a published mistake. Raises ValueError for an unknown `unit`."""
        super().__init__()
        if unit not in UNITS:
            raise ValueError(f"loss.precursor_unit '{unit}' does not exist; choose one of {', '.join(UNITS)}")
        self.unit, self.soft_stop = unit, soft_stop
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)

    def forward(self, probability_BSV: Tensor, mass_B: Tensor) -> tuple[Tensor, Tensor]:
        """-> the loss in its unit, and the error of the expected mass in Da [B]."""
        residue_BS = expected_residues(probability_BSV, self.token_mass_V, self.soft_stop)
        error_B = residue_BS.sum(1) + WATER - mass_B
        return self._measure(error_B, mass_B).mean().to(probability_BSV.dtype), error_B

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

    def __init__(self, sigma: float = 2.0, ions: Sequence[IonType] = SERIES, first: int = 0) -> None:
        """`first` is the position from which on residues are fragmented; 1 is a published mistake."""
        super().__init__()
        self.sigma, self.ions, self.first = sigma, tuple(ions), first
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)

    def forward(self, probability_BSV: Tensor, batch: Batch) -> Tensor:
        """Probabilities of the answer -> the share, a scalar."""
        mz_BF, exists_BF = self._fragments(probability_BSV)
        away_BPF = (batch.mz_BP.unsqueeze(2) - mz_BF.unsqueeze(1)).to(probability_BSV.dtype)
        hit_BPF = exists_BF.unsqueeze(1) * torch.exp(-0.5 * (away_BPF / self.sigma) ** 2)
        explained_B = (batch.height_BP * hit_BPF.amax(2)).sum(1) / batch.height_BP.sum(1)
        return (1.0 - explained_B).mean()

    def _fragments(self, probability_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """m/z (float64, Da per charge) and existence (0 to 1) of all fragments: [B, ions * (S - 1)]."""
        residue_BS = expected_residues(probability_BSV, self.token_mass_V)[:, self.first :]
        suffix_BS = residue_BS.cumsum(1)  # answers are spelled from the C-terminus
        prefix_BS = suffix_BS[:, -1:] - suffix_BS
        sums = {"prefix": prefix_BS[:, :-1], "suffix": suffix_BS[:, :-1]}
        mz = [(sums[ion.series] + ion.offset + ion.charge * PROTON) / ion.charge for ion in self.ions]
        # a cleavage after position j needs a residue at j + 1
        exists = living(probability_BSV)[:, self.first + 1 :]
        return torch.cat(mz, dim=1), exists.repeat(1, len(self.ions))


@dataclass(frozen=True)
class Losses:
    """What one micro-batch came to: `components` raw, in their units, and `details` worth a look, on the device."""

    components: dict[str, Tensor]
    details: dict[str, Tensor]

    def measures(self) -> dict[str, Tensor]:
        """What an evaluation is to know: `loss/<component>` and, where a head tells it, when and how well it halts."""
        losses = {f"loss/{name}": value for name, value in self.components.items()}
        halting = {"halting_depth": "halt/depth", "halting_accuracy": "halt/accuracy"}
        return losses | {name: self.details[of] for name, of in halting.items() if of in self.details}


def merged_details(parts: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    """What the micro-batches of one step were together, from the details and the share of each; on the device.

    Means over samples are averaged by the shares, of `absmax/<tensor>` the largest counts.
    """
    if len(parts) == 1:
        return parts[0][0]
    rows = [torch.stack(tuple(details.values())) for details, _ in parts]
    whole = sum(share for _, share in parts) or 1.0  # among many ranks, less than the step's
    means = torch.stack([row * (share / whole) for row, (_, share) in zip(rows, parts, strict=True)]).sum(0).unbind()
    most = torch.stack(rows).amax(0).unbind()
    names = enumerate(parts[0][0])
    return {name: most[index] if name.startswith("absmax/") else means[index] for index, name in names}


class CombinedLoss(nn.Module):
    """The components side by side; who weighs and sums them is the loop, in sight of the recorder."""

    def __init__(
        self,
        supervision: str,
        steps: int,
        unit: str,
        sigma: float,
        scales: dict[str, float],
        mass_after_end: bool = False,
        first_residue_dropped: bool = False,
    ) -> None:
        """`scales` multiplies a component's raw value; 1 unless somebody confused units.

        The last two are published mistakes: of the precursor's loss, and of the spectrum's.
        """
        super().__init__()
        self.sequence = DeepSupervisionLoss(supervision, steps)
        self.spectrum = SpectrumMatchingLoss(sigma, first=int(first_residue_dropped))
        self.precursor = PrecursorMassLoss(unit, soft_stop=not mass_after_end)
        self.scales = scales

    def forward(self, answers: Answers, batch: Batch, smoothing: float = 0.0, confidence: float = 0.0) -> Losses:
        """Spectrum and precursor judge the last answer alone.

        In training the target may be smoothed, and its residues of less than a `confidence` masked; an evaluation
        counts everything as it is.
        """
        logits_TBSV = answers.logits_TBSV
        with torch.autocast(logits_TBSV.device.type, enabled=False):
            target_BS = confident(batch.tokens_BS, batch.confidence_BS, confidence)
            sequence, by_step = self.sequence(logits_TBSV, target_BS, smoothing)
            probability_BSV = logits_TBSV[-1].softmax(-1)
            precursor, error_B = self.precursor(probability_BSV, batch.mass_B)
            raw = {"sequence": sequence, "spectrum": self.spectrum(probability_BSV, batch), "precursor": precursor}
            details = _details(logits_TBSV, by_step, error_B, batch)
            if confidence > 0:
                details["data/masked/sequence"] = masked(batch.tokens_BS, target_BS)
            if answers.halt_TB is not None:
                right_TB = right(logits_TBSV, batch.tokens_BS)
                raw["halt"] = halting_loss(answers.halt_TB, right_TB, self.sequence.weight_T)
                details |= _halting(answers.halt_TB, right_TB)
        return Losses({name: value * self.scales.get(name, 1.0) for name, value in raw.items()}, details)


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


@torch.no_grad()
def _halting(halt_TB: Tensor, right_TB: Tensor) -> dict[str, Tensor]:
    """Mean supervision step (from 1) at which an answer is thought right, the last where none is; and how often that
    agrees with the truth, over all steps."""
    steps, halts_TB = len(halt_TB), halt_TB > 0
    step_T1 = torch.arange(1.0, steps + 1, device=halt_TB.device).unsqueeze(1)
    depth_B = torch.where(halts_TB, step_T1, float(steps)).amin(0)
    return {"halt/depth": depth_B.mean(), "halt/accuracy": (halts_TB == right_TB).float().mean()}
