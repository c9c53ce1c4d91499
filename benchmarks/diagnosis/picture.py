"""The corpus at a glance, as one SVG: kinds of mistake by programs, and over each program its healthy runs.

A cell is a bar: its length is the share of runs with an alarm, the dark part the share whose root cause was named
first. An empty track is a kind that nobody noticed; no track, a kind that the program has not. It follows the reader's
colour scheme, light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.diagnosis.score import MEASURES, Verdict, by, share

CELL, ROW, GAP, LEFT, TOP, MARGIN = 64, 18, 10, 190, 168, 16
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .faint { fill: #59636e } .title { font-size: 15px }
  .track { fill: #eaeef2 } .alarm { fill: #9ec5f4 } .root { fill: #1f6feb } .false { fill: #d1242f }
  .rule { stroke: #d1d9e0 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .faint { fill: #9198a1 } .track { fill: #262c36 } .alarm { fill: #2f5a93 }
    .root { fill: #6cb6ff } .false { fill: #ff6b62 } .rule { stroke: #3d444d }
  }
"""


def draw(verdicts: Sequence[Verdict]) -> str:
    """The picture."""
    splits = by(sorted(verdicts, key=lambda one: one.held_out), lambda one: "held out" if one.held_out else "tuning")
    columns: dict[str, float] = {}
    labels, at = [], float(LEFT)
    for name, group in splits.items():
        labels.append(_text(at, 46, f"{name} programs", "faint"))
        for program in by(group, lambda one: one.case.program):
            columns[program], at = at, at + CELL + 6
        at += 3 * GAP
    sick = [one for one in verdicts if not one.healthy]
    kinds = sorted(by(sick, lambda one: one.kind).items(), key=lambda item: (-_found(item[1]), item[0]))
    body = [_kind(number, kind, group, columns) for number, (kind, group) in enumerate(kinds)]
    width, height = int(at), TOP + ROW * len(kinds) + 2 * MARGIN
    size = f'width="{width}" height="{height}"'
    healthy = _healthy(verdicts, columns)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
            f"<style>{STYLE}</style>",
            _text(MARGIN, 24, "What trainwatch finds in the corpus", "title"),
            *_legend(),
            *labels,
            *healthy,
            *body,
            "</svg>\n",
        ]
    )


def _found(group: Sequence[Verdict]) -> float:
    return share(group, MEASURES["root first"]) + 0.01 * share(group, MEASURES["alarmed"])


def _kind(number: int, kind: str, group: Sequence[Verdict], columns: dict[str, float]) -> str:
    """One row of the grid."""
    y = TOP + ROW * number
    cells = [f'<text x="{LEFT - GAP}" y="{y + 10}" text-anchor="end">{escape(kind)}</text>']
    for program, runs in by(group, lambda one: one.case.program).items():
        alarmed, root = share(runs, MEASURES["alarmed"]), share(runs, MEASURES["root first"])
        told = f"{kind} in {program}: alarm in {alarmed:.0%}, root first in {root:.0%} of {len(runs)} runs"
        bars = [_bar(columns[program], y, 1.0, "track"), _bar(columns[program], y, alarmed, "alarm")]
        cells.append(f"<g><title>{told}</title>{''.join(bars)}{_bar(columns[program], y, root, 'root')}</g>")
    return "\n".join(cells)


def _healthy(verdicts: Sequence[Verdict], columns: dict[str, float]) -> list[str]:
    """Names of the programs, and the share of their healthy runs that were called sick."""
    y, drawn = TOP - 2 * ROW, []
    drawn.append(f'<text x="{LEFT - GAP}" y="{y + 10}" text-anchor="end">healthy, with an alarm</text>')
    for program, x in columns.items():
        drawn.append(f'<text transform="translate({x + 8},{y - 8}) rotate(-40)">{escape(program)}</text>')
        runs = [one for one in verdicts if one.healthy and one.case.program == program]
        if runs:
            alarmed = share(runs, MEASURES["alarmed"])
            told = f"{program}: {sum(one.alarmed for one in runs)} of {len(runs)} healthy runs with an alarm"
            drawn.append(f"<g><title>{told}</title>{_bar(x, y, 1.0, 'track')}{_bar(x, y, alarmed, 'false')}</g>")
    drawn.append(
        f'<line class="rule" x1="{MARGIN}" x2="{max(columns.values()) + CELL}" y1="{TOP - 9}" y2="{TOP - 9}"/>'
    )
    return drawn


def _legend() -> list[str]:
    """What the colours say, one below the other."""
    shown = []
    for number, (name, kind) in enumerate(
        (("root cause first", "root"), ("an alarm", "alarm"), ("a false alarm", "false"))
    ):
        y = 44 + 20 * number
        shown += [f'<rect class="{kind}" x="{MARGIN}" y="{y}" width="12" height="12" rx="2"/>']
        shown += [_text(MARGIN + 18, y + 11, name)]
    return shown


def _bar(x: float, y: float, part: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y}" width="{CELL * part:.1f}" height="{ROW - 5}" rx="2"/>' if part else ""
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'
