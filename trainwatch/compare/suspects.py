"""Which setting is suspect: the only one that differs, else those that speak of what parted first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainwatch.compare.partings import Apart
from trainwatch.compare.settings import Difference, about_seed, words

KNOB_WORDS = {
    "weight": frozenset(["curriculum", "weight", "weights", "stage", "stages", "loss", "losses", "ramp"]),
    "stage": frozenset(["curriculum", "stage", "stages"]),
    "lr": frozenset(["lr", "learning", "rate", "warmup", "scheduler", "schedule", "optimizer", "optim"]),
    "schedule": frozenset(["schedule", "schedules", "scheduler", "anneal"]),
}


@dataclass(frozen=True)
class Suspect:
    """A setting that may have parted run number ``run`` from the first, and why it is suspected.

    ``alone``: it is the only setting that differs.
    """

    run: int
    path: str
    why: str
    alone: bool = False


def suspects(index: int, settings: Iterable[Difference], partings: list[Apart]) -> Iterator[Suspect]:
    """Settings that speak of what parted first; the only setting that differs, if there is one. None parted: none."""
    differing = [item for item in settings if item.values[index] != item.values[0]]
    chosen = [item for item in differing if not about_seed(item.path)]
    ways = sorted((item for item in partings if item.step is not None), key=lambda item: (item.step, not item.exact))
    if not ways:
        return
    if len(chosen) == 1:
        yield Suspect(index, chosen[0].path, "the only setting that differs", alone=True)
        return
    leading = [item for item in ways if item.channel != "loss" and item.step == ways[0].step] or ways[:1]
    for item in chosen:
        way = next((way for way in leading if _speaks_of(item.path, way.channel)), None)
        if way:
            yield Suspect(index, item.path, f"{way.channel} is the first to part, at step {way.step:,}")


def _speaks_of(path: str, channel: str) -> bool:
    family, _, name = channel.partition("/")
    named = {name.lower()} if family in ("contribution", "weight") else set()
    return bool(words(path) & (KNOB_WORDS.get(family, frozenset()) | named))
