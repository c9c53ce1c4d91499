"""The demo: trains with a published mistake, shows the diagnosis while it happens, ends with the post-mortem."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from trainwatch import judge, launch
from trainwatch.diagnosis import Diagnosis
from trainwatch.errors import UserError
from trainwatch.following import Followed
from trainwatch.interrupt import terminated_as_interrupted
from trainwatch.readers import ReadError, read
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import terminal, wording

POLL = 0.5  # seconds: a finding is on the screen before the reader has looked up
PLAIN_EVERY = 10.0  # seconds between two lines where no bar can be drawn
LOG_TAIL = 15


def play(logs: Path, *, healthy: bool = False, port: int = 8050, dashboard: bool = True) -> int:
    """Run the demo; returns the exit code. Raises UserError if it cannot run here."""
    name = "demo-healthy" if healthy else "demo"
    checkout = launch.checkout("the demo's")
    out = terminal.console()
    path = logs / f"{name}.jsonl"
    _clear(path)
    with ExitStack() as stack:
        stack.enter_context(terminated_as_interrupted())
        follower = Follower(Followed(path, judge.settings()), out)
        arguments = ["--config", f"configs/{name}.yaml", f"logs={path.parent.absolute()}", f"name={name}"]
        trainer = stack.enter_context(launch.training(checkout, arguments, path.with_suffix(".log")))
        address = stack.enter_context(_served(logs, port, out)) if dashboard else ""
        _introduce(out, healthy, path, address)
        _follow(follower, trainer, out)
        code = _conclude(follower, trainer, out, healthy=healthy)
        if address and sys.stdin.isatty() and sys.stdout.isatty():
            terminal.write(out, Text(f"The dashboard stays open at {address} until Ctrl-C.", style="bold"))
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return code


def _clear(path: Path) -> None:
    """Make room for a new demo: it owns its name, but never takes a running one's file away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        older = read(path) if path.is_file() else None
    except ReadError:
        older = None
    if older is not None and older.status() in ("running", "stalled") and older.header.pid:
        raise UserError(
            f"{path}: a demo is still writing it (process {older.header.pid}); stop that one, or name other --logs."
        )
    beside = [path.with_suffix(suffix) for suffix in (".html", ".md", ".log", ".stop")]
    for old in (path, *path.parent.glob(f"{path.stem}.rank*.jsonl"), *beside):
        old.unlink(missing_ok=True)


@contextmanager
def _served(logs: Path, port: int, out: Console) -> Iterator[str]:
    """The dashboard's address; empty, and said why, where it cannot be served: the demo goes on without."""
    try:
        from dashboards.app import ServeError, start
    except ModuleNotFoundError as error:
        terminal.write(
            out, Text(f"No dashboard: {error.name} is not installed (pip install -e '.[dash]' in the checkout).")
        )
        yield ""
        return
    try:
        server, address = start(logs, port)
    except ServeError as error:
        terminal.write(out, Text(f"No dashboard: {wording.clean(error)}"))
        yield ""
        return
    try:
        yield address
    finally:
        server.shutdown()


def _introduce(out: Console, healthy: bool, path: Path, address: str) -> None:
    what = "as it was meant" if healthy else "with a published mistake in its config"
    terminal.write(out, Text(f"A small peptide model trains {what}; its run file is {path}."))
    if address:
        terminal.write(out, Text("Watch it at ") + Text(address, style="bold underline"))
    out.print()


@dataclass
class Follower:
    """Says what is found in the growing run file, the moment it is."""

    followed: Followed
    out: Console
    started: float = field(default_factory=time.monotonic)

    def poll(self, last: bool = False) -> None:
        """Read and judge what is new; ``last`` when the trainer is gone."""
        self.followed.look(last=last)
        for finding in self.followed.news:
            self._say(finding)

    def _say(self, finding: Finding) -> None:
        lead = Text(f"{time.monotonic() - self.started:4.0f} s  ", style="dim")
        said = terminal.badge(finding.severity) + Text(f"  {finding.rule}", style="bold")
        said.append(f", step {finding.first_step:,}: {wording.clean(finding.message)}")
        terminal.write(self.out, said, lead=lead)

    def progress(self) -> tuple[int, int | None, str]:
        """Steps done, steps planned, and where the loss and the token accuracy stand."""
        run = self.followed.run
        if run is None:
            return 0, None, "starting"
        said = [_latest(run, "train", "loss", "loss"), _latest(run, "eval", "metric/token_accuracy", "token accuracy")]
        return run.last_step or 0, run.header.total_steps, ", ".join(filter(None, said))


