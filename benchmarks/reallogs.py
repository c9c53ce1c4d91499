"""Real logs that somebody labelled: who reads them, who names what is wrong, who cries wolf; trainwatch and its rivals.

    python benchmarks/reallogs.py FOLDER [--rivals FOLDER_OF_PROGRAMS] [--misses]
    python benchmarks/reallogs.py --corpus [--rivals FOLDER_OF_PROGRAMS] [--misses]

FOLDER holds `labels.tsv` (columns slug, repo, label, pathology_or_note) and a folder of files for each slug. A label
is HEALTHY, PATHOLOGICAL, or something else, which is read and not judged. Each tool is asked as a program, as a user
asks it; the rivals (losslint, runmedic, trainproof) once about the log as it lies, and once about a CSV of the steps,
losses, rates and norms that trainwatch reads in it. An alarm is what a tool calls a warning or worse. Logs of one
repository are alike, so shares are means over repositories of the means within each. Read right is a log whose runs,
rows, steps, components and channels are those that ``readings.py`` expects.

``--corpus`` judges the held-out programs of ``benchmarks.diagnosis`` instead (seed 0, a program for a
repository): their kinds say what is wrong, and a rival has named it if its words are those of a rule that may name it.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import readings
from rich.progress import track
from tables import show

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis import corpus as stored
from trainwatch.readers import read_all
from trainwatch.run import Run

PATIENCE = 120  # s for one log
CORPUS_SEEDS = 1  # of each kind and variant: with the rivals, each takes five seconds


@dataclass(frozen=True)
class Cause:
    """A way to be sick: how a label tells it, which of our rules name it, and what rivals call it."""

    label: str
    rules: frozenset[str]
    rivals: str


CAUSES = (
    Cause(
        r"\bnan\b|\binf\b",
        frozenset({"non-finite-loss", "non-finite-gradient", "non-finite-weights", "non-finite-metric", "hidden-nan"}),
        r"nan|finite|inf",
    ),
    Cause(r"overfit", frozenset({"overfitting", "generalisation-gap"}), r"overfit"),
    Cause(r"crash|error", frozenset({"crashed"}), r"crash|error|trace"),
    Cause(
        r"dead grad|zero grad", frozenset({"gradient-vanishing", "dead-module", "frozen-weights"}), r"zero|vanish|dead"
    ),
    Cause(r"never learn|stuck", frozenset({"loss-stuck", "metric-stuck", "lr-zero"}), r"flat|stuck|plateau|learn"),
    Cause(r"diverge|explo|blow", frozenset({"loss-divergence", "gradient-explosion", "lr-too-high"}), r"diverg|explo"),
    Cause(r"spike", frozenset({"loss-spike", "gradient-spike"}), r"spike"),
    Cause(r"imbalance|outweigh", frozenset({"loss-scale-imbalance", "gradient-dominance"}), r"imbalance"),
    Cause(r"several runs|restart", frozenset({"run-appended", "step-reset"}), r"restart|reset"),
)


@dataclass(frozen=True)
class Log:
    """One labelled log."""

    slug: str
    repository: str
    label: str
    note: str
    path: Path
    known: Cause | None = None  # of the corpus; a label's words tell it otherwise

    def causes(self) -> list[Cause]:
        """What its label says is wrong."""
        if self.known:
            return [self.known]
        return [cause for cause in CAUSES if re.search(cause.label, self.note, re.IGNORECASE)]


@dataclass(frozen=True)
class Told:
    """What a tool said of a log: whether it read any rows of it, and its alarms."""

    read: bool = False
    alarms: tuple[str, ...] = ()
    seconds: float = 0.0


def logs(folder: Path) -> list[Log]:
    """All that the labels name."""
    with (folder / "labels.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Log(row["slug"], row["repo"], row["label"], row["pathology_or_note"], folder / row["slug"]) for row in rows]


def corpus(folder: Path) -> list[Log]:
    """The held-out programs' trainings, laid below a folder as they were recorded."""
    found = []
    for name in (name for name, program in stored.found().items() if program.HELD_OUT):
        for record in (record for record in stored.records(name) if record.case.seed < CORPUS_SEEDS):
            place = folder / f"{name}-{record.case.file}"
            place.mkdir()
            stored.lay(record.files, place)
            label, kind = ("PATHOLOGICAL", record.kind.name) if record.kind else ("HEALTHY", "")
            found.append(Log(place.name, name, label, kind, place, named(record.kind.root) if record.kind else None))
    return found


