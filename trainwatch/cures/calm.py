"""A run that went away, or cannot move: a calmer rate, limits on the norm, a warm-up, more range, no growth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trainwatch.cures.rates import slower
from trainwatch.cures.setting import Setting, leaves, only, rounded, words
from trainwatch.header import flat, number
from trainwatch.run import Run
from trainwatch.schema import Finding

LIMITS = (
    *("max_grad_norm", "gradient_clip_val", "grad_clip", "grad_clip_norm", "gradient_clip", "clip_grad_norm"),
    *("clip_grad", "max_norm"),
)
MAYBE_LIMITS = ("clip", "clipping")  # of the norm, where the header says that it is
DECAYS = ("weight_decay", "decay", "wd", "l2")
WARMUPS = ("warmup", "warmup_ratio", "warmup_steps", "num_warmup_steps", "lr_warmup_steps", "warmup_iters")
HALVES: Mapping[Any, str] = {"fp16": "bf16", "float16": "bfloat16", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}
STIRRED = 0.02  # of the weights in one step, after the first: healthy runs come to half of it
USUAL_LIMIT = 0.1  # of the norm: published ones lie between this and 10
FAR_ABOVE = 10.0  # x a usual limit: healthy norms that are clipped at each step come to 8
ROSE = 3.0  # x what it was: a loss or a norm that went away before it broke
CALMER = 3.0  # what a rate is divided by where nothing was measured but that it was too high
WARMUP = 0.05  # of the run, where there was none


def calmer(finding: Finding, run: Run) -> Iterator[Setting]:
    """A run that went away: a lower rate, a limit near the norm it had before, a warm-up where there was none.

    Not where the steps before were of the usual size, or nothing rose before it broke: there the data or a formula
    broke it, and a lower rate only learns less.
    """
    limit = number(finding.evidence.get("before"))
    went = _went_away(finding, run)
    if went:
        yield from slower(run, finding, CALMER, f"{CALMER:g} times lower")
    for path, value in only(_limits(run)) if went or limit else []:
        if not value:
            yield Setting(path, rounded(limit) if limit and limit > 0 else 1.0, "there was no limit")
        elif limit and 0 < limit < value / 2:
            yield Setting(path, rounded(limit), "what the norm was before")
    if went:
        yield from _warmup(run)
    yield from full_range(finding, run)


def full_range(_finding: Finding, run: Run) -> Iterator[Setting]:
    """bfloat16 where the config says float16: it reaches as far as float32 and needs no scaler."""
    for path, value in flat(run.header.config):
        if {"precision", "dtype"} & words(path) and isinstance(value, str) and value.lower() in HALVES:
            yield Setting(path, HALVES[value.lower()], "which overflows as late as float32, and needs no scaler")
    switches = dict(leaves(run, ("fp16", "bf16")))
    for path, value in switches.items():
        other = f"{path[:-4]}bf16"
        if path.endswith("fp16") and value is True and switches.get(other) is False:
            yield Setting(path, False, "which overflows beyond 65,504")
            yield Setting(other, True, "which overflows as late as float32, and needs no scaler")


def norm_limit(finding: Finding, run: Run) -> Iterator[Setting]:
    """A limit that clips every step: what the norm is. Beside a usual limit a far larger norm is what is wrong."""
    norm = number(finding.evidence.get("norm"))
    for path, value in only(_limits(run)):
        small = value and (value < USUAL_LIMIT or (norm or 0.0) <= FAR_ABOVE * value)
        if norm and small and norm > value:
            yield Setting(path, rounded(norm), "the norm's median")


def no_growth(_finding: Finding, run: Run) -> Iterator[Setting]:
    """Weights that grow without end: a decay below 0 does that, and without one they do not."""
    for path, value in only([item for item in leaves(run, DECAYS) if (number(item[1]) or 0) < 0]):
        yield Setting(path, 0.0, f"{value:g} makes the weights larger at each step")


def _went_away(finding: Finding, run: Run) -> bool:
    """Whether the steps were too long: by the update's ratios, else by a loss or a norm that rose before it broke.

    A first step may be long in health; one that was not tells as much as any other.
    """
    rows = run.train
    until = rows.step <= finding.first_step
    latest, sampled = [], [name for name in rows.channels if name.startswith("update_ratio/")]
    for name in sampled:
        at = np.flatnonzero((rows[name] > 0) & until)  # NaN where it was not sampled, 0 before a warm-up
        latest += [float(rows[name][at[-1]])] if len(at) and (at[-1] or rows[name][0] <= STIRRED) else []
    if latest:
        return max(latest) > STIRRED
    rose = any(_rose(rows[name][until]) for name in ("loss", "grad_norm") if name in rows.channels)
    return rose or not (sampled or finding.rule.startswith("non-finite"))


def _rose(values: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether the last of these values stands far above the others."""
    known = np.abs(values[np.isfinite(values)])
    return len(known) > 1 and bool(known[-3:].max() > ROSE * np.median(known))


def _warmup(run: Run) -> Iterator[Setting]:
    """A warm-up where there was none: as a share, or in steps of a run whose length is known."""
    total = run.header.total_steps
    for path, value in only([item for item in leaves(run, WARMUPS) if not isinstance(item[1], bool)]):
        shares = path.lower().endswith(("ratio", "warmup")) or isinstance(value, float)
        if not value and (shares or total):
            yield Setting(path, WARMUP if shares else max(1, round(WARMUP * (total or 0))), "there was none")


def _limits(run: Run) -> list[tuple[str, Any]]:
    """Settings that limit the gradient's norm: by their name, or by a name and the value that the header says."""
    said = number(run.header.raw.get("max_grad_norm"))
    return leaves(run, LIMITS) or [item for item in leaves(run, MAYBE_LIMITS) if said and number(item[1]) == said]
