"""The command line: `python -m trainer COMMAND ...`; without a command it trains.

`torchrun --nproc-per-node 2 -m trainer ...` is the same on two ranks; what is printed is rank 0's.
Exit code 0: done, or stopped when asked to. 1: failed (a run's record says how), or a replay that came out
otherwise. 2: wrong usage, in one sentence. 128 and the signal's number: ended by it before the loop.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

ABOUT = """usage: python -m trainer [COMMAND] ... [key=value]...

Trains a de-novo peptide sequencer on MS2PIP spectra, and lets trainwatch watch.

commands:
{commands}

`python -m trainer COMMAND --help` says what a command takes."""
SETTINGS = """settings:
  key=value, from trainer/config.py: name= logs= steps= seed= size= device= curriculum= fault= ...
  and nested ones, such as optimizer.lr=5e-4; they win over files, later files over earlier ones."""
COMMANDS = {
    "train": "train a model, and write a record of it; what is meant where no command is named",
    "data": "data build: predict the peptides' spectra and write them to shards; what is there is checked and kept",
    "baseline": "how well dynamic programming over the spectrum graph does, without training, on test spectra",
    "evaluate": "how well a checkpoint's weights do on test spectra, by length and noise, beside that baseline",
    "generate": "a checkpoint's answers to some test spectra, beside the truth",
    "replay": "train a run again as its record tells, and say whether every step came out the same to the last bit; "
    "of one with a value that is not finite: which operation made it, in which component, of which samples",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Argparse's words, without the page of usage before them."""
        self.exit(2, f"trainer: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, and let the command do its work; returns the exit code."""
    asked = _parse(list(sys.argv[1:] if arguments is None else arguments))
    warnings.filterwarnings("ignore", "This DataLoader will create")  # torch's opinion; data.workers has its own limit
    from trainer.checkpoint import SaveError
    from trainer.config import UsageError
    from trainer.distributed import abandon

    try:
        code: int = importlib.import_module(f"trainer.commands.{asked.command}").main(asked)
    except UsageError as error:
        sentence = str(error)
        print(f"trainer: {sentence if sentence.endswith(('.', '?')) else sentence + '.'}", file=sys.stderr)
        abandon(2)
        return 2
    except KeyboardInterrupt as error:  # not in the loop, or for the second time
        name = str(error) or "SIGINT"
        print(f"trainer: ended by {name}", file=sys.stderr)
        abandon(128 + signal.Signals[name])
        return 128 + signal.Signals[name]
    except SaveError as error:
        print(f"trainer: failed: {error}; what came after the last checkpoint is lost.", file=sys.stderr)
        abandon(1)
        return 1
    except Exception as error:  # the record holds it too, with the step at which it came
        traceback.print_exc()
        print(f"trainer: failed: {type(error).__name__}: {error}", file=sys.stderr)
        abandon(1)
        return 1
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The command is the first word; `parse_intermixed_args`, which knows no sub-parsers, reads the rest."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(ABOUT.format(commands="\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())))
        sys.exit(0)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    parser = _parser(command)
    asked = parser.parse_intermixed_args(arguments)
    asked.command = command
    for word in asked.settings:
        if "=" not in word:
            near = difflib.get_close_matches(word, COMMANDS, n=1)
            hint = f" (a command comes first: python -m trainer {near[0]} ...)" if near else ""
            parser.error(f"'{word}' is no command and no setting{hint}")
    return asked


def _parser(command: str) -> Parser:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        f"python -m trainer {command}", description=COMMANDS[command], epilog=SETTINGS, formatter_class=form
    )
    if command == "data":
        parser.add_argument("what", choices=["build"], metavar="build")
    if command in ("evaluate", "generate"):
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as logs/NAME.checkpoints/best.pt")
    if command == "replay":
        parser.add_argument("record", metavar="RUN", help="the run's record, such as logs/NAME.jsonl")
        parser.add_argument("--from", dest="begin", default="", metavar="before:STEP", help="begin at a checkpoint")
    if command in ("train", "replay"):
        parser.add_argument("--to", type=_steps, metavar="STEP", help="the last step that is trained, if not the run's")
    if command in ("train", "data", "baseline"):
        parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML or JSON; repeatable")
    if command == "train":
        parser.add_argument("--resume", default="", metavar="auto|PATH|before:STEP", help="go on from a checkpoint")
        parser.add_argument("--fast-dev-run", action="store_true", help="three small steps through everything")
    if command in ("baseline", "evaluate"):
        parser.add_argument("--count", type=_steps, default=100, metavar="N", help="spectra a row (default: 100)")
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    if command == "generate":
        parser.add_argument("--count", type=_steps, default=12, metavar="N", help="spectra (default: 12)")
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value")
    return parser


def _steps(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
