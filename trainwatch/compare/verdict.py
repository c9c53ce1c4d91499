"""The verdict on all runs: which one parts first, where, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainwatch.compare.partings import Apart
from trainwatch.compare.suspects import Suspect
from trainwatch.parting import ENOUGH

Kind = Literal["parts", "same", "together", "too-few", "nothing-in-common"]

CHANCE = {0: 0.10, 2: 0.04, 3: 0.02}
"""How often two runs of one setting part in some channel, by the repeats that told of the noise. Measured on the plain
runs of the corpus (``python -m benchmarks.seeds``): 15, 6 and 2 of 144 pairs of seeds."""
FAR, UNSEEN = 12.0, 0.02
"""Times the noise, and how often chance does that: of those 144 pairs none (3 / 144 at most), the widest had 9.7."""
REPEAT = 0.5  # at least, that chance parted two runs of which no setting is known to differ
FACT = 0.01  # a plan's number, or a loss that is not finite, is no matter of noise: what is left is a log that errs
CAUSE = {"alone": 0.9, "one": 0.7, "several": 0.5}
"""How likely the setting did it: the only one that differs (code and data are not in a config), one that speaks of what
parted first, several that do. These are judged, not measured."""


@dataclass(frozen=True)
class Verdict:
    """``run`` parts first, at ``step``, in ``channels``; ``parted`` runs do in all. None parts: ``kind`` says why.

    ``confidence`` is that of the parting, ``cause`` that of its suspects (None: there is none); ``rests_on`` says in
    words what each was taken from.
    """

    kind: Kind
    confidence: float | None
    rests_on: tuple[str, ...]
    run: int | None = None
    step: int | None = None
    channels: tuple[str, ...] = ()
    parted: int = 0
    cause: float | None = None


def first_of(partings: Sequence[Apart]) -> Apart | None:
    """The first parting of all; of two at one step the planned one, for it is the cause."""
    parted = [item for item in partings if item.step is not None]
    return min(parted, key=lambda item: (_where(item), not item.exact), default=None)


def _where(item: Apart) -> float:
    return item.position if item.position is not None else math.inf


def verdict(
    partings: Sequence[Apart], suspects: Sequence[Suspect], groups: Sequence[tuple[int, ...]], others: int
) -> Verdict:
    """The verdict on ``others`` runs that are held against the first; ``groups`` are those of one setting."""
    first = first_of(partings)
    if first is None:
        return _none_parts([item for item in partings if not item.exact])
    parted = {item.run for item in partings if item.step is not None}
    beside = [item for item in partings if item.run == first.run and item.position == first.position]
    own = [item for item in partings if item.run == first.run and item.step is not None]
    far = _far(own, others, len(parted))
    chance, why = far or _chance(first, others, len(parted))
    repeat = any({0, first.run} <= set(group) for group in groups) and chance > FACT and not far
    chance, same = (max(chance, REPEAT), ("no setting is known to differ",)) if repeat else (chance, ())
    causes = [item for item in suspects if item.run == first.run]
    known = "alone" if causes and causes[0].alone else "one" if len(causes) == 1 else "several"
    return Verdict(
        kind="parts",
        confidence=round(1.0 - chance, 2),
        rests_on=(why, *same, *_rests(known, len(causes))),
        run=first.run,
        step=first.step,
        channels=tuple(item.channel for item in beside),
        parted=len(parted),
        cause=CAUSE[known] if causes else None,
    )


def _chance(first: Apart, others: int, parted: int) -> tuple[float, str]:
    """How likely it is that chance alone parted them, and what that rests on."""
    if first.exact:
        return FACT, f"{first.channel} is planned, and has no noise"
    if first.pair.parting and math.isnan(first.pair.parting.difference):
        return FACT, f"{first.channel} is not finite in one of them, and stays so"
    rate = CHANCE[max(count for count in CHANCE if count <= first.repeats)]
    told = f"the noise of {first.repeats} repeats" if first.repeats else "the curves' own noise, as no setting repeats"
    share = f"{rate:.0%} of pairs of seeds part by chance so"
    expected = rate * others / parted  # of those that part
    many = f", and {others} runs were looked at" if others > 1 else ""
    return min(expected, 0.5), f"{told} ({share}{many})"


def _far(own: Sequence[Apart], others: int, parted: int) -> tuple[float, str] | None:
    """The same where a run parts by more than chance was ever seen to; None where a fact, or nothing, says more."""
    if any(item.exact or (item.pair.parting and math.isnan(item.pair.parting.difference)) for item in own):
        return None
    widest = max(own, key=_noises, default=None)
    if widest is None or _noises(widest) < FAR:
        return None
    told = f"{widest.channel} differs by {_noises(widest):,.0f} times the noise, more than seeds were seen to"
    return min(UNSEEN * others / parted, 0.5), told


def _noises(item: Apart) -> float:
    """By how many times the noise a channel parts."""
    parting = item.pair.parting
    return abs(parting.difference) / parting.noise if parting and parting.noise else 0.0


def _rests(known: str, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    if known == "alone":
        return ("one setting differs; code and data that no log tells of may differ too",)
    return (f"{count} of the settings that differ {'speaks' if count == 1 else 'speak'} of what parted first",)


def _none_parts(partings: list[Apart]) -> Verdict:
    """Why none parts, and how much could have been missed."""
    pairs = [item.pair for item in partings if item.pair.finite]
    if not pairs:
        return Verdict("nothing-in-common", None, ("no step at which two runs have the same channel, and finite",))
    if not any(pair.differs for pair in pairs):
        rows = max(pair.rows for pair in pairs)
        if rows < ENOUGH:
            return Verdict("same", None, (f"{rows} common row{'s' * (rows > 1)}, too few to say more",))
        return Verdict("same", 1.0 - FACT, (f"{rows:,} common rows, number by number",))
    unseen = [item.pair.unseen for item in partings if item.channel == "loss" and item.pair.unseen is not None]
    if not unseen:
        return Verdict("too-few", None, ("too few common rows to judge",))
    return Verdict("together", None, (f"a lasting difference of the loss below {max(unseen):.0%} would not be seen",))
