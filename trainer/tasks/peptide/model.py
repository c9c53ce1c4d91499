"""The recursive transformer: an encoder reads the peaks once, a small core thinks about the answer again and again.

After the Tiny Recursive Model (Jolicoeur-Martineau 2025): one core for latent and answer steps, a carry that is
detached between supervision steps, a head that tells when to halt. The end is a token to be predicted: the true length
is never given to the model.
Suffixes of tensors: B samples, P peaks, S positions, T supervision steps, V tokens, D width, E features of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from trainer.tasks.peptide.chemistry import EOS, RESIDUE_MASS, VOCABULARY
from trainer.tasks.peptide.encodings import (
    LadderEncoder,
    PeakEncoder,
    PrecursorEncoder,
    SpectrumGraph,
    residue_masses,
)
from trainer.tasks.peptide.layers import Block, Head, Keys, KeyValue, initialise

if TYPE_CHECKING:
    from trainer.tasks.peptide.data import Batch

TYPICAL_RESIDUE = 111.0  # Da: what the mean residue of a protein weighs; the first answer is a ladder of these
HALTING_BIAS = -5.0  # the logit that halting starts from, as in TRM: no answer is thought right before it is learned


@dataclass(frozen=True)
class Size:
    """One row of the table of model sizes."""

    width: int
    heads: int
    encoder_layers: int
    core_layers: int
    supervision_steps: int
    latent_steps: int

    @property
    def step_passes(self) -> int:
        """Passes through the core in one supervision step: the last of them is the answer's."""
        return self.latent_steps + 1

    @property
    def passes(self) -> int:
        """Passes through the core in all supervision steps."""
        return self.supervision_steps * self.step_passes


SIZES = {
    "tiny": Size(128, 4, 2, 2, 4, 2),
    "small": Size(256, 4, 4, 2, 8, 3),
    "medium": Size(640, 10, 4, 3, 8, 4),
    "large": Size(896, 14, 5, 4, 8, 6),
}
POSITIONS = 32
"""The longest answer that weights exist for, its EOS included; a batch may have room for fewer."""

ANSWERS = "answers of all supervision steps, which every head reads, float32 [T, B, S, D]"
LOGITS = "logits of all supervision steps, float32 [T, B, S, V]"


class Answers(NamedTuple):
    """What a forward pass says. A tuple, because DDP and FSDP look for tensors in tuples."""

    logits_TBSV: Tensor
    """Of all supervision steps, float32; the last is the answer."""
    halt_TB: Tensor | None
    """Logits of "this answer is right already", float32; None without a halting head."""
    at: Tensor
    """The last activation that all heads share: the answers [T, B, S, D] in float32; with one head its logits."""


