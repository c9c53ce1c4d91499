"""A resume is the same run to the last bit, after a kill too; and micro-batches add up to their batch."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from trainer import checkpoint, train
from trainer.run import build

ROOT = Path(__file__).parents[2]
TIMES = {"time", "elapsed", "seconds", "time/step", "time/data", "time/compute", "time/monitor", "memory/rss"}
KILLED = """
import os, signal, sys
from trainer import train
from trainer.__main__ import main
apply, last = train.apply, int(sys.argv[1])
def die(run, *others):
    apply(run, *others)
    if run.step == last:
        os.kill(os.getpid(), signal.SIGKILL)
train.apply = die
sys.exit(main(sys.argv[2:]))
"""


def killed(arguments, at):
    """A process of its own, which is killed after step `at`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(at), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def digest(state):
    """sha256 of everything in a checkpoint but the record's name and id, and the config's."""
    found = hashlib.sha256()

    def take(value):
        if isinstance(value, torch.Tensor):
            found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                found.update(repr(key).encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                take(item)
        else:
            found.update(repr(value).encode())

    take({key: value for key, value in state.items() if key not in ("record", "config")})
    return found.hexdigest()


def told(path, after):
    """What the file says of the steps after `after`, clocks of the wall apart; what a resume supersedes left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    begin = max(index for index, row in enumerate(rows) if row["kind"] == "run")
    rows = [row for row in rows[begin:] if row["kind"] in ("step", "eval", "sample") and row["step"] > after]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def resume_is_exact(settings, trained, tmp_path, number, **changes):
    """`number` steps at once against half of them, a kill three steps later, and the other half."""
    half = number // 2
    options = {"data__max_peaks": 16, "evaluation__samples": 2, **changes}
    if "samples" not in options:
        options["steps"] = number
    whole, _ = trained(name="whole", **options)
    killed(settings(name="killed", **options), half + 3)
    resumed, _ = trained("auto", name="killed", **options)
    assert (whole.step, resumed.step) == (number, number)
    states = [checkpoint.load(tmp_path / f"{name}.checkpoints" / "latest.pt") for name in ("whole", "killed")]
    assert digest(states[0]) == digest(states[1])
    rows, again = told(whole.path, half), told(resumed.path, half)
    assert [row["step"] for row in again if row["kind"] == "step"] == list(range(half + 1, number + 1))
    assert again == rows
    return states[1], rows


def test_plain(settings, trained, tmp_path):
    resume_is_exact(settings, trained, tmp_path, 40)
    heads = [json.loads(line) for line in (tmp_path / "killed.jsonl").read_text().splitlines()]
    assert [head.get("resumed_from") for head in heads if head["kind"] == "run"] == [None, 20]


def test_with_loader_workers(settings, trained, tmp_path):
    resume_is_exact(settings, trained, tmp_path, 12, data__workers=2)


def test_with_accumulation_and_an_incomplete_last_group(settings, trained, tmp_path):
    changes = {"steps": 0, "samples": 20, "epochs": 3, "batch_size": 2, "accumulation": 3}
    _, rows = resume_is_exact(settings, trained, tmp_path, 12, **changes)
    seen = [row["samples"] for row in rows if row["kind"] == "step"]
    assert {after - before for before, after in pairwise(seen)} == {6, 2}


def test_with_moving_average_plateau_and_early_stopping(settings, trained, tmp_path):
    changes = {"optimizer__ema": 0.9, "optimizer__schedule": "plateau", "optimizer__patience": 1}
    changes |= {"evaluation__every": 0.1, "evaluation__patience": 40, "optimizer__lr": 0.02}
    state, rows = resume_is_exact(settings, trained, tmp_path, 12, **changes)
    assert state["plateau"]["scale"] < 1
    assert {row["split"] for row in rows if row["kind"] == "eval"} == {"validation", "validation_ema"}
    assert any(not torch.equal(state["ema"][name], weight) for name, weight in state["model"].items())


def test_with_a_gradient_scaler(settings, trained, tmp_path):
    """In float16, whose steps take a second on a CPU."""
    state, rows = resume_is_exact(settings, trained, tmp_path, 8, precision="fp16")
    assert state["scaler"]["scale"] > 0
    assert all("amp/scale" in row for row in rows if row["kind"] == "step")


def test_with_muon(settings, trained, tmp_path):
    resume_is_exact(settings, trained, tmp_path, 12, optimizer__name="muon")


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every step, as it is before clipping."""
    taken = []
    apply = train.apply

    def apply_seen(run, *others):
        taken.append({name: p.grad.clone() for name, p in run.model.named_parameters()})
        apply(run, *others)

    monkeypatch.setattr(train, "apply", apply_seen)
    return taken


def test_micro_batches_add_up_to_their_batch(trained, steps_of, tmp_path, gradients, config):
    options = {"steps": 3, "checkpoint__every": 0.34, "checkpoint__keep": 9, "curriculum": "DEFAULT"}
    options["optimizer__max_grad_norm"] = 1e9
    _, one = trained(name="one", batch_size=6, **options)
    whole = gradients[:]
    gradients.clear()
    _, three = trained(name="three", batch_size=2, accumulation=3, **options)
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in whole[0].values()))
    for name, grad in whole[0].items():
        torch.testing.assert_close(gradients[0][name], grad, rtol=1e-4, atol=1e-6 * norm)
    folders = [tmp_path / f"{name}.checkpoints" / "step_00000001.pt" for name in ("one", "three")]
    first, second = (checkpoint.load(path)["model"] for path in folders)
    for name, weight in build(config(steps=3)).model.state_dict().items():
        moved = float((first[name] - weight).norm())  # by Adam, for whom the sign of a gradient near 0 is a whole step
        assert float((second[name] - first[name]).norm()) <= 5e-3 * moved, name
    row, other = (steps_of(records)[0] for records in (one, three))
    derived = [key for key in row if key.startswith(("component_grad/", "grad_share/", "grad_cosine/"))]
    assert {"component_grad/spectrum", "grad_cosine/sequence~precursor"} <= set(derived)
    for key in [*derived, "grad_norm", "loss", "loss/sequence", "loss/spectrum", "loss/precursor"]:
        near = 1e-4 if key.startswith("grad_cosine/") else 1e-6  # a cosine near 0 is a difference of large numbers
        assert other[key] == pytest.approx(row[key], rel=1e-4, abs=near), key
    for key in (key for key in row if key.startswith("data/") and key.endswith(("/min", "/max"))):
        assert other[key] == row[key], key
