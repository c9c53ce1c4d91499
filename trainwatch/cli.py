"""The command line: parse, call, print. Every other module does its work without it."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from trainwatch.engine import nearest
from trainwatch.errors import UserError, sentence

if TYPE_CHECKING:
    from trainwatch.alerts.channels import Channel
    from trainwatch.diagnosis import Diagnosis
    from trainwatch.engine import Settings
    from trainwatch.judge import Judged
    from trainwatch.schema import Finding
    from trainwatch.trial import Trial
    from trainwatch.watch.board import Listener

CODES = (
    "Exit codes: 0 nothing at or above --fail-on, 1 something is, 2 some path could not be judged (stderr says why)."
)

app = typer.Typer(
    name="trainwatch",
    help="What is wrong with a training run, since which step, why, and what cures it.",
    epilog="`trainwatch COMMAND --help` has an example of each. Try `trainwatch demo` first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """What ``check`` prints."""

    text = "text"
    json = "json"
    markdown = "markdown"
    sarif = "sarif"


class CompareFormat(StrEnum):
    """What ``compare`` prints."""

    text = "text"
    json = "json"
    markdown = "markdown"


class Align(StrEnum):
    """What ``compare`` lays curves along."""

    step = "step"
    epoch = "epoch"
    samples = "samples"
    tokens = "tokens"
    time = "time"
    stage = "stage"


class PrescribeFormat(StrEnum):
    """What ``prescribe`` prints."""

    text = "text"
    json = "json"


class FailOn(StrEnum):
    """The severity from which ``check`` exits with 1."""

    info = "info"
    warning = "warning"
    critical = "critical"
    never = "never"


class StopOnSeverity(StrEnum):
    """The severity from which ``watch`` asks a run to stop."""

    warning = "warning"
    critical = "critical"


Set = Annotated[list[str] | None, typer.Option("--set", metavar="RULE.FIELD=VALUE", help="Change a rule's threshold.")]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="CHANNEL=NAME", help="Say what a name in a log means: val=dev_loss, none=foo."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run file.")]


@app.command(short_help="Train with a mistake in it, and see it found.")
def demo(
    healthy: Annotated[bool, typer.Option("--healthy", help="Train the same without the mistake.")] = False,
    port: Annotated[int, typer.Option(help="Port of the dashboard on this machine.", min=0, max=65535)] = 8050,
    logs: Annotated[Path, typer.Option(help="Folder for the run file and the post-mortem.")] = Path("logs"),
    dashboard: Annotated[bool, typer.Option("--dash/--no-dash", help="Serve the dashboard meanwhile.")] = True,
) -> None:
    """Train a small peptide model with a published mistake in it, watch it fail, and read why.

    \b
    Example:     trainwatch demo
    Exit codes:  0 it showed what it should, 1 it did not, 2 it could not run, 130 Ctrl-C
    """
    from trainwatch.demo import play

    raise typer.Exit(play(logs, healthy=healthy, port=port, dashboard=dashboard))


@app.command("list", short_help="Every run below a folder, with its state.")
def list_runs(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: logs/, else this folder.")] = None,
    map_: Map = None,
) -> None:
    """Show every run below a folder: state, steps, loss, worst finding, age.

    \b
    Example:     trainwatch list logs
    Exit codes:  0 runs are shown, 2 there are none or some could not be read
    """
    from trainwatch import judge
    from trainwatch.text import tables, terminal

    folder = folder or _usual_folder()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; `trainwatch check {folder}` judges it, `list` takes a folder.")
    judged, unread = _judge([folder], judge.settings(), map_)
    if judged:
        tables.runs(terminal.console(), [(item.run, item.diagnosis) for item in judged])
    raise typer.Exit(2 if _complain(unread) else 0)


@app.command(epilog=CODES, short_help="Follow a run live in the terminal.")
def watch(
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN|DIR]", help="A run file, or a folder of them. Default: logs/, else this folder."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now, and end.")] = False,
    notify: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Tell a service, by its apprise URL: findings from warning on, and the end."),
    ] = None,
    exec_: Annotated[
        list[str] | None,
        typer.Option("--exec", metavar="CMD", help="Run a command for the same, with JSON on its stdin; no shell."),
    ] = None,
    stop_on: Annotated[
        StopOnSeverity | None,
        typer.Option(help="Ask the run to stop when it shows a finding as grave: writes RUN.stop beside it."),
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.warning,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Follow a run while it trains: verdict, findings, loss components, gradient, evaluations, and how long it takes.

    It waits for a run that is not there yet, and ends with its diagnosis when the run is over. A folder is shown as a
    table of its runs, until q or Ctrl-C (130). In a pipe: one line for each new finding and each change of state.

    With --notify and --exec each finding is told once when it begins, when it grows and when it is over, and so is the
    end of a run with its root cause; three times a minute at most, what waits goes together. What was told stays told
    for the next watch of the run, so --once may run in a cron job. A folder's runs that were over before are no news.

    \b
    Keys:        q ends; up, down (k, j) scroll or choose; Enter opens a run, Esc goes back
    Examples:    trainwatch watch logs/exp1.jsonl
                 trainwatch watch logs --notify slack://TOKEN_A/TOKEN_B/TOKEN_C
                 trainwatch watch logs/exp1.jsonl --exec 'python page_me.py' --stop-on critical
                 trainwatch watch slurm-1234.out --once
    """
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping
    from trainwatch.judge import Judged
    from trainwatch.text import terminal, wording
    from trainwatch.watch import loop

    target, chosen = target or _usual_folder(), judge.settings(set_ or ())
    listeners = _listeners(target, [*(notify or ())], [*(exec_ or ())], stop_on)
    with channels.told(mapping.places(map_ or ())):
        files = loop.watch(target, terminal.console(), chosen, once=once, listeners=listeners)
    judged = [Judged(file.run, file.diagnosis) for file in files if file.run and file.diagnosis]
    unread = [file.error for file in files if file.error]
    unread += [] if files else [f"{target}: holds no run file yet; name the folder that a training writes into."]
    broken = _complain([*unread, *(wording.broke(item.diagnosis) for item in judged if item.diagnosis.failed)])
    raise typer.Exit(2 if broken or not judged else int(_fails(judged, fail_on)))


