"""Evaluations that were never made: some trainers fill their columns with 0 until one is."""

from __future__ import annotations

from collections.abc import Mapping

from trainwatch.views.evaluations import direction

SAID = "evaluations of which all is 0, losses and figures of merit alike, were not made: they are left out"


def unmade(values: Mapping[str, float]) -> bool:
    """Whether an evaluation, by its channels, says at once that nothing is wrong and that nothing is right."""
    lossless = any(name == "loss" or name.startswith("loss/") for name in values)
    return lossless and not any(values.values()) and any(direction(name) > 0 for name in values)
