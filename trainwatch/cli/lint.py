"""`trainwatch lint`: what is wrong with a config, a script or a command, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from trainwatch.cli.options import FailOn, Format
from trainwatch.cli.output import complain, graver, print_json, summaries
from trainwatch.cli.runs import each_run
from trainwatch.engine import nearest
from trainwatch.errors import UserError, sentence

if TYPE_CHECKING:
    from trainwatch.diagnosis import Diagnosis


class LintCommand(typer.core.TyperCommand):
    """What stands behind `--` is a command of its own, and no option of ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the launch command apart before ours is parsed."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = args[cut + 1 :] if cut < len(args) else None
        return super().parse_args(ctx, args[:cut])


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
    broken = complain([*unread, *(wording.broke(item) for item in said if item.failed)])
    raise typer.Exit(2 if broken else int(graver([f for item in said for f in item.findings], fail_on)))


def _gibibytes(card: str | None) -> float | None:
    """The memory of the card that the user names."""
    from trainwatch.lint.memory import CARDS, card_of

    memory = card_of(card) if card else None
    if card and not memory:
        near = nearest(card.lower(), CARDS) or "."
        raise UserError(f"--card {card}: is not known{near} Its memory in GiB will do as well.")
    return memory


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
                [item] = each_run([path], chosen)
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
        print_json(wording.strict({"version": 1, "runs": [item.to_dict() for item in said]}))
    elif format_ is Format.sarif:
        print_json(wording.strict(sarif.document(said, unread, summaries())))
    elif format_ is Format.markdown:
        print("\n".join(places.page(item) for item in said), end="")
    elif said:
        places.show(terminal.console(), said)