def _listeners(target: Path, urls: list[str], commands: list[str], stop_on: StopOnSeverity | None) -> list[Listener]:
    """Who is told of the watched runs. Raises UserError for what cannot be: before the watching begins."""
    from trainwatch.alerts.channels import Command, Notification
    from trainwatch.alerts.receivers import Receivers
    from trainwatch.alerts.stopping import StopOn

    if stop_on and target.is_dir():
        raise UserError(f"--stop-on takes one run, and {target} is a folder; name the run's file.")
    channels: list[Channel] = [*map(Notification, urls), *map(Command, commands)]
    told: list[Listener] = [Receivers(channels, quiet=target.is_dir())] if channels else []
    return told + ([StopOn(stop_on.value)] if stop_on else [])


@app.command(epilog=CODES, short_help="Diagnose runs: root cause, evidence, cure.")
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run files, or folders of them.")],
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.warning,
    set_: Set = None,
    explain_channels: Annotated[
        bool, typer.Option("--explain-channels", help="Say what each name in a log was taken for.")
    ] = False,
    map_: Map = None,
) -> None:
    """Diagnose runs: the root cause first, the evidence under it, and the config patch that cures it.

    Thresholds and `off = [rules]` are also taken from [tool.trainwatch] in the nearest pyproject.toml.

    \b
    Examples:    trainwatch check logs/exp1.jsonl
                 trainwatch check logs --format json | jq '.runs[].root_cause.rule'
                 trainwatch check slurm-1234.out --explain-channels
                 trainwatch check slurm-1234.out --map val=dev_loss --map loss/kl=reg
                 trainwatch check a.jsonl --set aggressive-ramp.growth=5 --fail-on critical
    """
    from trainwatch import judge
    from trainwatch.text import wording

    judged, unread = _judge(paths, judge.settings(set_ or ()), map_)
    _print_check(format_, judged, unread)
    if explain_channels:
        _explain(judged)
    broken = _complain([*unread, *(wording.broke(item.diagnosis) for item in judged if item.diagnosis.failed)])
    raise typer.Exit(2 if broken else int(_fails(judged, fail_on)))


