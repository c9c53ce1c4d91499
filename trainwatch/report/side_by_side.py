"""A comparison as one HTML file that needs no network and runs nothing: words, tables, curves as static pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from trainwatch.compare import Comparison, first_of
from trainwatch.compare.written import Sources
from trainwatch.figures.overlay import Mark, Overlay, evaluated, having, overlay, usual
from trainwatch.report import svg, templates
from trainwatch.run import Run
from trainwatch.text import comparison, partings, sources
from trainwatch.text.names import labels
from trainwatch.text.section import Section
from trainwatch.text.wording import clean, plural

ROWS = 500  # of a table: beyond, it is data and not settings
OPEN = ("Runs", "Runs, the best first", "Groups of one setting", "Settings that differ", "Settings apart", "Findings")
"""Tables that need no click."""


@dataclass(frozen=True)
class Picture:
    """A channel of all runs over each other."""

    channel: str
    drawing: svg.Drawing


def of_runs(said: Comparison, runs: Sequence[Run]) -> str:
    """The page of runs; ``runs`` in the order of the comparison."""
    names = labels(said)
    return _page(
        title=f"{names[0]} and {plural(len(names) - 1, 'other run')}",
        verdict=partings.verdict(said),
        sure=list(partings.certainty(said)),
        sentences=list(partings.pairs(said)),
        sections=comparison.sections(said),
        figures=dict(_figures(said, runs, names)),
        files=[run["source"] for run in said.runs],
    )


def of_files(said: Sources) -> str:
    """The page of configs, scripts and notebooks."""
    names = sources.labels(said)
    return _page(
        title=" and ".join(names),
        verdict=sources.verdict(said),
        sure=[sources.certainty(said)],
        sentences=[],
        sections=sources.sections(said),
        figures={},
        files=said.files,
    )


def _figures(said: Comparison, runs: Sequence[Run], names: Sequence[str]) -> Iterator[tuple[str, list[Picture]]]:
    """The usual channels by what they belong to; repeats of one setting as mean and band."""
    where = having(runs)
    how = Overlay(said.align, groups=said.seeds)
    for head, channels in usual(where, evaluated(where, runs)).items():
        pictures = []
        for channel in channels:
            figure = overlay(channel, runs, names, how, _marks(said, channel, names))
            if figure is not None:
                pictures.append(Picture(channel, svg.drawing(figure)))
        if pictures:
            yield head, pictures


def _marks(said: Comparison, channel: str, names: Sequence[str]) -> list[Mark]:
    first = first_of(said.partings)
    telling = partings.parted_in(said, channel)
    return [Mark(item.run, item.step or 0, partings.parts(item, names), item is first) for item in telling]


def _page(
    *,
    title: str,
    verdict: str,
    sure: list[str],
    sentences: list[str],
    sections: Iterable[Section],
    figures: dict[str, list[Picture]],
    files: Iterable[str],
) -> str:
    return templates.page(
        "side_by_side.html.j2",
        title=title,
        verdict=verdict,
        sure=sure,
        sentences=sentences,
        sections=list(sections),
        figures=figures,
        files=[clean(file, 200) for file in files],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        rows=ROWS,
        open_=OPEN,
    )
