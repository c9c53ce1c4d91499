"""A transformer's layer, for programs that read a sequence in its order."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention to what came before, then two layers at each place; both normalised first. [B, T, width] to the same"""

    def __init__(self, width: int, activation: nn.Module, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.look, self.out, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(dropout)
        inner = nn.Linear(width, 2 * width)
        self.think = nn.Sequential(nn.LayerNorm(width), inner, activation, nn.Linear(2 * width, width), self.drop)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.look(self.norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = h + self.think(h)
        return out
