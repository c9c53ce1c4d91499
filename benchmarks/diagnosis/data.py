"""The real data that programs train on: what scikit-learn and Python itself bring along."""

from __future__ import annotations

import pydoc_data.topics
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from benchmarks.diagnosis.loop import Batch


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """1,797 digits of 8 x 8 pixels, scaled to zero mean and unit spread, and their labels, in an order of chance."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = torch.tensor((bunch.data[order] - bunch.data.mean()) / bunch.data.std(), dtype=torch.float32)
    return x, torch.tensor(bunch.target[order])


@lru_cache(maxsize=1)
def tumours() -> tuple[Tensor, Tensor]:
    """569 tumours by 30 measurements, each scaled to zero mean and unit spread, and whether they are benign."""
    bunch = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    return torch.tensor(x[order], dtype=torch.float32), torch.tensor(bunch.target[order], dtype=torch.float32)


@lru_cache(maxsize=1)
def written() -> str:
    """CPython's own documentation of the language, without its indents and rules."""
    whole = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return re.sub(r"([^a-z])\1+", r"\1", whole)


@lru_cache(maxsize=1)
def text() -> tuple[str, Tensor]:
    """The alphabet of that documentation without its rare letters, and all of it as indices into the alphabet."""
    alphabet = "".join(sorted({letter for letter in set(written()) if written().count(letter) > 100}))
    place = {letter: index for index, letter in enumerate(alphabet)}
    return alphabet, torch.tensor([place[letter] for letter in written() if letter in place])


def shuffled(data: Batch, size: int, seed: int) -> Callable[[int], Batch]:
    """Batches by number: each epoch in an order of its own, what does not fill a batch left out."""
    count = len(next(iter(data.values())))
    each = count // size

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))

    def batch(number: int) -> Batch:
        at = (number % each) * size
        chosen = order(number // each)[at : at + size]
        return {name: values[chosen] for name, values in data.items()}

    return batch
