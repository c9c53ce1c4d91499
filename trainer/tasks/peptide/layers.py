"""What the models are made of. Pre-norm, RMSNorm, SwiGLU, SDPA, no bias, one matrix a Linear layer.

Queries, keys and values, gate and up are not fused: Muon orthogonalises every matrix by itself. Keys and values stand
apart from the attention that reads them, since a core that reads one memory again and again computes them once.
Suffixes of tensors: B samples, P positions read, S positions reading, D width, H heads.
"""

from __future__ import annotations

import torch
import torch._dynamo.config as dynamo
import torch._functorch.config as functorch
from torch import Tensor, nn
from torch.nn import functional

EXPANSION = 8 / 3  # of SwiGLU: as many parameters as a plain layer four times as wide
EXPANSION_MULTIPLE = 64  # widths that matrix units like

Keys = tuple[Tensor, Tensor]
"""Keys and values of a sequence, each [B, H, P, D / H]."""


class KeyValue(nn.Module):
    """What attention reads of a sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, x_BPD: Tensor) -> Keys:
        """[B, P, D] -> its keys and values."""
        return _split(self.key(x_BPD), self.heads), _split(self.value(x_BPD), self.heads)


class Attention(nn.Module):
    """Multi-head attention from a sequence to the keys and values of another, or of itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, keys: Keys, mask: Tensor | None = None) -> Tensor:
        """-> [B, S, D]; `mask` (bool [B, 1, 1, P]) is True where something is to be read."""
        query = _split(self.query(x_BSD), self.heads)
        seen = functional.scaled_dot_product_attention(query, *keys, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _split(x_BSD: Tensor, heads: int) -> Tensor:
    batch, length, width = x_BSD.shape
    return x_BSD.view(batch, length, heads, width // heads).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated feed-forward layer of Shazeer (2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-round(width * EXPANSION) // EXPANSION_MULTIPLE) * EXPANSION_MULTIPLE
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(functional.silu(self.gate(x_BSD)) * self.up(x_BSD))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, attention to a memory where `crossed`, feed-forward; each normalised first and added."""

    def __init__(self, width: int, heads: int, crossed: bool) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(width)
        self.own, self.attention = KeyValue(width, heads), Attention(width, heads)
        self.cross_norm = nn.RMSNorm(width) if crossed else None
        self.cross = Attention(width, heads) if crossed else None
        self.feed_norm, self.feed = nn.RMSNorm(width), SwiGLU(width)

    def forward(self, x_BSD: Tensor, mask: Tensor, memory: Keys | None = None) -> Tensor:
        """`mask` hides absent peaks: of this sequence, or of the `memory` in a block that is crossed."""
        normed_BSD = self.self_norm(x_BSD)
        x_BSD = x_BSD + self.attention(normed_BSD, self.own(normed_BSD), mask if self.cross is None else None)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x_BSD = x_BSD + self.cross(self.cross_norm(x_BSD), memory, mask)
        return x_BSD + self.feed(self.feed_norm(x_BSD))  # type: ignore[no-any-return]


class Head(nn.Linear):
    """A linear layer outside autocast: small, and what parts into loss components behind it stays exact."""

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of its weights."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def initialise(model: nn.Module) -> None:
    """Truncated normal by fan-in; embeddings small, so that no position starts out louder than a peak.

    Residual branches begin with nothing to add: a stack of blocks, however deep, is the identity at first.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if name.endswith((".out", ".down")):
                nn.init.zeros_(module.weight)


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place, and nothing else: names of weights stay, and losses stay outside.

    One graph serves all blocks of a kind; each shape (a last batch is smaller) and evaluation have graphs of their own.
    """
    # components' gradients over the parameters go through a block again and again (retain_graph): nothing is donated
    functorch.donated_buffer = False
    dynamo.recompile_limit = 32  # eight shapes and modes are usual, which is the default limit
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
