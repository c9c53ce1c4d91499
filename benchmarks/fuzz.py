"""The readers of binary files against bytes that nobody wrote, guided by what they reach in the readers' code.

    python benchmarks/fuzz.py [tfevents|wandb|swanlab|parquet|sqlite] [-max_total_time=60] [...]

Needs ``pip install atheris``, and begins with the files in ``tests/data/logs``. What is found is bytes on which a
reader raises anything but ReadError, takes more than five seconds, or fills the memory; libFuzzer, which does the work,
writes them into a file and says how to run them again. Further arguments go to it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["trainwatch"]):
    from trainwatch.readers import ReadError, read_all, readers

    readers()  # they are imported when they are first asked for

LOGS = Path(__file__).parents[1] / "tests" / "data" / "logs"
SEEDS = {
    "tfevents": ("events.out.tfevents.1.host", "tensorboard_*/**/*tfevents*"),
    "wandb": ("run-a.wandb", "*.wandb"),
    "swanlab": ("run-a.swanlab", "swanlab/*.swanlab"),
    "parquet": ("run.parquet", "*.parquet"),
    "sqlite": ("run.db", "*.db"),
}
"""For each kind its name on the disk, and the files to begin with."""
LIMITS = ("-timeout=5", "-rss_limit_mb=2048", "-max_len=65536")


def main() -> None:
    """Fuzz one kind of file until the time is over or something is found."""
    kind = next((one for one in sys.argv[1:] if one in SEEDS), "tfevents")
    name, pattern = SEEDS[kind]
    rest = [argument for argument in sys.argv[1:] if argument != kind]
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder, "corpus"), Path(folder, "read", name)
        for made in (corpus, path.parent):
            made.mkdir()
        for index, seed in enumerate(sorted(LOGS.glob(pattern))):
            (corpus / str(index)).write_bytes(seed.read_bytes())

        def one(content: bytes) -> None:
            path.write_bytes(content)
            with contextlib.suppress(ReadError):
                read_all(path)

        atheris.Setup([sys.argv[0], *LIMITS, *rest, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
