"""What the live view shows: plain data in, lines of text out, as many as the window has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from trainwatch.diagnosis import Diagnosis
from trainwatch.following import Followed
from trainwatch.header import number
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import terminal, wording
from trainwatch.text.terminal import WIDEST
from trainwatch.text.wording import clean
from trainwatch.watch.sparkline import BLOCKS, Curve, sparkline

BAR, NARROW_BAR = 24, 8  # cells of the progress bar; where a window has no room for it and what stands beside it
SAID, ADVISED = 3, 2  # lines of a finding's message and of its advice
ROOM_FOR_CURVE, ROOM_FOR_STEPS = 84, 56  # columns of a window from which a table of runs has these
WORD, CAUSE = 11, 40  # cells for the worst finding: a severity alone, and with the longest rule's name
NAME = 36  # cells that a run's name may take in a table

Key = tuple[str, str, int]
ASCII = str.maketrans("✖▲●✓↳…━─▸↑↓" + BLOCKS, "X!o+>.=->^v" + "_.-~=+*#")
"""For a terminal that has no more; the word stands beside each symbol."""


@dataclass(frozen=True)
class Looks:
    """How a run is looked at: the window's ``height`` (None for all there is), findings scrolled past, fresh ones."""

    height: int | None = None
    scroll: int = 0
    fresh: Collection[Key] = ()


def plain(line: Text) -> Text:
    """The line in ASCII, sign by sign."""
    said = line.copy()
    said.plain = line.plain.translate(ASCII).encode("ascii", "replace").decode()
    return said


def wrapped(out: Console, text: Text, left: int = 0, most: int | None = None) -> list[Text]:
    """Prose in lines of the window's width, at most so many; it is said where there is more."""
    lines = list(text.wrap(out, max(min(out.width, WIDEST) - left, 12)))
    for line in lines:
        line.rstrip()
    if most is not None and len(lines) > most:
        lines = lines[:most]
        lines[-1].truncate(max(min(out.width, WIDEST) - left - 1, 1))
        lines[-1].append("…")
    return [Text(" " * left) + line for line in lines]


def waiting(out: Console, file: Followed) -> list[Text]:
    """A file in which there is no run yet: why, and that it is waited for."""
    why = wording.clean(file.error) or f"{clean(file.path)}: reading …"
    return [
        *wrapped(out, Text(why, style="bold")),
        *(
            wrapped(out, Text("Waiting for its first row; it appears here by itself.", style="dim"))
            if file.error
            else []
        ),
    ]


def empty(out: Console, folder: str) -> list[Text]:
    """A folder in which there is no run yet."""
    lines = wrapped(out, Text(f"{clean(folder)}: holds no run yet.", style="bold"))
    said = f"Waiting for one; `trainwatch.Recorder({clean(folder)!r} + '/NAME.jsonl')` in a training loop writes it."
    return lines + wrapped(out, Text(said, style="dim"))


def head(out: Console, run: Run, said: Diagnosis, now: float, runs: int = 1) -> list[Text]:
    """How bad, which run, its state and progress, and the root cause."""
    title = terminal.worst(said) + Text(f"  {clean(run.name, 80)}", style="bold")
    title += Text("  ") + state(run, said)
    if runs > 1:
        title.append(f"  the newest of {runs} runs in {clean(run.source.name, 80)}", style="dim")
    cause = Text(wording.root_cause(said), style="bold" if said.root_cause else "")
    return [
        *wrapped(out, title),
        *wrapped(out, progress(run, said, now, out.width < ROOM_FOR_CURVE)),
        *wrapped(out, cause, most=6),
    ]


def state(run: Run, said: Diagnosis) -> Text:
    """The state by heartbeat and process, and what the run is at besides training."""
    beat = run.heartbeat or {}
    newest = said.status == "running" and (number(beat.get("time")) or 0.0) > run.row_time()
    doing = f" ({beat['phase']})" if newest and beat.get("phase") in ("eval", "checkpoint") else ""
    style = {"running": "green", "finished": "", "stopped": ""}.get(said.status, "bold red")
    return Text(f"{said.status.replace('-', ' ')}{doing}", style=style)


def progress(run: Run, said: Diagnosis, now: float, narrow: bool = False) -> Text:
    """A bar, the step, the speed, the time left, and how old the newest row is."""
    last, total = run.last_step, run.header.total_steps
    line, parts = Text(), [wording.steps(last, last) + (f" of {total:,}" if total and last is not None else "")]
    if total and last is not None:
        done = min(last / total, 1.0)
        bar = NARROW_BAR if narrow else BAR
        cells = round(done * bar)
        line = Text("━" * cells, style="green") + Text("─" * (bar - cells), style="dim") + Text(f" {done:4.0%}  ")
    parts += [wording.speed(run), wording.left(run) if said.status in ("running", "stalled") else ""]
    written = run.row_time() or run.touched
    parts.append(f"last row {wording.age(now - written)} ago" if written and last is not None else "")
    return line + Text(("  " if narrow else "   ").join(filter(None, parts)))


def findings(out: Console, said: Diagnosis, fresh: Collection[Key]) -> list[list[Text]]:
    """Each finding in a few lines; of the root cause only what to do, as its message stands above."""
    return [_finding(out, said, one, one.key in fresh) for one in said.findings]