def carry_cuts(bptt: str, size: Size) -> tuple[int, ...]:
    """Truncated backpropagation through time (Williams and Peng 1990), in passes through the core.

    `bptt` is `full`, `trm` or a whole number k. The supervision steps are taken in chunks of ceil(k / step_passes),
    counted back from the last one, and the carry (thought and answer) is detached k passes before each chunk's last
    answer. So no gradient goes back through more than k passes, that of a chunk's last answer through exactly k (or all
    that there are); where k is at most `step_passes`, that of every answer does. `trm` is k = step_passes, `full` is
    k = passes; more than that is full too. What a pass is given (encoder, ladder, positions) is never detached.

    -> for each supervision step, how many passes before its answer the carry is detached; 0 where it is not.
    Raises ValueError for a `bptt` that is none of these.
    """
    known = {"trm": size.step_passes, "full": size.passes}
    reach = known.get(bptt) or (int(bptt) if bptt.isdecimal() else 0)
    if reach < 1:
        raise ValueError(f"model.bptt '{bptt}' does not exist; choose trm, full or a number of core passes from 1")
    chunk = -(-reach // size.step_passes)
    cut = reach - (chunk - 1) * size.step_passes
    return tuple(cut if left % chunk == 0 else 0 for left in range(size.supervision_steps, 0, -1))


class SpectrumEncoder(nn.Module):
    """A transformer over peaks."""

    def __init__(self, size: Size, masses: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.peaks = PeakEncoder(size.width, masses)
        self.precursor = PrecursorEncoder(size.width, masses)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, crossed=False) for _ in range(size.encoder_layers))
        self.norm = nn.RMSNorm(size.width)

    def forward(self, graph: SpectrumGraph, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """-> memory of the peaks [B, P, D] and the precursor's vector [B, 1, D]."""
        precursor_B1D = self.precursor(batch.mass_B, batch.charge_B).unsqueeze(1)
        x_BPD = self.peaks(graph, batch.height_BP) + precursor_B1D
        for block in self.blocks:
            x_BPD = block(x_BPD, mask)
        return self.norm(x_BPD), precursor_B1D


class RecursiveCore(nn.Module):
    """The shared block: `latent_steps` updates of the thought, one of the answer, in each supervision step."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.latent_steps = size.latent_steps
        self.memory = nn.ModuleList(KeyValue(size.width, size.heads) for _ in range(size.core_layers))
        self.blocks = nn.ModuleList(Block(size.width, size.heads, crossed=True) for _ in range(size.core_layers))
        self.norm = nn.RMSNorm(size.width)

    def forward(
        self, thought: Tensor, answer: Tensor, given: Tensor, keys: list[Keys], mask: Tensor, cut: int
    ) -> tuple[Tensor, Tensor]:
        """One supervision step on thought, answer and what is given, each [B, S, D]; the carry is detached at `cut`.

        `keys` are those of the encoder's memory, one pair a layer (`self.memory`); `cut` as in `carry_cuts`.
        """
        for left in range(self.latent_steps, -1, -1):
            if left + 1 == cut:
                thought, answer = thought.detach(), answer.detach()
            if left:
                thought = self._think(thought + answer + given, keys, mask)
        return thought, self._think(thought + answer, keys, mask)

    def _think(self, x_BSD: Tensor, keys: list[Keys], mask: Tensor) -> Tensor:
        for block, pair in zip(self.blocks, keys, strict=True):
            x_BSD = block(x_BSD, mask, pair)
        return self.norm(x_BSD)  # type: ignore[no-any-return]


class PeptideModel(nn.Module):
    """Peaks in, an answer for every position out, once a supervision step."""

    residue_mass_R: Tensor
    token_mass_V: Tensor

    def __init__(
        self, size: Size, bptt: str = "trm", halting: bool = True, masses: torch.dtype = torch.float64
    ) -> None:
        """`masses` as in `MassEncoding`. Raises ValueError for an unknown `bptt` (`carry_cuts`)."""
        super().__init__()
        self.supervision_steps, self.cuts, self.masses = size.supervision_steps, carry_cuts(bptt, size), masses
        self.encoder = SpectrumEncoder(size, masses)
        self.ladder = LadderEncoder(size.width, masses)
        self.positions = nn.Embedding(POSITIONS, size.width)
        self.core = RecursiveCore(size)
        # the evidence goes to the head as well: a rung that the spectrum holds says by itself which residue is next
        self.head = Head(size.width + LadderEncoder.evidence, VOCABULARY, bias=False)
        self.register_buffer("residue_mass_R", residue_masses(), persistent=False)
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)
        initialise(self)
        self.halt = halting_head(size.width) if halting else None  # last: the other weights are the same without it
        self.shared = halting  # whether `at` is what both heads read, or the logits, which the halting head is not in

    @property
    def gradient_at(self) -> str:
        """What `at` is, in words."""
        return ANSWERS if self.shared else LOGITS

    def forward(self, batch: Batch) -> Answers:
        """All supervision steps, in training and evaluation alike."""
        with torch.autocast(batch.mz_BP.device.type, enabled=False):
            graph = SpectrumGraph(batch.mz_BP, batch.present_BP, batch.mass_B, self.residue_mass_R, self.masses)
        mask = batch.present_BP[:, None, None, :]
        memory, precursor = self.encoder(graph, batch, mask)
        keys = [layer(memory) for layer in self.core.memory]
        given = self.positions.weight[: batch.tokens_BS.shape[1]] + precursor
        thought, answer = torch.zeros_like(given), torch.zeros_like(given)
        residue_BS = torch.full_like(given[..., 0], TYPICAL_RESIDUE, dtype=torch.float64)
        answers, evidences = [], []
        for cut in self.cuts:
            ladder, evidence = self.ladder(graph, residue_BS)
            thought, answer = self.core(thought, answer, given + ladder, keys, mask, cut)
            residue_BS = self._residues(answer, evidence)
            answers.append(answer)
            evidences.append(evidence)
        at = torch.stack(answers).to(self.head.weight.dtype)
        logits_TBSV = self.head(torch.cat([at, torch.stack(evidences)], dim=-1))
        halt_TB = None if self.halt is None else self.halt(at[:, :, 0]).sum(-1)  # of one; FSDP wants no view
        return Answers(logits_TBSV, halt_TB, at if self.shared else logits_TBSV)

    @torch.no_grad()
    def _residues(self, answer_BSD: Tensor, evidence_BSE: Tensor) -> Tensor:
        """Masses of the residues that an answer spells (float64, Da), 0 from its first EOS on."""
        token_BS = self.head(torch.cat([answer_BSD, evidence_BSE], dim=-1)).argmax(-1)
        ended_BS = (token_BS == EOS).cumsum(1) > 0
        return torch.where(ended_BS, 0.0, self.token_mass_V[token_BS])


def halting_head(width: int) -> Head:
    """From the answer's first position to the logit that it is right: TRM's, with its zero weights and its bias."""
    head = Head(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, HALTING_BIAS)
    return head
