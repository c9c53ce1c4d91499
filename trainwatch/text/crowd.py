"""The tables of a comparison of many runs: a row for a group, a run or a setting, and never a column for each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, median, stdev

from trainwatch.compare import ABSENT, Comparison, Difference, Found, Values, first_of
from trainwatch.compare.settings import about_seed, chosen
from trainwatch.compare.values import ranking
from trainwatch.text import wording
from trainwatch.text.wording import clean

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
SHOWN = 3  # values, runs or settings that a cell names
OTHERWISE = "set otherwise than in the baseline"
SHORT = 24  # letters of a value among others


def crowd(said: Comparison, names: Sequence[str]) -> Iterator[Table]:
    """Title, head and rows of each table."""
    by = next((item for item in said.values if item.channel == said.merit), None)
    figure = f"final {clean(said.merit, 40)}" if said.merit else "final value"
    if any(len(group) > 1 for group in said.groups) and len(said.groups) > 1:
        groups = [_group(said, names, group, by) for group in said.groups]
        yield _told("Groups of one setting", (OTHERWISE, "runs", figure, "parts at step", "speed"), groups)
    runs = [_run(said, names, rank, run, by) for rank, run in enumerate(said.ranking, 1)]
    yield _told("Runs, the best first", ("#", "run", figure, OTHERWISE, "parts at step", "worst", "speed"), runs)
    base = f"baseline {names[0]}"
    for title, found in (("Settings that differ", said.config), ("What else differs", said.facts)):
        rows = [_setting(item) for item in found]
        if rows:
            yield title, ("setting", base, "others (runs)"), rows
    if said.values:
        ends = [_values(item, names) for item in said.values]
        yield "Final value", ("channel", base, "best", "median", "worst"), ends
    if said.findings:
        ordered = sorted(said.findings, key=lambda item: min(step for step in item.first_step if step is not None))
        yield "Findings", ("finding", base, "other runs", "since step"), [_finding(item, names) for item in ordered]
    parted = list(_channels(said, names))
    if parted:
        yield "Where channels part", ("channel", "runs that part", "first", "at step"), parted


def _told(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """A table without the columns in which no row tells anything."""
    kept = [at for at in range(len(head)) if any(row[at] != "-" for row in rows)]
    return title, tuple(head[at] for at in kept), [tuple(row[at] for at in kept) for row in rows]


def _setting(item: Difference) -> tuple[str, ...]:
    return clean(item.path, 80), _value(item.values[0]), _counted(item.values[1:])


def _group(said: Comparison, names: Sequence[str], group: tuple[int, ...], by: Values | None) -> tuple[str, ...]:
    ends = [end for run in group if by and isinstance(end := by.final[run], float)]
    spread = f" ± {wording.number(stdev(ends))}" if len(ends) > 1 else ""
    came = wording.number(fmean(ends)) + spread if ends else "-"
    broken = len(group) - len(ends)
    came += f" ({broken} without)" if broken and ends else ""
    steps = [step for run in group if (step := _first_step(said, run)) is not None]
    parted = f"{len(steps)} of {len(group)}, from {min(steps):,}" if steps else "-"
    paces = [seconds for run in group if (seconds := said.speed[run].step_seconds)]
    pace = wording.pace(median(paces)) if paces else ""
    otherwise = _otherwise(said, group[0]) or ("(baseline)" if 0 in group else "(its weights alone)")
    return otherwise, _few([names[run] for run in group]), came, parted, pace or "-"


def _run(said: Comparison, names: Sequence[str], rank: int, run: int, by: Values | None) -> tuple[str, ...]:
    end = by.final[run] if by else None
    step = _first_step(said, run)
    first = first_of([item for item in said.partings if item.run == run])
    parted = f"{step:,} {clean(first.channel, SHORT)}" if step is not None and first else "-"
    root, one = said.runs[run]["root"], said.runs[run]
    found = f"{wording.severity(one['worst'])}{f' {root}' if root else ''}"
    came = wording.number(end) if end is not None else "-"
    name = f"{names[run]} (baseline)" if run == 0 else names[run]
    pace = wording.pace(said.speed[run].step_seconds)
    return str(rank), name, came, _otherwise(said, run) or "-", parted, found, pace or "-"


def _first_step(said: Comparison, run: int) -> int | None:
    first = first_of([item for item in said.partings if item.run == run])
    return first.step if first else None


def _otherwise(said: Comparison, run: int) -> str:
    """What is set otherwise than in the baseline, seed and names aside."""
    settings: list[Difference] = [*said.config, *chosen(said.facts)]
    own = [item for item in settings if item.values[run] != item.values[0] and not about_seed(item.path)]
    told = [f"{clean(item.path.rpartition('.')[2], 40)}={_value(item.values[run])}" for item in own]
    return _few(told)


def _value(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return "-" if value == ABSENT else clean(value, SHORT) or "''"


def _few(told: Sequence[str]) -> str:
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return ", ".join(told[:SHOWN]) + more


def _counted(values: Sequence[object]) -> str:
    return _few([f"{value} ({count})" for value, count in Counter(map(_value, values)).most_common()])


def _values(item: Values, names: Sequence[str]) -> tuple[str, ...]:
    order = [run for run in ranking(item) if isinstance(item.final[run], float)]
    name = clean(item.channel, 60)
    base = item.final[0]
    if not order:
        return name, wording.number(base) if base is not None else "-", "-", "-", "-"
    best, middle, worst = (
        f"{wording.number(item.final[run])} {names[run]}" for run in (order[0], order[len(order) // 2], order[-1])
    )
    return name, wording.number(base) if base is not None else "-", best, middle.partition(" ")[0], worst


def _finding(found: Found, names: Sequence[str]) -> tuple[str, ...]:
    have = [run for run, step in enumerate(found.first_step) if step is not None]
    steps = [step for step in found.first_step if step is not None]
    base = "has it" if 0 in have else "not judged" if 0 in found.unjudged else "has not"
    others = [names[run] for run in have if run]
    told = f"{len(others)} of {len(names) - 1}: {_few(others)}" if others else f"none of {len(names) - 1}"
    return f"{found.rule} {clean(found.subject, 60)}", base, told, f"{min(steps):,}"


def _channels(said: Comparison, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for channel in dict.fromkeys(item.channel for item in said.partings):
        own = [item for item in said.partings if item.channel == channel]
        parted = [item for item in own if item.step is not None]
        first = first_of(parted)
        if first:
            yield clean(channel, 60), f"{len(parted)} of {len(own)}", names[first.run], f"{first.step:,}"
