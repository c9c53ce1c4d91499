"""What the loops of the held-out programs say about their batches, answers and rows; measured, never made up."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import trainwatch


def fingerprint(*tensors: Tensor) -> int:
    """A hash of a batch, below 2^53."""
    digest = hashlib.blake2b(digest_size=6)
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")


def input_facts(inputs: Tensor) -> dict[str, float]:
    """Mean, spread and largest magnitude of a batch, and how many of its values are not finite."""
    finite = torch.isfinite(inputs)
    known = inputs[finite]
    return {
        "data/input_mean": float(known.mean()),
        "data/input_std": float(known.std()),
        "data/input_absmax": float(known.abs().max()),
        "bad/input": int((~finite).sum()),
    }


def bad_weights(model: nn.Module) -> int:
    """How many parameters are not finite."""
    return int(sum((~torch.isfinite(parameter)).sum() for parameter in model.parameters()))


def first_nonfinite(path: Path, channel: str) -> int:
    """The first step of a run's file at which a channel is no finite number; 0 if it always is."""
    records = (json.loads(line) for line in path.read_bytes().splitlines())
    return next((record["step"] for record in records if channel in record.get("nonfinite", {})), 0)


def row(watch: trainwatch.Recorder, step: int, every: int = 1) -> None:
    """Complete the row of a step; a loop that logs every so many steps completes only those."""
    if step % every == 0:
        if every > 1:
            watch.steps = step - 1
            watch.log({"applied": step})
        watch.step()


def text_quality(outputs: Sequence[str], seen: frozenset[str]) -> dict[str, float]:
    """Figures of generated texts; one is valid if nine tenths of its pairs of characters occur in the real text."""
    pairs = [[text[i : i + 2] for i in range(len(text) - 1)] for text in outputs]
    shares = [sum(pair in seen for pair in each) / max(1, len(each)) for each in pairs]
    counts = Counter("".join(outputs))
    whole = max(1, sum(counts.values()))
    lengths = [len(text) for text in outputs]
    return {
        "validity": sum(share >= 0.9 for share in shares) / len(outputs),
        "diversity": len(set(outputs)) / len(outputs),
        "longest_run": max(longest_run(text) for text in outputs),
        "entropy": -sum(n / whole * log(n / whole) for n in counts.values()),
        "length_mean": float(np.mean(lengths)),
        "length_std": float(np.std(lengths)),
    }


def longest_run(text: str) -> int:
    """The longest stretch of one character."""
    longest = length = 0
    for index, character in enumerate(text):
        length = length + 1 if index and character == text[index - 1] else 1
        longest = max(longest, length)
    return longest
