"""The recursive transformer: an encoder reads the peaks once, a small core thinks about the answer again and again.

After the Tiny Recursive Model (Jolicoeur-Martineau 2025): one core for latent and answer steps, a carry that is
detached between supervision steps. Pre-norm, RMSNorm, SwiGLU, SDPA, no bias. The end is a token to be predicted: the
true length is never given to the model.
Suffixes of tensors: B samples, P peaks, S positions, T supervision steps, V tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.tasks.peptide.chemistry import EOS, RESIDUE_MASS, VOCABULARY
from trainer.tasks.peptide.encodings import (
    LadderEncoder,
    PeakEncoder,
    PrecursorEncoder,
    SpectrumGraph,
    residue_masses,
)

if TYPE_CHECKING:
    from trainer.tasks.peptide.data import Batch

TYPICAL_RESIDUE = 111.0  # Da: what the mean residue of a protein weighs; the first answer is a ladder of these
EXPANSION = 8 / 3  # of SwiGLU: as many parameters as a plain layer four times as wide
EXPANSION_MULTIPLE = 64  # widths that matrix units like


@dataclass(frozen=True)
class Size:
    """One row of the table of model sizes."""

    width: int
    heads: int
    encoder_layers: int
    core_layers: int
    supervision_steps: int
    latent_steps: int


SIZES = {
    "tiny": Size(128, 4, 2, 2, 4, 2),
    "small": Size(256, 4, 4, 2, 8, 3),
    "medium": Size(640, 10, 4, 3, 8, 4),
    "large": Size(896, 14, 5, 4, 8, 6),
}
POSITIONS = 32
"""The longest answer that weights exist for, its EOS included; a batch may have room for fewer."""
BPTT = ("trm", "full")
"""How far gradients reach back: `trm` through one supervision step, `full` through all of them."""


class Attention(nn.Module):
    """Multi-head attention from one sequence to another, or to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, keys: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        """`keys` (from `remember`) and `mask` (bool [B, 1, 1, P]) belong to the other sequence; own ones if absent."""
        key, value = keys or self.remember(x_BSD)
        query = self._split(self.query(x_BSD))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def remember(self, memory_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, P, D/H] of a sequence; a recursive core computes them once for all its passes."""
        key, value = self.key_value(memory_BPD).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def _split(self, x_BSD: Tensor) -> Tensor:
        batch, length, width = x_BSD.shape
        return x_BSD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated feed-forward layer of Shazeer (2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-round(width * EXPANSION) // EXPANSION_MULTIPLE) * EXPANSION_MULTIPLE
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        gate, up = self.gate_up(x_BSD).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, attention to a memory where `crossed`, feed-forward; each normalised first and added."""

    def __init__(self, size: Size, crossed: bool) -> None:
        super().__init__()
        self.self_norm, self.attention = nn.RMSNorm(size.width), Attention(size.width, size.heads)
        self.cross_norm = nn.RMSNorm(size.width) if crossed else None
        self.cross = Attention(size.width, size.heads) if crossed else None
        self.feed_norm, self.feed = nn.RMSNorm(size.width), SwiGLU(size.width)

    def forward(self, x_BSD: Tensor, mask: Tensor, keys: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`mask` hides absent peaks: of this sequence in the encoder, of the memory `keys` in the core."""
        x_BSD = x_BSD + self.attention(self.self_norm(x_BSD), mask=None if keys else mask)
        if self.cross is not None and self.cross_norm is not None:
            x_BSD = x_BSD + self.cross(self.cross_norm(x_BSD), keys, mask)
        return x_BSD + self.feed(self.feed_norm(x_BSD))  # type: ignore[no-any-return]


class SpectrumEncoder(nn.Module):
    """A transformer over peaks."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.peaks = PeakEncoder(size.width)
        self.precursor = PrecursorEncoder(size.width)
        self.blocks = nn.ModuleList(Block(size, crossed=False) for _ in range(size.encoder_layers))
        self.norm = nn.RMSNorm(size.width)

    def forward(self, graph: SpectrumGraph, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """-> memory of the peaks [B, P, width] and the precursor's vector [B, 1, width]."""
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
        self.blocks = nn.ModuleList(Block(size, crossed=True) for _ in range(size.core_layers))
        self.norm = nn.RMSNorm(size.width)

    def remember(self, memory_BPD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the memory, one pair a layer."""
        return [block.cross.remember(memory_BPD) for block in self.blocks]  # type: ignore[union-attr,operator]

    def forward(
        self, thought: Tensor, answer: Tensor, given: Tensor, keys: list[tuple[Tensor, Tensor]], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One supervision step on thought, answer and what is given, each [B, S, width]."""
        for _ in range(self.latent_steps):
            thought = self._think(thought + answer + given, keys, mask)
        return thought, self._think(thought + answer, keys, mask)

    def _think(self, x_BSD: Tensor, keys: list[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
        for block, pair in zip(self.blocks, keys, strict=True):
            x_BSD = block(x_BSD, mask, pair)
        return self.norm(x_BSD)  # type: ignore[no-any-return]


class PeptideModel(nn.Module):
    """Peaks in, an answer for every position out, once a supervision step."""

    residue_mass_R: Tensor
    token_mass_V: Tensor

    def __init__(self, size: Size, bptt: str = "trm") -> None:
        """Raises ValueError for an unknown `bptt`."""
        super().__init__()
        if bptt not in BPTT:
            raise ValueError(f"model.bptt '{bptt}' does not exist; choose one of {', '.join(BPTT)}")
        self.size, self.bptt = size, bptt
        self.encoder = SpectrumEncoder(size)
        self.ladder = LadderEncoder(size.width)
        self.positions = nn.Embedding(POSITIONS, size.width)
        self.core = RecursiveCore(size)
        # the evidence goes to the head as well: a rung that the spectrum holds says by itself which residue is next
        self.head = nn.Linear(size.width + LadderEncoder.evidence, VOCABULARY, bias=False)
        self.register_buffer("residue_mass_R", residue_masses(), persistent=False)
        self.register_buffer("token_mass_V", torch.from_numpy(RESIDUE_MASS.copy()), persistent=False)
        self.apply(_initialise)
        for block in [*self.encoder.blocks, *self.core.blocks]:
            _silence(block)

    def forward(self, batch: Batch) -> Tensor:
        """-> logits of all supervision steps, float32 [T, B, S, V]; the last is the answer."""
        with torch.autocast(batch.mz_BP.device.type, enabled=False):
            graph = SpectrumGraph(batch.mz_BP, batch.present_BP, batch.mass_B, self.residue_mass_R)
        mask = batch.present_BP[:, None, None, :]
        memory, precursor = self.encoder(graph, batch, mask)
        keys = self.core.remember(memory)
        given = self.positions.weight[: batch.tokens_BS.shape[1]] + precursor
        thought, answer = torch.zeros_like(given), torch.zeros_like(given)
        residue_BS = torch.full_like(given[..., 0], TYPICAL_RESIDUE, dtype=torch.float64)
        logits = []
        for _ in range(self.size.supervision_steps):
            ladder, evidence = self.ladder(graph, residue_BS)
            thought, answer = self.core(thought, answer, given + ladder, keys, mask)
            logits.append(self.head(torch.cat([answer, evidence], dim=-1)).float())
            residue_BS = self._residues(logits[-1])
            if self.bptt == "trm":
                thought, answer = thought.detach(), answer.detach()
        return torch.stack(logits)

    def _residues(self, logits_BSV: Tensor) -> Tensor:
        """Masses of the residues that an answer spells (float64, Da), 0 from its first EOS on."""
        token_BS = logits_BSV.detach().argmax(-1)
        ended_BS = (token_BS == EOS).cumsum(1) > 0
        return torch.where(ended_BS, 0.0, self.token_mass_V[token_BS])


def _initialise(module: nn.Module) -> None:
    """Truncated normal by fan-in; embeddings small, so that no position starts out louder than a peak."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def _silence(block: nn.Module) -> None:
    """Begin with residual branches that add nothing: the first passes of the recursion are then the identity."""
    for name, parameter in block.named_parameters():
        if name.endswith(("out.weight", "down.weight")):
            nn.init.zeros_(parameter)
