"""Evaluations that were never made: some trainers fill their columns with 0 until one is."""

from __future__ import annotations

from collections.abc import Mapping

SAID = "evaluations of which all is 0, losses and figures alike, were not made: they are left out"
FIGURES = 2  # beside the loss: one error may be exactly 0 with it, two are not


def unmade(values: Mapping[str, float]) -> bool:
    """Whether an evaluation, by its channels, is nothing but zeros, in a loss and in several figures."""
    lossless = any(name == "loss" or name.startswith("loss/") for name in values)
    return lossless and not any(values.values()) and sum(name.startswith("metric/") for name in values) >= FIGURES
