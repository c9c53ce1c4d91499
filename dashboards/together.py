"""Runs of the folder held against each other: compared once for all tabs, drawn over each other. No Dash in here."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qs

from dashboards.asked import SCALES, X_SCALES, Asked
from dashboards.live import FIGURES_KEPT, Drawn, Live, View, Watched
from trainwatch.axis import aligned, axes
from trainwatch.compare import Apart, Comparison, compare, first_of
from trainwatch.diagnosis import Diagnosis
from trainwatch.figures.overlay import Ends, Mark, Overlay, evaluated, having, overlay, usual
from trainwatch.figures.plot import blank
from trainwatch.header import flat
from trainwatch.run import Run
from trainwatch.text import partings
from trainwatch.text.names import named

FEWEST, MOST = 2, 20
"""Runs that a page compares."""
READING: Final = "It is still being read."
MORE = 12  # channels that somebody may add to the usual ones
KEPT = 8  # comparisons, the newest
WORTH = 5  # a comparison of growing runs is made anew when it has stood this many times as long as it took


@dataclass(frozen=True)
class Chosen:
    """What a page compares, and how. An empty ``baseline`` is the first run; ``settings`` shows also equal ones."""

    keys: tuple[str, ...] = ()
    baseline: str = ""
    difference: bool = False
    seeds: bool = False
    settings: bool = False
    more: tuple[str, ...] = ()

    @classmethod
    def of(cls, keys: Any, kept: Any) -> Chosen:
        """From what a page keeps; whatever makes no sense there is left at its default."""
        kept = kept if isinstance(kept, Mapping) else {}
        baseline = kept.get("baseline")
        difference, seeds, settings = (kept.get(name) is True for name in ("difference", "seeds", "settings"))
        return cls(
            _texts(keys, MOST),
            baseline if isinstance(baseline, str) else "",
            difference,
            seeds,
            settings,
            _texts(kept.get("more"), MORE),
        )

    @classmethod
    def at(cls, search: str) -> Chosen:
        """From an address: ``?run=a&run=b&baseline=b&difference=1&seeds=1&settings=1&channel=time/step``."""
        said = parse_qs((search or "").lstrip("?"))
        flags = {name: said.get(name) == ["1"] for name in ("difference", "seeds", "settings")}
        kept = {"baseline": said.get("baseline", [""])[0], "more": said.get("channel", []), **flags}
        return cls.of(said.get("run", []), kept)

    @property
    def kept(self) -> dict[str, Any]:
        """All but the runs, as a page keeps it."""
        flags = {"difference": self.difference, "seeds": self.seeds, "settings": self.settings}
        return {"baseline": self.baseline, "more": list(self.more), **flags}


def _texts(value: Any, most: int) -> tuple[str, ...]:
    listed = value if isinstance(value, list | tuple) else []
    return tuple(dict.fromkeys(one for one in listed if isinstance(one, str) and one))[:most]


@dataclass(frozen=True)
class Bench:
    """Runs that could be read, in the order asked for, and what sets them apart.

    ``said`` holds them against the baseline, which is its first run: ``order`` are the runs' numbers in it.
    ``settings`` are all of each run, flat; ``where`` tells of each channel which runs have it.
    """

    views: tuple[View, ...] = ()
    baseline: int = 0
    labels: tuple[str, ...] = ()
    said: Comparison | None = None
    order: tuple[int, ...] = ()
    settings: tuple[dict[str, Any], ...] = ()
    where: dict[str, tuple[int, ...]] = field(default_factory=dict)
    evaluated: frozenset[str] = frozenset()
    axes: tuple[str, ...] = ("step",)
    stamp: tuple[Any, ...] = ()

    @property
    def versions(self) -> tuple[tuple[str, int], ...]:
        """Names the runs as they were read."""
        return _stamp(self.views)

    def first(self) -> Apart | None:
        """The first parting of all."""
        return first_of(self.said.partings) if self.said else None

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Runs that differ in nothing but the seed."""
        return tuple(tuple(self.order[one] for one in group) for group in self.said.seeds) if self.said else ()

    def usual(self) -> dict[str, list[str]]:
        """The channels that are overlaid unasked, under what they belong to."""
        return usual(self.where, self.evaluated)

    def marks(self, channel: str) -> list[Mark]:
        """Where this channel parts, and the first parting of all."""
        if self.said is None:
            return []
        first, names = self.first(), [self.labels[index] for index in self.order]
        telling = partings.parted_in(self.said, channel)
        return [Mark(self.order[one.run], one.step or 0, partings.parts(one, names), one is first) for one in telling]


