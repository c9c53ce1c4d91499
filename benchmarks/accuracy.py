"""How well the trainer learns on a CPU: the recursive model beside its plain twin, the spectrum graph, and chance.

    python benchmarks/accuracy.py [--minutes 4] [--processes 2] [--count 500]

Clean spectra of 7 to 10 residues, each drawn once; size tiny; so many CPU minutes a training, turned into steps by
timing each model first, so that both have the same budget; three seeds. Judged on test peptides that no run has seen.
Prints the table, writes docs/accuracy.md. Checkpoints stay below logs/accuracy; what is trained is not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from tables import markdown, show

import trainwatch

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder, which has a trainer.py of its own
from stepping import Cell as Step
from stepping import Trainee

from trainer.commands import scores
from trainer.config import DataConfig
from trainer.curriculum import Corruption
from trainer.stored import stored
from trainer.tasks.peptide.bank import Online
from trainer.tasks.peptide.data import Shape, draw, spelled
from trainer.tasks.peptide.evaluation import residues_of
from trainer.tasks.peptide.grid import Cell

FOLDER = Path("logs/accuracy")
KINDS = ("recursive", "plain")
SEEDS = (0, 1, 2)
BATCH, PEAKS, LONGEST = 12, 48, 10
FIELD = Cell(7, LONGEST, "clean")
SETTINGS = (
    "size=tiny", "device=cpu", "threads=1", f"batch_size={BATCH}", f"data.max_peaks={PEAKS}", "data.online=true",
    "curriculum_factors=[]", f"evaluation.length=[7,{LONGEST}]", "evaluation.samples=64", "evaluation.every=0.1",
    "optimizer.lr=2e-3", "optimizer.warmup=0.05", "optimizer.max_grad_norm=5", "checkpoint.every=1.0",
)  # fmt: skip
COLUMNS = ("who", "parameters", "steps", "CPU min", "exact", "seeds", "peptide precision", "aa recall", "ms a spectrum")


@dataclass(frozen=True)
class Trained:
    """One training: the model's kind, the seed, and the steps that its budget comes to."""

    kind: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its record and its checkpoints."""
        return f"{self.kind}-{self.steps}-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where its weights are."""
        return FOLDER / f"{self.name}.checkpoints" / "latest.pt"


def seconds_a_step(kind: str) -> float:
    """CPU seconds of a training step. To be called in a fresh process."""
    off = trainwatch.Recorder(os.devnull, enabled=False)
    trainee = Trainee(Step("tiny", kind=kind, batch=BATCH, peaks=PEAKS, length=LONGEST), off, compiled=False)
    trainee.steps(3)
    began = time.process_time()
    trainee.steps(10)
    return (time.process_time() - began) / 10


def ensure(one: Trained) -> float:
    """Train, if that is not done; returns the CPU minutes that it took."""
    told = FOLDER / f"{one.name}.json"
    if not (told.exists() and one.checkpoint.exists()):
        own = f"name={one.name}", f"logs={FOLDER}", f"model.kind={one.kind}", f"seed={one.seed}", f"steps={one.steps}"
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", *SETTINGS, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"accuracy: the training {one.name} failed; see {FOLDER / one.name}.jsonl")
        told.write_text(json.dumps({"minutes": _minutes(used)}))
    return float(json.loads(told.read_text())["minutes"])


def _minutes(used: resource.struct_rusage) -> float:
    return (used.ru_utime + used.ru_stime) / 60


def chance() -> scores.Solver:
    """The answer that is right most often without looking: at each place the commonest token of training peptides."""
    shape, first_stage = Shape(PEAKS, LONGEST + 1), Corruption(FIELD.shortest, FIELD.longest)
    drawn = (draw(Online("ms2pip"), "train", first_stage, 0, index, shape) for index in range(1000))
    answers = spelled([spectrum.tokens for spectrum in drawn], LONGEST + 1)
    common = [Counter(column.tolist()).most_common(1)[0][0] for column in answers.T]
    answer = residues_of(np.array(common))
    return lambda spectra: [answer] * len(spectra)


