"""The control experiment: a transformer of equal FLOPs that thinks once, through blocks with weights of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.tasks.peptide.chemistry import VOCABULARY
from trainer.tasks.peptide.encodings import SpectrumGraph, residue_masses
from trainer.tasks.peptide.layers import Block, Head, KeyValue, initialise
from trainer.tasks.peptide.model import LOGITS, POSITIONS, Answers, Size, SpectrumEncoder

if TYPE_CHECKING:
    from trainer.tasks.peptide.data import Batch


class PlainModel(nn.Module):
    """The recursive model unrolled: as many blocks as that one passes through, each once, one answer, no feedback.

    Keys and values of the encoder's memory are shared among the blocks as they are among the passes there, else they
    would cost as much again as the blocks.
    """

    supervision_steps = 1
    halt, gradient_at, shared = None, LOGITS, False
    residue_mass_R: Tensor

    def __init__(self, size: Size, masses: torch.dtype = torch.float64) -> None:
        """`masses` as in `MassEncoding`."""
        super().__init__()
        self.masses = masses
        self.encoder = SpectrumEncoder(size, masses)
        self.positions = nn.Embedding(POSITIONS, size.width)
        self.memory = nn.ModuleList(KeyValue(size.width, size.heads) for _ in range(size.core_layers))
        count = size.core_layers * size.passes
        self.core = nn.ModuleList(Block(size.width, size.heads, crossed=True) for _ in range(count))
        self.norm = nn.RMSNorm(size.width)
        self.head = Head(size.width, VOCABULARY, bias=False)
        self.register_buffer("residue_mass_R", residue_masses(), persistent=False)
        initialise(self)

    def forward(self, batch: Batch) -> Answers:
        """One answer: T = 1."""
        with torch.autocast(batch.mz_BP.device.type, enabled=False):
            graph = SpectrumGraph(batch.mz_BP, batch.present_BP, batch.mass_B, self.residue_mass_R, self.masses)
        mask = batch.present_BP[:, None, None, :]
        memory, precursor = self.encoder(graph, batch, mask)
        keys = [layer(memory) for layer in self.memory]
        x_BSD = self.positions.weight[: batch.tokens_BS.shape[1]] + precursor
        for number, block in enumerate(self.core):
            x_BSD = block(x_BSD, mask, keys[number % len(keys)])
        logits_TBSV = self.head(self.norm(x_BSD))[None]
        return Answers(logits_TBSV, None, logits_TBSV)
