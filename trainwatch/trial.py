"""A cure that is tried: a run is forked before its first bad step, once as it was and once cured, and both compared."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainwatch import launch
from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import Settings
from trainwatch.errors import UserError
from trainwatch.following import Followed
from trainwatch.header import number, text
from trainwatch.interrupt import terminated_as_interrupted
from trainwatch.prescription import good_checkpoints
from trainwatch.run import Run
from trainwatch.text import patch, wording

POLL = 0.5  # seconds
FORKS = ("as-it-was", "cured")
SHOWN, SHOWN_SHARE = 100, 0.05  # steps beyond the first bad one, and a share of the run: rules look back over 20 or 2 %


@dataclass(frozen=True)
class Fork:
    """Where both begin, and where they end."""

    folder: Path
    checkpoint: Path | None
    begin: int
    end: int

    def arguments(self, name: str) -> list[str]:
        """The trainer's command line for one of both."""
        configs = ["--config", f"{self.folder / 'config.yaml'}"]
        configs += ["--config", f"{self.folder / 'patch.yaml'}"] if name == "cured" else []
        resume = ["--resume", f"{self.checkpoint}"] if self.checkpoint else []
        return [*configs, *resume, "--to", str(self.end), f"logs={self.folder}", f"name={name}", "checkpoint.folder="]


@dataclass(frozen=True)
class Trial:
    """Both runs with their diagnoses, as it was and cured, and what the trial says in one sentence."""

    fork: Fork
    runs: tuple[tuple[Run, Diagnosis], ...]
    holds: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """The trial for programs."""
        named = list(zip(FORKS, self.runs, strict=True))
        return {
            "begin": self.fork.begin,
            "end": self.fork.end,
            "holds": self.holds,
            "verdict": self.verdict,
            "runs": {name: said.to_dict() | {"losses": losses(run)} for name, (run, said) in named},
        }


def plan(run: Run, said: Diagnosis, steps: int | None) -> Fork:
    """Where to fork a run, and how far to train. Raises UserError, in one sentence, where that cannot be."""
    if not patch.of_trainer(run):
        raise UserError(_by_hand(run, said))
    if run.header.raw.get("world_size", 1) != 1 or not run.header.config:
        raise UserError(f"{run.source}: was written by several processes, or tells no config; --try takes neither.")
    first, total = said.prescription.first_bad or 0, run.header.total_steps
    if total is None:
        raise UserError(f"{run.source}: does not say how many steps are planned, so no fork can end with it.")
    found = _checkpoint(run, first)
    begin = found[0] if found else 0
    far = steps if steps is not None else max(first - begin, 0) + max(SHOWN, round(SHOWN_SHARE * total))
    return Fork(_fresh(run.source), found[1] if found else None, begin, min(begin + far, total))


def _checkpoint(run: Run, first: int) -> tuple[int, Path] | None:
    """The last good checkpoint that is still there: older ones are pruned, or were moved aside by a resume."""
    for event in reversed(good_checkpoints(run, first)):
        told = Path(text(event.get("path")) or "")
        beside = run.source.with_suffix(".checkpoints") / told.name
        step = number(event.get("step"))
        for path in (told, beside):
            if path.is_file() and step is not None:
                return int(step), path.absolute()
    return None


def _fresh(source: Path) -> Path:
    """A folder beside the record that does not exist yet."""
    count, folder = 1, source.absolute().with_suffix(".trial")
    while folder.exists():
        count += 1
        folder = source.absolute().with_suffix(f".trial-{count}")
    return folder


def _by_hand(run: Run, said: Diagnosis) -> str:
    command = run.header.raw.get("command")
    told = shlex.join(wording.clean(part, 200) for part in command) if isinstance(command, list) else "your command"
    good = good_checkpoints(run, said.prescription.first_bad or 0)
    where = wording.clean(good[-1].get("path") or f"step {good[-1].get('step')}", 300) if good else ""
    begin = f"from the checkpoint {where}" if good else "from the start"
    return (
        f"{run.source}: --try runs no command that a log holds, but those of `python -m trainer`; run both by hand, "
        f"{begin}: (1) `{told}` as it was, (2) the same with the patch that `trainwatch prescribe {run.source}` "
        "prints; then `trainwatch compare` them."
    )