def _latest(run: Run, table: str, channel: str, label: str) -> str:
    rows = run.eval if table == "eval" else run.train
    if channel not in rows:
        rows = run.train  # a trainer may measure it on its own batches
    _, values = rows.curve(channel)
    return f"{label} {wording.number(float(values[-1]))}" if len(values) else ""


def _follow(follower: Follower, trainer: subprocess.Popen[bytes], out: Console) -> None:
    """Until the trainer ends: a bar on a terminal, a line now and then elsewhere."""
    with ExitStack() as stack:
        show = stack.enter_context(_bar(out)) if out.is_terminal else _line(out)
        while trainer.poll() is None:
            follower.poll()
            show(*follower.progress())
            time.sleep(POLL)
        follower.poll(last=True)
        show(*follower.progress())


Show = Callable[[int, int | None, str], None]


@contextmanager
def _bar(out: Console) -> Iterator[Show]:
    columns = (
        BarColumn(bar_width=24),
        TextColumn("step {task.completed:,.0f} of {task.fields[planned]}  {task.description}", markup=False),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        task: TaskID = progress.add_task("starting", total=None, planned="?")

        def show(done: int, planned: int | None, said: str) -> None:
            count = f"{planned:,}" if planned else "?"
            progress.update(task, completed=done, total=planned, description=said, planned=count)

        yield show


def _line(out: Console) -> Show:
    due = time.monotonic() + PLAIN_EVERY

    def show(done: int, planned: int | None, said: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PLAIN_EVERY
            of = f" of {planned:,}" if planned else ""
            terminal.write(out, Text(f"step {done:,}{of}, {said}"))

    return show


def _conclude(follower: Follower, trainer: subprocess.Popen[bytes], out: Console, *, healthy: bool) -> int:
    """Write the post-mortem and say where it is; 0 if the demo showed what it is there to show."""
    run, diagnosis, path = follower.followed.run, follower.followed.diagnosis, follower.followed.path
    if run is None or diagnosis is None or trainer.returncode:
        _show_log(path.with_suffix(".log"), trainer.returncode)
        return 2
    report = _report(run, diagnosis, path)
    out.print()
    terminal.write(out, terminal.verdict(diagnosis, run.header.total_steps))
    terminal.write(out, Text(wording.root_cause(diagnosis), style="bold"))
    terminal.write(out, Text(f"Post-mortem: {report}"))
    other = "demo.jsonl" if healthy else "demo-healthy.jsonl"
    advice = f"trainwatch check {path}"
    if (path.parent / other).is_file():
        advice += f"   trainwatch compare {path.parent / other} {path}"
    else:
        advice += f"   trainwatch demo{'' if healthy else ' --healthy'}"
    terminal.write(out, Text(f"Try next: {advice}", style="dim"))
    return 0 if (diagnosis.root_cause is None) == healthy else 1


def _report(run: Run, diagnosis: Diagnosis, path: Path) -> Path:
    from trainwatch.report import Subject, write

    target = path.with_suffix(".html")
    try:
        write([Subject(run, diagnosis)], target)
    except ModuleNotFoundError:  # the figures need the dash extra
        target = path.with_suffix(".md")
        write([Subject(run, diagnosis)], target)
    return target


def _show_log(log: Path, code: int | None) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    print(f"trainwatch: the trainer failed (exit code {code}); {log} ends with:", file=sys.stderr)
    for line in lines[-LOG_TAIL:]:
        print(f"  {wording.clean(line, 300)}", file=sys.stderr)