@app.command(short_help="What differs between runs, or between scripts, and since when.")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Two runs or more, or scripts, notebooks and configs; the first leads."
        ),
    ],
    align: Annotated[
        Align, typer.Option("--align", help="What curves are laid along; by step where a log does not tell it.")
    ] = Align.step,
    format_: Annotated[CompareFormat, typer.Option("--format", help="How to print it.")] = CompareFormat.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it as an .html page or as .md instead.")
    ] = None,
    map_: Map = None,
) -> None:
    """Say what differs between runs, since which step beyond the noise of seeds, and which setting did it.

    Runs that differ in nothing but the seed tell of the noise, and stand as mean and spread. Python files, notebooks
    and configs are read as they are, and never run: which settings have other values, and where.

    \b
    Examples:    trainwatch compare logs/good.jsonl logs/bad.jsonl
                 trainwatch compare logs/*.jsonl --align tokens -o compared.html
                 trainwatch compare train.py train.ipynb
    Exit codes:  0 compared, 2 something could not be read or written
    """
    from trainwatch.text.wording import strict

    if len(runs) == 1 and runs[0].is_dir():
        raise UserError(f"{runs[0]}: is a folder; name the runs in it, as in {runs[0]}/*.jsonl.")
    if len(runs) < 2:
        raise UserError("compare needs at least two runs; `trainwatch check RUN` judges one.")
    if output and output.suffix not in (".html", ".htm", ".md"):
        raise UserError(f"{output}: a comparison ends in .html or .md; print the JSON with --format json.")
    kind = "markdown" if output and output.suffix == ".md" else "html" if output else format_.value
    said, text = _compared(runs, align.value, kind, map_)
    if output:
        _write(output, text)
    elif kind == "json":
        _print_json(strict({"version": 1, **said}))
    else:
        print(text, end="")


def _compared(paths: Sequence[Path], align: str, kind: str, mapped: list[str] | None) -> tuple[dict[str, Any], str]:
    """Files or runs against each other; JSON may be either."""
    if _written(paths):
        return _compared_files(paths, kind)
    try:
        return _compared_runs(paths, align, kind, mapped)
    except UserError as error:
        if any(path.suffix.lower() != ".json" for path in paths):
            raise
        try:
            return _compared_files(paths, kind)
        except UserError:
            raise error from None


def _written(paths: Sequence[Path]) -> bool:
    """Whether these are scripts and configs; among runs, none may be."""
    from trainwatch.lint import SOURCES

    told = [path.suffix.lower() in SOURCES and path.suffix.lower() != ".json" for path in paths]
    either = [own or path.suffix.lower() == ".json" for own, path in zip(told, paths, strict=True)]
    if any(told) and not all(either):
        odd = paths[either.index(False)]
        raise UserError(f"{odd}: is no script or config as the others are; compare runs with runs, files with files.")
    return any(told)


def _compared_files(paths: Sequence[Path], kind: str) -> tuple[dict[str, Any], str]:
    """Configs, scripts and notebooks against each other, as data and as text of that kind."""
    from trainwatch.compare.written import compare_files
    from trainwatch.lint.tree import LintError
    from trainwatch.text import sources, terminal

    try:
        said = compare_files(list(dict.fromkeys(paths)))
    except LintError as error:
        raise UserError(str(error)) from None
    if kind == "html":
        from trainwatch.report.side_by_side import of_files

        return {}, of_files(said)
    if kind == "text":
        sources.show(terminal.console(), said)
    data = {"verdict": sources.verdict(said), **said.to_dict()}
    return data, sources.as_markdown(said) if kind == "markdown" else ""


