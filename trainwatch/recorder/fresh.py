"""Whether the weights of a module are still as its initialisation left them: noise without a structure. Loads torch.

Weights of an initialisation are drawn alike: their rows and columns differ by chance alone, and they are flat between
two bounds, or normal. Weights that were trained have rows and columns of many sizes, heavy tails, and leave the bounds.
So do biases, which begin as a constant or flat: in a small layer they tell what the few weights cannot.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 2048  # of a matrix are looked at
FLAT, NORMAL = 1.8, 3.0  # fourth moment over the square of the second
DOUBT = 4.0  # standard deviations by which what is drawn alike may differ more than it should
APART = 0.3  # that may differ by; between the two lie a normal draw that is cut off, and a flat one that was trained
CUT = 2.3  # x the root of the mean square: the largest value of a normal draw that is cut off at two deviations


@torch.no_grad()
def fresh(module: Any) -> int:
    """How many parameters of its own a module has, if none of them shows any training; else 0."""
    own = [parameter.detach() for parameter in module.parameters(recurse=False)]
    with contextlib.suppress(Exception):  # quantised, sharded, on no device: nothing can be said
        matrices = [values for values in own if values.dim() > 1]
        biases = [values for values in own if values.dim() == 1]
        drawn = all(map(_drawn, matrices)) and not (
            len(matrices) == 1 and any(_left(bias, matrices[0]) for bias in biases)
        )
        if own and (drawn if matrices else all(map(_constant, own))):
            return sum(values.numel() for values in own)
    return 0


def _left(bias: Tensor, weight: Tensor) -> bool:
    """Whether a bias is beyond the bounds between which one is drawn: those of its layer's inputs."""
    rounding = 1e-5 if bias.dtype in (torch.float32, torch.float64) else 1e-2
    bound = (len(weight) / weight.numel()) ** 0.5 * (1 + rounding)
    return bool(bias.abs().max() > bound) and not bool((bias == bias[0]).all())


def _constant(values: Tensor) -> bool:
    """What normalisations begin with."""
    return bool((values == 0).all() or (values == 1).all())


def _drawn(values: Tensor) -> bool:
    """Whether a tensor is constant, or drawn at random."""
    matrix = values.reshape(len(values), -1) if len(values) > 1 else values.reshape(-1, values.shape[-1])
    whole = matrix.shape
    matrix = matrix[:ROWS, :COLUMNS].double()
    matrix = matrix[matrix.any(1)]  # an embedding's row for padding is 0
    if not len(matrix):
        return True
    square = matrix.square()
    mean, count = square.mean(), matrix.numel()
    kurtosis, slack = (square.square().mean() / mean.square()).item(), (24 / count) ** 0.5 * DOUBT
    if not FLAT - slack <= kurtosis <= NORMAL + slack:
        return False
    largest = matrix.abs().max().item()
    if kurtosis < FLAT + APART and not _within(largest, mean.item(), count, whole, values):
        return False
    if FLAT + APART <= kurtosis < NORMAL - APART - slack and largest > CUT * mean.item() ** 0.5:
        return False
    sizes = ((square.mean(1), matrix.shape[1]), (square.mean(0), len(matrix)))
    return all(_alike(each, kurtosis, of) for each, of in sizes)


def _within(largest: float, mean: float, count: int, shape: torch.Size, values: Tensor) -> bool:
    """Whether a flat draw keeps to its bounds: those of the usual initialisations, or what its mean square tells."""
    rows, columns = shape
    known = [(1 / n) ** 0.5 for n in (columns, rows, rows / 3, rows / 4)]  # of layers, and of recurrent ones
    known += [(6 / n) ** 0.5 for n in (columns, rows + columns)]
    rounding = 1e-5 if values.dtype in (torch.float32, torch.float64) else 1e-2
    told, doubt = (3 * mean) ** 0.5, DOUBT * 0.45 / count**0.5
    usual = [bound for bound in known if abs(told - bound) <= doubt * bound]
    return bool(largest <= (max(usual) * (1 + rounding) if usual else told * (1 + doubt)))


def _alike(sizes: Tensor, kurtosis: float, of: int) -> bool:
    """Whether rows (or columns) of so many draws each differ in size by no more than chance makes them."""
    if len(sizes) < 4:
        return True
    spread = (sizes.var() / sizes.mean().square()).item()
    return bool(spread <= (kurtosis - 1) / of * (1 + DOUBT * (2 / len(sizes)) ** 0.5 + DOUBT * (2 / of) ** 0.5))