def _finding(out: Console, said: Diagnosis, finding: Finding, fresh: bool) -> list[Text]:
    is_root = said.root_cause is not None and finding.key == said.root_cause.key
    lead = Text("↳ " if finding.key in said.explained else "")
    title = lead + terminal.headline(finding)
    if fresh:
        title.append("  ")
        title.append(" new ", style="reverse")
    left = lead.cell_len + 2
    lines = wrapped(out, title, most=2)
    lines += [] if is_root else wrapped(out, Text(clean(finding.message)), left, SAID)
    if finding.advice:
        advice = Text("do: ", style="dim") + Text(clean(finding.advice))
        lines += wrapped(out, advice, left, ADVISED)
    return lines


def one_run(out: Console, file: Followed, charts: Sequence[Text], looks: Looks, now: float) -> list[Text]:
    """A run in the window's height: the head whole, then findings and charts, each at least half of what is left."""
    if file.run is None or file.diagnosis is None:
        return waiting(out, file)
    top = head(out, file.run, file.diagnosis, now, file.runs)
    blocks = findings(out, file.diagnosis, looks.fresh)
    told = _scrolled(blocks, looks.scroll)
    if looks.height is None:
        room, rest = len(told), len(charts)
    else:
        space = max(looks.height - len(top) - bool(told) - bool(charts), 0)
        room = min(len(told), max(space - len(charts), space // 2))
        rest = space - room
    parts = [top, _cut(told, room, "findings below"), _cut(charts, rest, "lines of numbers below")]
    lines = [line for part in parts if part for line in (Text(), *part)][1:]
    return lines[: looks.height]


def _scrolled(blocks: list[list[Text]], scroll: int) -> list[Text]:
    """The findings from the chosen one on."""
    return [line for block in blocks[min(scroll, max(len(blocks) - 1, 0)) :] for line in block]


def _cut(lines: Sequence[Text], room: int, what: str) -> list[Text]:
    if len(lines) <= room:
        return list(lines)
    return [*lines[: max(room - 1, 0)], Text(f"… {what}", style="dim")][:room]


def runs(
    out: Console, files: Sequence[tuple[str, Followed]], chosen: str | None, rows: int | None, now: float
) -> list[Text]:
    """The table of runs around the chosen one."""
    at = next((index for index, (key, _) in enumerate(files) if key == chosen), 0)
    start = 0 if rows is None else max(0, min(at - rows // 2, len(files) - rows))
    shown = files[start:] if rows is None else files[start : start + rows]
    label = min(NAME, max(12, out.width // 4), max([8, *(len(_name(key, file)) for key, file in shown)]))
    lines = [_run_row(out.width, label, key, file, key == chosen, now) for key, file in shown]
    hidden = len(files) - len(shown)
    return [_run_heads(out.width, label), *lines, *([Text(f"  and {hidden:,} more", style="dim")] if hidden else [])]


def _columns(width: int, label: int) -> dict[str, int]:
    """The columns of the table of runs that have room, and their cells; the last has what the others leave."""
    columns = {"state": 13, "step": 9, "loss": 22, "age": 6}
    if width < ROOM_FOR_CURVE:
        columns |= {"state": 9}
        columns.pop("loss")
    if width < ROOM_FOR_STEPS:
        columns.pop("step")
    left = width - label - 2 - sum(cells + 2 for cells in columns.values())
    return {**columns, "worst": min(max(left - 2, WORD), CAUSE)}


def _run_heads(width: int, label: int) -> Text:
    line = Text(f"  {'run':<{label}}", style="bold")
    for name, cells in _columns(width, label).items():
        line.append(f"  {name:>{cells}}" if name in ("step", "age") else f"  {name:<{cells}}")
    line.truncate(width)
    return line


def _run_row(width: int, label: int, key: str, file: Followed, chosen: bool, now: float) -> Text:
    name = Text(_name(key, file), style="bold" if chosen else "")
    name.truncate(label, overflow="ellipsis", pad=True)
    line = Text("▸ " if chosen else "  ") + name
    run, said = file.run, file.diagnosis
    if run is None or said is None:
        why = clean(file.error.partition(": ")[2] or file.error) or "reading …"
        line.append(f"  {why}", style="dim")
    else:
        for column, cells in _columns(width, label).items():
            cell = _run_cell(column, run, said, now, cells)
            cell.truncate(cells, overflow="ellipsis", pad=column not in ("step", "age"))
            line += Text("  " + " " * (cells - cell.cell_len)) + cell
    line.truncate(width, overflow="ellipsis")
    return line


def _run_cell(column: str, run: Run, said: Diagnosis, now: float, cells: int) -> Text:
    if column == "state":
        return state(run, said)
    if column == "step":
        return Text(f"{run.last_step:,}" if run.last_step is not None else "-")
    if column == "age":
        return Text(wording.age(now - run.touched))
    if column == "loss":
        curve, last = Curve.of(run.train, "loss"), run.train.last("loss")
        if not curve or run.first_step is None or run.last_step is None or last is None:
            return Text("-")
        drawn = sparkline(curve, run.first_step, run.last_step, 12)
        return drawn + Text(f" {wording.number(last)}")
    cause = said.root_cause or (said.findings[0] if said.findings else None)
    worst = terminal.worst(said)
    return worst + Text(f" {cause.rule}") if cause is not None and cells > worst.cell_len + 5 else worst


def _name(key: str, file: Followed) -> str:
    run = file.run
    return clean(key if run is None or run.name in (run.source.stem, key) else f"{run.name} ({key})", 80)