def _compared_runs(
    paths: Sequence[Path], align: str, kind: str, mapped: list[str] | None
) -> tuple[dict[str, Any], str]:
    """Runs against each other, as data and as text of that kind."""
    from trainwatch import compare as comparison
    from trainwatch import judge
    from trainwatch.text import comparison as faces
    from trainwatch.text import terminal

    judged = _distinct(_each(paths, judge.settings(), mapped))
    said = comparison.compare([(item.run, item.diagnosis) for item in judged], align)
    if kind == "html":
        from trainwatch.report.side_by_side import of_runs

        return {}, of_runs(said, [item.run for item in judged])
    if kind == "text":
        faces.show(terminal.console(), said)
    data = said.to_dict()
    data["verdict"] = {"sentence": faces.verdict(said), **data["verdict"]}
    return data, faces.as_markdown(said) if kind == "markdown" else ""


def _write(target: Path, text: str) -> None:
    """Write a document and say so."""
    from trainwatch.report import put

    try:
        put(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another file with -o.") from None
    print(f"Wrote {target}", file=sys.stderr)  # the standard output may be JSON


class LintCommand(typer.core.TyperCommand):
    """What stands behind `--` is a command of its own, and no option of ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the launch command apart before ours is parsed."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = args[cut + 1 :] if cut < len(args) else None
        return super().parse_args(ctx, args[:cut])


@app.command(cls=LintCommand, epilog=CODES, short_help="What is wrong with a config or a command, before it runs.")
def lint(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG|RUN]...", help="Configs, scripts, folders of configs, runs."),
    ] = None,
    card: Annotated[
        str | None, typer.Option(metavar="NAME|GIB", help="The card that it runs on (T4, A100-80GB, 24): does it fit?")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.warning,
) -> None:
    """Look at a config, a launch command or a recorded run's own config before a GPU hour is spent.

    YAML, JSON, TOML, Python and notebooks are read with their places; nothing is imported or run.

    \b
    Examples:    trainwatch lint configs/x.yaml
                 trainwatch lint configs --format sarif
                 trainwatch lint logs/exp1.jsonl
                 trainwatch lint -- python train.py --config-name=big data.path=x lr=1e-4
    """
    from trainwatch.text import wording

    said, unread = _lint(paths or [], context.obj, _gibibytes(card))
    _print_lint(format_, said, unread)
    broken = _complain([*unread, *(wording.broke(item) for item in said if item.failed)])
    raise typer.Exit(2 if broken else int(_graver([f for item in said for f in item.findings], fail_on)))


@app.command(short_help="Write the post-mortem as HTML or Markdown.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run files, or folders of them.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="An .html or .md file. Default: RUN.html beside the run, post-mortem.html of several.",
        ),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Figures to zoom into; the file has 5 MB.")
    ] = False,
    redact: Annotated[bool, typer.Option("--redact", help="Hide paths, hosts, users and the environment.")] = False,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Write the post-mortem: one HTML file that needs no network, or Markdown for a pull request.

    Of several runs, or a folder, it is one file with a table of contents.

    \b
    Examples:    trainwatch report logs/exp1.jsonl -o post-mortem.html
                 trainwatch report logs/exp1.jsonl -o post-mortem.md --redact
                 trainwatch report logs
    Exit codes:  0 written, 2 a run could not be read or the file not written
    """
    from trainwatch import judge
    from trainwatch.report import Style, Subject, rendered

    target = output or _usual_report(runs)
    if target.suffix not in (".html", ".htm", ".md"):
        raise UserError(f"{target}: a report ends in .html or .md, not {target.suffix or 'nothing'!r}; rename it.")
    chosen = judge.settings(set_ or ())
    judged, unread = _judge(runs, chosen, map_)
    if not judged:
        raise UserError(unread[0])
    newest = {item.run.source.absolute(): item for item in judged}.values()
    told = [(item, judge.last_healthy(item, chosen)) for item in newest]
    subjects = [Subject(i.run, i.diagnosis, (twin.run, twin.diagnosis) if twin else None) for i, twin in told]
    options = [
        part for flag, given in (("--set", set_), ("--map", map_)) for one in given or () for part in (flag, one)
    ]
    style = Style(interactive, redact, tuple(options))
    _write(target, rendered(subjects, target.suffix.removeprefix("."), style))
    raise typer.Exit(2 if _complain(unread) else 0)


def _usual_report(runs: Sequence[Path]) -> Path:
    """Beside the run, or in the folder that the runs are in."""
    if len(runs) == 1 and not runs[0].is_dir():
        return runs[0].with_suffix(".html")
    return (runs[0] if runs[0].is_dir() else runs[0].parent) / "post-mortem.html"


@app.command(short_help="The cure as a config patch; --try proves it.")
def prescribe(
    run: RunPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .yaml file instead of the standard output.")
    ] = None,
    try_: Annotated[
        bool, typer.Option("--try", help="Train on from the last good checkpoint, as it was and cured.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="With --try: so many steps from there.", min=1)] = None,
    format_: Annotated[PrescribeFormat, typer.Option("--format", help="How to print it.")] = PrescribeFormat.text,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Write the diagnosis' cure as a YAML config patch: each line says which finding it answers, and what was there.

    --try forks the run from its last checkpoint before the first bad step, or from the start: once as it was, once
    cured; and reports both side by side. It needs a run of `python -m trainer`, and its checkpoints where they were.

    \b
    Examples:    trainwatch prescribe logs/exp1.jsonl -o patch.yaml
                 python -m trainer --config exp1.yaml --config patch.yaml --resume before:1000
                 trainwatch prescribe logs/exp1.jsonl --try --steps 200
    Exit codes:  0 the cure is written (with --try: and holds), or nothing is wrong; 1 no cure is known for the root
                 cause, or it does not hold; 2 the run could not be read, the file not written, or nothing tried
    """
    from trainwatch import judge
    from trainwatch.text import patch, wording

    if steps is not None and not try_:
        raise UserError("--steps says how far --try trains; write both, or neither.")
    chosen = judge.settings(set_ or ())
    [item] = _each([run], chosen, map_)
    if output:
        _write(output, patch.document(item.run, item.diagnosis))
    trial = _try(item, steps, chosen) if try_ and item.diagnosis.prescription.changes else None
    _print_prescription(item, trial, format_, shown=output is None)
    broken = _complain([wording.broke(item.diagnosis)] if item.diagnosis.failed else [])
    left = not trial.holds if trial else item.diagnosis.root_cause in item.diagnosis.prescription.uncured
    raise typer.Exit(2 if broken else int(left))


@app.command(short_help="Write a run as Parquet, CSV or for TensorBoard.")
def export(
    run: RunPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .parquet or .csv file; without a suffix a folder for TensorBoard.")
    ],
    map_: Map = None,
) -> None:
    """Write a run for other tools: one table as Parquet or CSV, or a folder that TensorBoard opens.

    \b
    Examples:    trainwatch export logs/exp1.jsonl -o exp1.parquet
                 trainwatch export logs/exp1.jsonl -o events && tensorboard --logdir events
    Exit codes:  0 written, 2 the run could not be read or the file not written
    """
    from trainwatch import export as exporting
    from trainwatch import judge

    if output.suffix not in exporting.SUFFIXES:
        raise UserError(f"{output}: exports end in .parquet or .csv, or in nothing for TensorBoard; rename it.")
    [item] = _each([run], judge.settings(), map_)
    try:
        exporting.write(item.run, output)
    except ModuleNotFoundError as error:
        raise UserError(f"{output}: needs {error.name}; `pip install {error.name}` brings it.") from None
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); choose another place with -o."
        ) from None
    print(f"Wrote {output}")


@app.command(short_help="Serve the dashboard on this machine.")
def dash(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: logs/, else this folder.")] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=0, max=65535)] = 8050,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine with a token.")] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open", help="Open a browser on it.")] = False,
    map_: Map = None,
) -> None:
    """Serve the dashboard of a folder of runs on this machine, until Ctrl-C.

    Any other address than loopback, such as --host 0.0.0.0, asks for a token: the link that is printed has it.
    TRAINWATCH_TOKEN chooses it.

    \b
    Example:     trainwatch dash logs --open
    Exit codes:  2 it could not be served, 130 stopped with Ctrl-C
    """
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping

    folder = folder or _usual_folder()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of your run files.")
    dashboard = importlib.import_module("dashboards.app")
    try:
        with channels.told(mapping.places(map_ or ())):
            dashboard.serve(folder, port=port, host=host, open_browser=open_, settings=judge.settings())
    except dashboard.ServeError as error:
        raise UserError(str(error)) from None


@app.command(short_help="The catalogue of rules, or one rule's page.")
def rules(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The rule to read about.")] = None,
) -> None:
    """List every rule by family and every check of lint, or show one's page and thresholds.

    \b
    Example:     trainwatch rules curriculum-mismatch
    Exit codes:  0 shown, 2 there is no such rule
    """
    from trainwatch.engine import catalogue
    from trainwatch.lint import check
    from trainwatch.rule import page
    from trainwatch.text import tables, terminal

    known, checks = catalogue(), check.catalogue()
    if name is None:
        tables.catalogue(terminal.console(), known, {name: page(found)[""] for name, found in checks.items()})
    elif name in known:
        tables.rule_page(terminal.console(), known[name])
    elif name in checks:
        tables.page_of(terminal.console(), name, "lint", page(checks[name]))
    else:
        near = nearest(name, [*known, *checks])
        raise UserError(f"there is no rule {name!r}{near or '; `trainwatch rules` lists them.'}")


def _judge(paths: Sequence[Path], chosen: Settings, mapped: list[str] | None) -> tuple[list[Judged], list[str]]:
    """Every run in ``paths``, and what could not be read; ``mapped`` names mean what the user says."""
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping
    from trainwatch.text import terminal

    places = mapping.places(mapped or ())
    with channels.told(places):
        judged, unread = judge.judge_all(terminal.progress(list(judge.run_files(paths))), chosen)
    if judged:
        mapping.require(places, (name for item in judged for name in item.run.named))
    return judged, unread


def _each(paths: Sequence[Path], chosen: Settings, mapped: list[str] | None = None) -> list[Judged]:
    """The newest run of each file."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name one run file in it.")
    judged, unread = _judge(paths, chosen, mapped)
    if unread:
        raise UserError(unread[0])
    return list({item.run.source.absolute(): item for item in judged}.values())


def _distinct(judged: list[Judged]) -> list[Judged]:
    """Each run once: a pattern such as ``logs/*.jsonl`` names the leader again."""
    once = {item.run.source.resolve(): item for item in reversed(judged)}
    found = [item for item in judged if once[item.run.source.resolve()] is item]
    if len(found) < 2:
        raise UserError(f"{judged[0].run.source}: is all that was given, more than once; name another run beside it.")
    return found


def _print_check(format_: Format, judged: list[Judged], unread: list[str]) -> None:
    from trainwatch.text import markdown, sarif, terminal, wording

    if format_ is Format.json:
        _print_json(wording.strict({"version": 1, "runs": [item.diagnosis.to_dict() for item in judged]}))
    elif format_ is Format.sarif:
        _print_json(wording.strict(sarif.document([item.diagnosis for item in judged], unread, _summaries())))
    elif format_ is Format.markdown:
        print("\n".join(markdown.diagnosis(item.diagnosis, item.run.header.total_steps) for item in judged), end="")
    else:
        terminal.show_all(terminal.console(), [(item.diagnosis, item.run.header.total_steps) for item in judged])


def _gibibytes(card: str | None) -> float | None:
    """The memory of the card that the user names."""
    from trainwatch.lint.memory import CARDS, card_of

    memory = card_of(card) if card else None
    if card and not memory:
        raise UserError(f"--card {card}: is not known{nearest(card.lower(), CARDS)}; write its memory in GiB instead.")
    return memory


def _try(item: Judged, steps: int | None, chosen: Settings) -> Trial:
    from trainwatch import trial
    from trainwatch.text import terminal

    fork = trial.plan(item.run, item.diagnosis, steps)
    return trial.attempt(item.run, item.diagnosis, fork, chosen, terminal.console(sys.stderr))


def _print_prescription(item: Judged, trial: Trial | None, format_: PrescribeFormat, *, shown: bool) -> None:
    """The patch, unless it went to a file, and below it the trial."""
    from trainwatch.compare import compare as compared
    from trainwatch.text import comparison, patch, terminal, wording

    if format_ is PrescribeFormat.json:
        tried = {"trial": trial.to_dict()} if trial else {}
        _print_json(wording.strict({**patch.as_data(item.run, item.diagnosis), **tried}))
        return
    if shown:
        print(patch.document(item.run, item.diagnosis), end="")
    if trial:
        comparison.trial(terminal.console(), trial.verdict, compared(trial.runs))


def _lint(paths: Sequence[Path], command: list[str] | None, card: float | None) -> tuple[list[Diagnosis], list[str]]:
    """What lint says of each path and of the command, and what could not be judged."""
    from trainwatch import judge
    from trainwatch.lint import SCRIPTS, SOURCES, files, lint_command, lint_file, lint_run
    from trainwatch.lint.sources.python_file import Script, read_script
    from trainwatch.lint.tree import LintError

    if not paths and not command:
        raise UserError("lint needs a config, a run, or a command behind `--`; `trainwatch lint --help` has examples.")
    said: list[Diagnosis] = []
    unread: list[str] = []
    chosen, scripts = judge.settings(), list[Script]()
    for path in sorted(paths, key=lambda path: path.suffix.lower() not in SCRIPTS):
        try:
            if path.is_file() and (path.suffix.lower() not in SOURCES or path.name == "trainer_state.json"):
                [item] = _each([path], chosen)
                said.append(lint_run(item.run, chosen))
                continue
            said += [lint_file(file, chosen, scripts, card) for file in files(path)]
            scripts += [read_script(path)] if path.suffix.lower() in SCRIPTS else []
        except (LintError, UserError) as error:
            unread.append(str(error))
        except Exception as error:  # one file never takes the others down
            unread.append(f"{path}: {sentence(error)}")
    if command:
        try:
            said.append(lint_command(command, Path(), chosen, card))
        except LintError as error:
            unread.append(str(error))
    return said, unread


def _print_lint(format_: Format, said: list[Diagnosis], unread: list[str]) -> None:
    from trainwatch.text import places, sarif, terminal, wording

    if format_ is Format.json:
        _print_json(wording.strict({"version": 1, "runs": [item.to_dict() for item in said]}))
    elif format_ is Format.sarif:
        _print_json(wording.strict(sarif.document(said, unread, _summaries())))
    elif format_ is Format.markdown:
        print("\n".join(places.page(item) for item in said), end="")
    elif said:
        places.show(terminal.console(), said)


def _summaries() -> dict[str, str]:
    """The first line of every rule's and check's page."""
    from trainwatch import engine
    from trainwatch.lint import check
    from trainwatch.rule import page

    return {name: page(found)[""] for name, found in {**engine.catalogue(), **check.catalogue()}.items()}


def _explain(judged: list[Judged]) -> None:
    """What the names of each log were taken for; on stderr, so that a report in JSON stays one."""
    from trainwatch.text.wording import clean

    for item in judged:
        print(f"{clean(item.run.name)}: read as {item.run.format}", file=sys.stderr)
        for name, channel in item.run.named.items():
            print(f"  {clean(name)} -> {clean(channel)}", file=sys.stderr)


def _fails(judged: list[Judged], fail_on: FailOn) -> bool:
    return _graver([finding for item in judged for finding in item.diagnosis.findings], fail_on)


def _graver(findings: list[Finding], fail_on: FailOn) -> bool:
    from trainwatch.schema import SEVERITIES

    limit = len(SEVERITIES) if fail_on is FailOn.never else SEVERITIES.index(fail_on.value)
    return any(finding.rank >= limit for finding in findings)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # ASCII, so that a name in it moves no terminal's cursor


def _usual_folder() -> Path:
    return Path("logs") if Path("logs").is_dir() else Path()


def _complain(sentences: list[str]) -> bool:
    from trainwatch.text.wording import clean

    for said in sentences:
        print(f"trainwatch: {clean(said)}", file=sys.stderr)
    return bool(sentences)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; whatever goes wrong is one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets a question mark, not a traceback
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(app).main(given or ["--help"], "trainwatch", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return 141
    except Exception as error:
        _complain([sentence(error)])
        return 2