def rows_of(trainings: list[Trained], minutes: dict[Trained, float], count: int) -> list[list[str]]:
    """The table: every kind over its seeds, then what is not trained."""
    models = {one: stored(one.checkpoint, []) for one in trainings}
    solvers: dict[str, scores.Solver] = {one.name: partial(found.peptides, "live") for one, found in models.items()}
    solvers |= {"spectrum graph (no training)": scores.baseline, "chance": chance()}
    data, shape = DataConfig(), Shape(PEAKS, LONGEST + 1)
    found = {row.who: row for row in scores.rows([FIELD], data, shape, count, solvers)}
    table = []
    for kind in KINDS:
        mine = [one for one in trainings if one.kind == kind]
        parameters = sum(p.numel() for p in models[mine[0]].models["live"].parameters())
        spent = statistics.fmean(minutes[one] for one in mine)
        told = [f"{parameters:,}", f"{mine[0].steps:,}", f"{spent:.1f}"]
        table.append([kind, *told, *_cells([found[one.name] for one in mine])])
    return table + [
        [who, "", "", "", *_cells([found[who]])] for who in solvers if who not in {o.name for o in trainings}
    ]


def _cells(found: list[scores.Row]) -> list[str]:
    """Means over seeds; of the exact matches their spread too, or the standard error over spectra."""
    exact = [row.sequence_accuracy for row in found]
    spread = f"{min(exact):.3f} to {max(exact):.3f}" if len(found) > 1 else f"± {found[0].standard_error:.3f}"
    means = [statistics.fmean(getattr(row, name) for row in found) for name in ("peptide_precision", "aa_recall")]
    speed = statistics.fmean(row.ms_per_spectrum for row in found)
    return [f"{statistics.fmean(exact):.3f}", spread, *(f"{mean:.3f}" for mean in means), f"{speed:.1f}"]


def page(table: list[list[str]], asked: argparse.Namespace) -> str:
    """docs/accuracy.md."""
    about = f"""# What the trainer learns in {asked.minutes:g} CPU minutes

Written by `python benchmarks/accuracy.py --minutes {asked.minutes:g} --count {asked.count}` on {platform.machine()},
{os.cpu_count()} cores, torch {torch.__version__}: `{" ".join(SETTINGS)}`.

Clean MS2PIP spectra of {FIELD.shortest} to {FIELD.longest} residues, {asked.count} test peptides that no run has seen,
{len(SEEDS)} seeds a model, one thread each. Both models have the same budget of CPU time; `plain` has as many layers as
the recursive one has passes, so as many FLOPs, and weights of its own in each; it has one pass through the answer and
none of its feedback (what the spectrum says to the answer so far): what differs is more than depth.
*Exact* is strict: every residue in
its place, and the end too (leucine stands for isoleucine). *Peptide precision* and *aa recall* are Casanovo's, by
mass. The spectrum graph is given the exact precursor mass, as the models are. Synthetic spectra are easier than real
ones: nothing here may be set beside a figure of a real data set.
"""
    return about + "\n" + markdown(COLUMNS, table) + "\n"


def main() -> None:
    """Time, train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of CPU time for each training")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side")
    parser.add_argument("--count", type=int, default=500, help="test spectra")
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        paces = dict(zip(KINDS, pool.map(seconds_a_step, KINDS), strict=True))
    steps = {kind: max(100, round(asked.minutes * 60 / pace, -2)) for kind, pace in paces.items()}
    trainings = [Trained(kind, seed, int(steps[kind])) for kind in KINDS for seed in SEEDS]
    with ThreadPoolExecutor(asked.processes) as workers:
        spent = list(track(workers.map(ensure, trainings), "trainings", total=len(trainings)))
    table = rows_of(trainings, dict(zip(trainings, spent, strict=True)), asked.count)
    show("clean spectra of 7 to 10 residues", COLUMNS, table)
    Path("docs/accuracy.md").write_text(page(table, asked), encoding="utf-8")


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