def attempt(run: Run, said: Diagnosis, fork: Fork, chosen: Settings, out: Console) -> Trial:
    """Train both, one after the other, with the progress on ``out``. Raises UserError where one cannot train."""
    place = launch.checkout("--try's")
    fork.folder.mkdir(parents=True)
    config = yaml.safe_dump(wording.strict(run.header.config), sort_keys=False)
    (fork.folder / "config.yaml").write_text(config, encoding="utf-8")
    (fork.folder / "patch.yaml").write_text(patch.document(run, said), encoding="utf-8")
    with terminated_as_interrupted():
        found = tuple(_train(place, fork, name, chosen, out) for name in FORKS)
    holds, verdict = _verdict(fork, found[0][1], found[1][1])
    return Trial(fork, found, holds, verdict)


def _train(place: Path, fork: Fork, name: str, chosen: Settings, out: Console) -> tuple[Run, Diagnosis]:
    followed = Followed(fork.folder / f"{name}.jsonl", chosen)
    log = fork.folder / f"{name}.log"
    with (
        launch.training(place, fork.arguments(name), log, Path.cwd()) as process,
        _bar(out, name, fork) as show,
    ):
        while process.poll() is None:
            followed.look()
            show(followed.run.last_step if followed.run else None)
            time.sleep(POLL)
        followed.look(last=True)
        show(followed.run.last_step if followed.run else None)
    if followed.run is None or followed.diagnosis is None or followed.run.last_step is None:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise UserError(f"{log}: the run {name} took no step: {wording.clean(last[0], 300)}")
    return followed.run, followed.diagnosis


@contextmanager
def _bar(out: Console, name: str, fork: Fork) -> Iterator[Callable[[int | None], None]]:
    """A bar on a terminal; one line at the beginning elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = f"{name}, steps {fork.begin + 1:,} to {fork.end:,}"
    if not out.is_terminal:
        out.print(told)
        yield lambda _step: None
        return
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(told, total=fork.end - fork.begin)
        yield lambda step: bar.update(task, completed=max((step or 0) - fork.begin, 0))


def _verdict(fork: Fork, before: Diagnosis, cured: Diagnosis) -> tuple[bool, str]:
    """Whether the cure holds, and in words."""
    span = f"in steps {fork.begin + 1:,} to {fork.end:,}"
    sick, well = not healthy(before), healthy(cured)
    if sick and well:
        return True, f"The cure holds: nothing is wrong with the cured run {span}, and {_told(before)} as it was."
    if well:
        return False, f"Nothing is wrong with either {span}, so nothing is proven: train further with --steps."
    rules = {finding.rule for finding in before.findings if finding.severity != "info"}
    if cured.root_cause and before.root_cause and cured.root_cause.rule == before.root_cause.rule:
        return False, f"The cure does not hold: {_told(cured)} in the cured run too, {span}."
    grave = {finding.rule for finding in cured.findings if finding.severity != "info"}
    worse = f"which the run as it was has not ({', '.join(sorted(grave - rules))})" if grave - rules else "as before"
    return False, f"The cured run is not healthy {span}: {_told(cured)}, {worse}."


def healthy(said: Diagnosis) -> bool:
    """No warning, and not broken off."""
    return said.worst in (None, "info") and said.status not in ("failed", "killed", "stalled", "never-started")


def _told(said: Diagnosis) -> str:
    root = said.root_cause
    return f"{root.rule} was found since step {root.first_step:,}" if root else f"the run {said.status}"


def losses(run: Run) -> dict[str, float]:
    """The last value of each loss of the training and of its evaluations."""
    found: dict[str, float] = {}
    for label, table in (("", run.train), ("eval ", run.eval)):
        for channel in table.channels:
            if channel == "loss" or channel.startswith("loss/"):
                values = [float(value) for value in table.curve(channel)[1]]
                found |= {f"{label}{channel}": values[-1]} if values else {}
    return found
