"""The tables of the benchmark, in the terminal and as the page docs/diagnosis.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.diagnosis.kinds import KINDS
from benchmarks.diagnosis.score import MEASURES, Verdict, by, interval, middle, share

Rows = list[list[str]]
WIDTH = 170  # where no terminal says how wide it is

SICK = ("", "runs", *MEASURES, "wrong besides", "dated", "live delay")
HEALTHY = ("", "runs", "with an alarm", "with one while it ran", "which")
KIND = ("kind", "programs", "runs", *MEASURES, "dated", "live delay", "said instead")


def overall(verdicts: Sequence[Verdict]) -> Rows:
    """Sick runs by split: shares with their intervals."""
    rows = []
    for split, group in by(sick(verdicts), split_of).items():
        shares = [_with_interval(group, name) for name in MEASURES]
        wrong = f"{sum(len(one.wrong) for one in group) / len(group):.2f} a run"
        rows.append([split, str(len(group)), *shares, wrong, *_times(group)])
    return rows


def programs(verdicts: Sequence[Verdict]) -> Rows:
    """Sick runs by program."""
    rows = []
    for program, group in by(sick(verdicts), lambda one: one.case.program).items():
        shares = [f"{share(group, measure):.0%}" for measure in MEASURES.values()]
        wrong = f"{sum(len(one.wrong) for one in group) / len(group):.2f} a run"
        rows.append([f"{program} ({split_of(group[0])})", str(len(group)), *shares, wrong, *_times(group)])
    return rows


def healthy(verdicts: Sequence[Verdict]) -> Rows:
    """Healthy runs by split and by program: any alarm is a false one."""
    rows, well = [], [one for one in verdicts if one.healthy]
    for split, group in by(well, split_of).items():
        ran = sum(bool(one.live) for one in group)
        rows.append(
            [f"all of {split}", str(len(group)), _with_interval(group, "alarmed"), f"{ran / len(group):.1%}", ""]
        )
    for program, group in by(well, lambda one: one.case.program).items():
        alarmed = [one for one in group if one.alarmed or one.live]
        rules = Counter(rule for one in alarmed for rule in {*one.alarms, one.live} - {""})
        variants = sorted({one.case.name for one in alarmed})
        which = f"{', '.join(f'{rule} x {n}' for rule, n in rules.most_common())} in {', '.join(variants)}"
        counts = [str(sum(one.alarmed for one in group)), str(sum(bool(one.live) for one in group))]
        rows.append([program, str(len(group)), *counts, which if alarmed else ""])
    return rows


def kinds(verdicts: Sequence[Verdict]) -> Rows:
    """Sick runs by kind, worst first."""
    groups = by(sick(verdicts), lambda one: one.kind)
    rows = []
    for kind, group in sorted(groups.items(), key=lambda item: (share(item[1], MEASURES["root first"]), item[0])):
        where = ", ".join(by(group, lambda one: one.case.program))
        instead = Counter(one.root or "nothing" for one in group if not one.root_first).most_common(2)
        shares = [f"{share(group, measure):.0%}" for measure in MEASURES.values()]
        said = ", ".join(f"{rule} x {n}" for rule, n in instead)
        rows.append([kind, where, str(len(group)), *shares, *_times(group), said])
    return rows


def sick(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [one for one in verdicts if not one.healthy]


def split_of(verdict: Verdict) -> str:
    return "held out" if verdict.held_out else "tuning"


def _with_interval(group: Sequence[Verdict], name: str) -> str:
    measure = MEASURES[name]
    low, high = interval(group, measure)
    return f"{share(group, measure):.1%} ({low:.0%} to {high:.0%})"


def _times(group: Sequence[Verdict]) -> list[str]:
    """Median of how far the root's finding is dated from the onset (rows), and of the live delay (steps)."""
    told = [
        middle(abs(one.dated) if one.dated is not None else None for one in group),
        middle(one.delay for one in group),
    ]
    return ["-" if value is None else f"{value:.0f}" for value in told]


def show(verdicts: Sequence[Verdict]) -> None:
    """All tables in the terminal."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    for title, columns, rows in (
        ("by kind of mistake", KIND, kinds(verdicts)),
        ("healthy runs", HEALTHY, healthy(verdicts)),
        ("sick runs by program", SICK, programs(verdicts)),
        ("sick runs", SICK, overall(verdicts)),
    ):
        if rows:
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    for rule, why in sorted({failure.split(":")[0]: failure for one in verdicts for failure in one.failed}.items()):
        console.print(f"rule {rule} broke: {why}")


def show_misses(verdicts: Sequence[Verdict]) -> None:
    """What was said of each sick run whose root was not named first, and of each healthy run with an alarm."""
    for one in verdicts:
        if one.alarmed if one.healthy else not one.root_first:
            meant = "healthy" if one.healthy else f"{one.kind} from step {one.onset}, so {' or '.join(one.about.root)}"
            others = ", ".join(dict.fromkeys(one.alarms[1:]))
            print(
                f"{one.case.program} {one.case.file} ({meant})\n    said {one.said}\n    and {others or 'nothing else'}"
            )


ABOUT = """# What trainwatch finds, and what it imagines

Written by `python -m benchmarks.diagnosis`: real trainings with one real mistake each, and healthy ones, recorded with
`trainwatch.Recorder`; they are in `benchmarks/diagnosis/store`, their programs in `benchmarks/diagnosis/programs`, the
kinds of mistake in `benchmarks/diagnosis/kinds.py`. Rules were tuned on the tuning programs; nobody who wrote a rule
looked at the held-out ones before they were first judged. What was mended afterwards, and what each set gave at first,
stands in DECISIONS.md.

![kinds of mistake by programs](diagnosis.svg)

- An *alarm* is a finding of warning or worse. On a healthy run every alarm is a false one, and so is one that a live
  face raises and takes back (*while it ran*).
- *alarmed*: sick runs with any alarm; *named*: with an alarm by a rule that names the mistake or rightly sees what it
  does; *root first*: whose root cause is named by a rule for that mistake; *among three*: such a rule is among the
  first three alarms of the diagnosis.
- *wrong besides*: alarms by rules that have nothing to say of that mistake. *dated*: median distance of the finding
  from the first faulty step, in rows of the log. *live delay*: median steps from there to the first alarm of a live
  face that gets ten rows at a time.
- Intervals are of 95 %, by a bootstrap that draws programs and then runs: runs of one program are alike.
"""


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The page."""
    return (
        "\n\n".join(
            [
                ABOUT.rstrip(),
                f"## Sick runs\n\n{_table(SICK, overall(verdicts))}",
                f"## Healthy runs\n\n{_table(HEALTHY, healthy(verdicts))}",
                f"## Sick runs by program\n\n{_table(SICK, programs(verdicts))}",
                f"## By kind of mistake\n\n{_table(KIND, kinds(verdicts))}",
                f"## The kinds\n\n{_table(('kind', 'mistake', 'rules that name it', 'cure'), glossary(verdicts))}",
            ]
        )
        + "\n"
    )


def glossary(verdicts: Sequence[Verdict]) -> Rows:
    """Every kind that was trained, in a sentence."""
    there = by(sick(verdicts), lambda one: one.kind)
    return [[k.name, k.about, ", ".join(k.root), k.cure] for k in KINDS.values() if k.name in there]


def _table(columns: tuple[str, ...], rows: Rows) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