def named(rules: tuple[str, ...]) -> Cause:
    """How rules are named by ourselves, and by whoever means the same."""
    words = {word for rule in rules for word in rule.split("-") if len(word) > 3}
    alike = [cause.rivals for cause in CAUSES if cause.rules & set(rules)]
    return Cause("", frozenset(rules), "|".join([*sorted(words), *alike]))


def ask(program: Iterable[str], path: Path, judged: Callable[[Any], Told]) -> Told:
    """Run a program on a log; what prints no JSON, or hangs, has read nothing."""
    began = time.perf_counter()
    try:
        done = subprocess.run([*program, str(path)], capture_output=True, text=True, timeout=PATIENCE)
        told = judged(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        told = Told()
    return Told(told.read, told.alarms, time.perf_counter() - began)


def of_trainwatch(said: Any) -> Told:
    """``trainwatch check --format json``"""
    found = [finding for run in said["runs"] for finding in run["findings"]]
    alarms = [finding["rule"] for finding in found if finding["severity"] != "info"]
    return Told(any(run["records"] for run in said["runs"]), tuple(alarms))


def of_losslint(said: Any) -> Told:
    """``losslint check --format json``"""
    alarms = [finding["check"] for finding in said["findings"] if finding["severity"] != "info"]
    return Told(any(run["points"] for run in said["runs"]), tuple(alarms))


def of_runmedic(said: Any) -> Told:
    """``runmedic diagnose --json``"""
    alarms = [finding["check"] for run in said for finding in run["findings"] if finding["severity"] != "info"]
    return Told(any(run["series"] for run in said), tuple(alarms))


def of_trainproof(said: Any) -> Told:
    """``trainproof doctor --json``"""
    found = [finding for report in said["reports"] for finding in report["findings"]]
    ran = any(report["checks"]["ran"] for report in said["reports"])
    return Told(ran, tuple(finding["id"] for finding in found if finding["level"] in ("FAIL", "WARN", "WARNING")))


RIVALS: dict[str, tuple[tuple[str, ...], Callable[[Any], Told]]] = {
    "losslint": (("check", "--format", "json"), of_losslint),
    "runmedic": (("diagnose", "--json"), of_runmedic),
    "trainproof": (("doctor", "--json"), of_trainproof),
}


def flattened(log: Log, folder: Path) -> Path | None:
    """The log's longest run as the plainest CSV there is; None where nothing can be read."""
    try:
        files = sorted(path for path in log.path.rglob("*") if path.is_file())
        runs = [run for path in files for run in read_all(path)]
    except Exception:
        return None
    if not runs:
        return None
    run = max(runs, key=lambda one: one.train.size)
    path = folder / f"{log.slug}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "learning_rate", "grad_norm", "eval_loss"])
        writer.writerows(_rows(run))
    return path


def _rows(run: Run) -> list[list[object]]:
    """Training and evaluations in the order of their steps; what is absent is empty."""
    train, judged = run.frame("train"), run.frame("eval")
    rate = next((name for name in train.columns if name.startswith("lr")), "lr")
    rows = [
        [row.get("step"), row.get("loss", ""), row.get(rate, ""), row.get("grad_norm", ""), ""]
        for row in train.to_dict("records")
    ]
    rows += [[row.get("step"), "", "", "", row.get("loss", "")] for row in judged.to_dict("records")]
    return sorted(rows, key=lambda row: float(str(row[0])))


def share(chosen: list[tuple[Log, float]]) -> float:
    """The mean over repositories of the means within each; NaN of nothing."""
    by: dict[str, list[float]] = {}
    for log, value in chosen:
        by.setdefault(log.repository, []).append(value)
    return mean(mean(values) for values in by.values()) if by else float("nan")


def right(log: Log, told: Told, ours: bool) -> bool:
    """Whether an alarm names what the label says."""
    said = set(told.alarms)
    return any(
        bool(said & cause.rules) if ours else any(re.search(cause.rivals, one, re.IGNORECASE) for one in said)
        for cause in log.causes()
    )


def scored(name: str, verdicts: list[tuple[Log, Told]]) -> list[str]:
    """A row of the table."""
    sick = [(log, told) for log, told in verdicts if log.label == "PATHOLOGICAL"]
    healthy = [(log, told) for log, told in verdicts if log.label == "HEALTHY"]
    ours = name == "trainwatch"
    alarmed = sum(bool(told.alarms) for _, told in healthy)
    return [
        name,
        f"{sum(told.read for _, told in verdicts)} of {len(verdicts)}",
        f"{share([(log, float(bool(told.alarms))) for log, told in sick]):.2f}",
        f"{share([(log, float(right(log, told, ours))) for log, told in sick]):.2f}",
        f"{share([(log, float(bool(told.alarms))) for log, told in healthy]):.2f} ({alarmed} of {len(healthy)})",
        f"{mean(told.seconds for _, told in verdicts):.1f} s",
    ]


def main() -> None:
    """Ask every tool about every log, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--corpus", action="store_true", help="the held-out programs of benchmarks.diagnosis instead")
    parser.add_argument("--rivals", type=Path, help="the folder that the rivals' programs are installed in")
    parser.add_argument("--misses", action="store_true", help="print the healthy logs alarmed and the sick ones missed")
    asked = parser.parse_args()
    if asked.corpus == bool(asked.folder):
        parser.error("give either a folder of labelled logs or --corpus")
    with tempfile.TemporaryDirectory() as scratch:
        chosen = corpus(Path(scratch)) if asked.corpus else logs(asked.folder)
        rows = judged_by_all(chosen, asked.rivals, misses=asked.misses)
    show(
        f"{len(chosen)} labelled logs of {len({log.repository for log in chosen})} repositories",
        ("tool", "read", "alarm recall", "right cause", "healthy alarmed", "a log"),
        rows,
    )
    if asked.folder:
        there = [name for name in readings.expected() if (asked.folder / name).is_file()]
        wrong = list(readings.wrong(asked.folder, there))
        print("\n".join([f"trainwatch, read right: {len(there) - len(wrong)} of {len(there)}", *wrong]))


def judged_by_all(chosen: list[Log], rivals: Path | None, *, misses: bool) -> list[list[str]]:
    """A row of the table for each tool, and for each rival a second one about flattened logs."""
    ours = (str(Path(sys.executable).with_name("trainwatch")), "check", "--format", "json")
    verdicts = [(log, ask(ours, log.path, of_trainwatch)) for log in track(chosen, "trainwatch")]
    if misses:
        show_misses(verdicts)
    rows = [scored("trainwatch", verdicts)]
    with tempfile.TemporaryDirectory() as folder:
        flat = {log.slug: flattened(log, Path(folder)) for log in chosen} if rivals else {}
        for name, (arguments, judged) in RIVALS.items() if rivals else ():
            program = shutil.which(name, path=rivals)
            if program is None:
                print(f"{name} is not installed in {rivals}, and is left out")
                continue
            call = (program, *arguments)
            rows.append(scored(name, [(log, ask(call, log.path, judged)) for log in track(chosen, name)]))
            plain = [(log, ask(call, path, judged) if (path := flat[log.slug]) else Told()) for log in chosen]
            rows.append(scored(f"{name}, flattened", plain))
    return rows


def show_misses(verdicts: list[tuple[Log, Told]]) -> None:
    """What trainwatch got wrong, log by log."""
    for log, told in verdicts:
        if log.label == "HEALTHY" and told.alarms:
            print(f"healthy, alarmed: {log.slug}: {', '.join(told.alarms)}")
        elif log.label == "PATHOLOGICAL" and not right(log, told, ours=True):
            print(f"sick, not named: {log.slug} ({log.note}): {', '.join(told.alarms) or 'silence'}")
        elif not told.read and log.label != "NO-CURVE":
            print(f"not read: {log.slug} ({log.label})")


if __name__ == "__main__":
    main()
