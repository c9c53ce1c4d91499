"""Which way each component of a loss pulls: its gradient at one tensor, or over the parameters, and their Gram matrix.

The user's own ``backward()`` stays as it was: these are backward passes of their own, on a graph that is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainwatch.recorder.probes import HALVES, fits
from trainwatch.recorder.sharding import is_sharded
from trainwatch.recorder.transfer import Part, finest

_LIFT = 1024.0  # a power of two that lifts gradients in float16 off its underflow; divided out in float32


def gram(terms: Mapping[str, Tensor], at: Tensor) -> tuple[Part | None, list[str]]:
    """Gram matrix of the terms' gradients at ``at`` (upper triangle), and the terms that do not depend on it.

    What depends on nothing that is differentiated (it was detached) has the gradient 0, wherever it is taken.
    """
    rows: dict[str, Tensor] = {}
    for name, term in terms.items():
        if term.requires_grad:
            seed = None if at.dtype is not torch.float16 else torch.full_like(term, _LIFT)
            (row,) = _gradients(term, [at], seed)
            if row is not None:
                rows[name] = _wide(row).reshape(-1)
                rows[name] = rows[name] if seed is None else rows[name] / _LIFT
        else:
            rows[name] = _wide(torch.zeros_like(at)).reshape(-1)
    outside = [name for name in terms if name not in rows]
    return _products("gram", rows, 1) if rows else None, outside


@dataclass
class OverParameters:
    """The terms' gradients over parameters: one vector a term, to which a step's micro-batches add up.

    Vectors, since gradients add up and Gram matrices do not. They cost as much memory as the parameters, each.
    """

    _vectors: dict[str, Tensor] = field(default_factory=dict)
    _count: float = 0.0

    def add(self, terms: Mapping[str, Tensor], over: Sequence[Tensor], scale: Any, share: float) -> None:
        """Take one micro-batch, ``share`` of the step.

        ``scale``, the gradient scaler's, keeps a backward pass in float16 off its underflow. Raises MemoryError where
        the vectors would take more than half of the memory that the device has left.
        """
        if not self._vectors and not fits([list(over)] * (len(terms) + 1)):
            raise MemoryError("the components' gradients would take more than half of the free memory")
        for name, term in terms.items():
            vector = _over(term, over, scale)
            if vector is not None:
                vector = vector if share == 1.0 else vector.mul_(share)
                before = self._vectors.get(name)
                self._vectors[name] = vector if before is None else before.add_(vector)
        self._count += share

    def collect(self) -> list[Part]:
        """The step's Gram matrix; the vectors are given back."""
        vectors, count = self._vectors, self._count
        self._vectors, self._count = {}, 0.0
        return [_products("param_gram", vectors, count)] if vectors else []


def no_directions(over: Sequence[Tensor]) -> str:
    """Why gradients over these parameters cannot be taken; empty if they can."""
    if not over:
        return "over= holds no parameter that takes a gradient"
    if any(is_sharded(parameter) for parameter in over):
        return "the parameters of over= are spread over processes"
    return ""


def trainable(over: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that take a gradient."""
    return [parameter for parameter in over if parameter.requires_grad]


def _over(term: Tensor, over: Sequence[Tensor], scale: Any) -> Tensor | None:
    """A term's gradient over the parameters as one vector; None if it depends on none of them."""
    if not term.requires_grad:
        return None
    seed = scale.to(term).expand_as(term) if isinstance(scale, Tensor) else None
    if seed is None and scale is not None:
        seed = torch.full_like(term, scale)
    grads = _gradients(term, over, seed)
    if all(grad is None for grad in grads):
        return None
    pairs = zip(grads, over, strict=True)
    rows = [torch.zeros_like(at) if grad is None else grad for grad, at in pairs]
    vector = torch.cat([_wide(row).reshape(-1) for row in rows])
    return vector if seed is None else vector.div_(seed)


def _gradients(term: Tensor, at: Sequence[Tensor], seed: Tensor | None) -> tuple[Tensor | None, ...]:
    """A backward pass that no hook on these tensors sees: hooks are for the loop's own.

    FSDP has one on a model's output that gathers weights: that would cost, and it would wait for a rank without us.
    """
    hooked = [tensor._backward_hooks for tensor in at if tensor._backward_hooks]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        return torch.autograd.grad(term, at, seed, retain_graph=True, allow_unused=True)
    finally:
        for hooks, own in zip(hooked, kept, strict=True):
            hooks.update(own)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.float() if gradient.dtype in HALVES else gradient


def _products(role: Any, vectors: Mapping[str, Tensor], count: float) -> Part:
    """Their upper triangle; by ``dot``, which does not round to TF32 as a matrix product may."""
    rows = list(vectors.values())
    dots = [torch.dot(row, other) for i, row in enumerate(rows) for other in rows[i:]]
    return Part(role, tuple(vectors), torch.stack(dots).to(finest(rows[0].device)), count)
