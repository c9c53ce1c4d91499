"""The command line: `python -m trainer [train] [--config FILE]... [key=value]...`, `python -m trainer data build`.

Exit code 0: finished, or stopped when asked to. 1: failed; the run's record says how. 2: wrong usage, in one sentence.
128 and the signal's number: ended by it before the loop.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.config import Config

ABOUT = """Trains a de-novo peptide sequencer on MS2PIP spectra, and lets trainwatch watch.

settings:   key=value, from trainer/config.py: name= logs= steps= seed= size= device= curriculum= fault= ...
            and nested ones, such as optimizer.lr=5e-4; they win over files, later files over earlier ones."""
FAST = {"steps": 3, "batch_size": 4, "evaluation.samples": 8, "evaluation.every": 1.0, "data.peptides": 50}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Argparse's words, without the page of usage before them."""
        self.exit(2, f"trainer: {message}; see python -m trainer --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, print; returns the exit code."""
    asked = _parse(sys.argv[1:] if arguments is None else arguments)
    from trainer.config import UsageError
    from trainer.loading import load

    overrides = [*(f"{key}={value}" for key, value in FAST.items() if asked.fast_dev_run), *asked.settings]
    try:
        config, source = load(asked.config, overrides)
    except UsageError as error:
        return _wrong(str(error))
    from trainer import train

    try:
        if asked.command == "data":
            return _build_data(config)
        outcome = train.main(config, source, asked.resume)
    except UsageError as error:
        return _wrong(str(error))
    except KeyboardInterrupt as error:  # not in the loop, or for the second time
        name = str(error) or "SIGINT"
        print(f"trainer: ended by {name}", file=sys.stderr)
        return 128 + signal.Signals[name]
    except Exception as error:  # the record holds it too, with the step at which it came
        traceback.print_exc()
        print(f"trainer: failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    how = f"stopped ({outcome.stopped})" if outcome.stopped else "finished"
    print(
        f"{how} at step {outcome.step:,} after {outcome.seconds:.0f} s: "
        f"token accuracy {outcome.metrics.get('token_accuracy', 0.0):.3f}, record {outcome.path}"
    )
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m trainer", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="[train | data build] key=value")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; may be repeated")
    parser.add_argument("--resume", default="", metavar="auto|PATH|before:STEP", help="go on from a checkpoint")
    parser.add_argument("--fast-dev-run", action="store_true", help="three small steps through everything")
    asked = parser.parse_intermixed_args(list(arguments))
    words = [word for word in asked.settings if "=" not in word]
    asked.settings = [word for word in asked.settings if "=" in word]
    if words not in ([], ["train"], ["data", "build"]):
        parser.error(f"'{' '.join(words)}' is no command and no setting; commands are train and data build")
    asked.command = words[0] if words else "train"
    return asked


def _build_data(config: Config) -> int:
    """All shards that the config's curricula and validation set draw from."""
    from trainer import run

    lengths = run.needed_lengths(config)
    bank = run.prepare_data(config, lengths)
    print(f"peptides of {lengths.start} to {lengths.stop - 1} residues are in {bank.path(lengths.start).parent}")
    return 0


def _wrong(sentence: str) -> int:
    print(f"trainer: {sentence if sentence.endswith(('.', '?')) else sentence + '.'}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