class Together:
    """Compares runs of a folder. Safe to ask from several threads."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self._lock = threading.Lock()
        self._made: dict[tuple[tuple[str, ...], str], tuple[Bench, float, float]] = {}
        self._figures: dict[tuple[Any, ...], Drawn | None] = {}
        self._sent: dict[str, str] = {}

    def gather(self, chosen: Chosen) -> tuple[Bench, dict[str, str]]:
        """The runs as they stand now; and of those that cannot be compared why, by key."""
        left_out: dict[str, str] = {}
        found: list[tuple[Watched, View]] = []
        for key, file in zip(chosen.keys, self.live.some(chosen.keys), strict=True):
            view = file.view if file else None
            if file is None or view is None or view.run is None or view.diagnosis is None:
                left_out[key] = _why_not(view, self.live)
            else:
                found.append((file, view))
        bench = self._bench(chosen, found) if found else Bench()
        compared = {view.key for view in bench.views}
        return bench, left_out | {view.key: READING for _, view in found if view.key not in compared}

    def _bench(self, chosen: Chosen, found: list[tuple[Watched, View]]) -> Bench:
        """The comparison as it was made last, unless the runs have changed and it is worth making anew."""
        views = {view.key: view for _, view in found}
        name = (chosen.keys, chosen.baseline)
        bench, made, cost = self._made.get(name, (Bench(), 0.0, 0.0))
        began = time.monotonic()
        changed = bench.stamp != _stamp(views.values())
        lost = not bench.views or any(view.key not in views for view in bench.views)
        if changed and (lost or began - made >= WORTH * cost):
            with _held(file for file, _ in found):
                bench = _made(tuple(views.values()), chosen.baseline)
            now = time.monotonic()
            with self._lock:
                self._made[name] = (bench, now, now - began)
                _keep(self._made, KEPT)
        return replace(bench, views=tuple(views[view.key] for view in bench.views))

    def draw(self, bench: Bench, channel: str, chosen: Chosen, asked: Asked) -> Drawn | None:
        """A channel's figure; None if no run has anything for it."""
        files = [file for view in bench.views if (file := self.live.file(view.key))]
        key = (bench.versions, bench.stamp, bench.baseline, channel, chosen.difference, chosen.seeds, asked)
        with self._lock:
            if key in self._figures:
                return self._figures[key]
        with _held(files):
            drawn = _drawn(bench, channel, chosen, asked)
        with self._lock:
            self._figures[key] = drawn
            if drawn:
                self._sent[drawn.digest] = drawn.json
            _keep(self._figures, FIGURES_KEPT)
            _keep(self._sent, 2 * FIGURES_KEPT)
        return drawn

    def sent(self, digest: str) -> str | None:
        """A figure that was drawn before, by its content's name; None if it was too long ago."""
        return self._sent.get(digest)


def _keep(made: dict[Any, Any], most: int) -> None:
    """Drop what was made first."""
    for old in list(made)[:-most]:
        del made[old]


def _why_not(view: View | None, live: Live) -> str:
    if view is None:
        return f"Nothing that is called so lies in {live.where}."
    return view.error or READING


def _stamp(views: Iterable[View]) -> tuple[tuple[str, int], ...]:
    return tuple((view.key, view.version) for view in views)


def _held(files: Iterable[Watched]) -> ExitStack:
    """The locks of all files, always taken in one order."""
    stack = ExitStack()
    for file in sorted(files, key=lambda file: file.key):
        stack.enter_context(file.lock)
    return stack


def _told(views: Iterable[View]) -> list[tuple[Run, Diagnosis]]:
    """What was read and judged of each run."""
    return [(view.run, view.diagnosis) for view in views if view.run is not None and view.diagnosis is not None]


def _made(views: tuple[View, ...], baseline: str) -> Bench:
    """The runs side by side; the caller holds their locks."""
    told = _told(views)
    runs = [run for run, _ in told]
    names = named([(diagnosis.run, diagnosis.source) for _, diagnosis in told])
    base = next((index for index, view in enumerate(views) if view.key == baseline), 0)
    order = (base, *(index for index in range(len(told)) if index != base))
    said = compare([told[index] for index in order])
    # under the names of this page, whichever of them is the baseline
    said = replace(said, runs=tuple({**run, "run": names[at]} for at, run in zip(order, said.runs, strict=True)))
    where = having(runs)
    return Bench(
        views=views,
        baseline=base,
        labels=tuple(names),
        said=said,
        order=order,
        settings=tuple(dict(flat(run.header.config)) for run in runs),
        where=where,
        evaluated=evaluated(where, runs),
        axes=aligned(runs),
        stamp=_stamp(views),
    )


def _drawn(bench: Bench, channel: str, chosen: Chosen, asked: Asked) -> Drawn | None:
    runs = [run for run, _ in _told(bench.views)]
    ends = _ends(runs, bench.baseline, asked)
    groups = bench.groups() if chosen.seeds else ()
    scale, log_x = SCALES[asked.scale], X_SCALES[asked.x_scale]
    how = Overlay(asked.against, ends, scale, asked.smooth, bench.baseline, chosen.difference, groups, log_x)
    try:
        figure = overlay(channel, runs, bench.labels, how, bench.marks(channel))
    except Exception as error:  # one odd log must not take the other figures down
        figure = blank(f"this figure could not be drawn ({type(error).__name__})", None)
    if figure is None:
        return None
    text: str = figure.to_json()
    return Drawn(hashlib.sha1(text.encode()).hexdigest()[:12], text)


def _ends(runs: Sequence[Run], baseline: int, asked: Asked) -> Ends | None:
    """The range on the axis that is drawn against; one of another axis is led there by the baseline's steps."""
    if asked.ends is None or asked.unit == asked.against:
        return asked.ends
    old, new = axes(runs, asked.unit)[baseline], axes(runs, asked.against)[baseline]
    first, last = old.span(*asked.ends) if old else asked.ends
    placed = new.at([first, last]) if new else (first, last)
    return float(placed[0]), float(placed[1])
