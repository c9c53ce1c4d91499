"""Checkpoints that cannot be written or are not what they should be: one sentence, and nothing else lost."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer import checkpoint, train
from trainer.__main__ import main
from trainer.checkpoint import Checkpoints, SaveError
from trainer.config import UsageError

ROOT = Path(__file__).parents[2]
FULL = """
import resource, sys
from trainer.checkpoint import Checkpoints
from trainer.__main__ import main
save, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)
def full(self, state, step, best):
    if step >= int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        return save(self, state, step, best)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
Checkpoints.save = full
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def full(monkeypatch):
    """A disk that is full while checkpoints of these steps are written."""
    fsync = os.fsync

    def at(*steps):
        def refuse(descriptor):
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            if any(f"step_{step:08d}.pt" in name for step in steps):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(checkpoint.os, "fsync", refuse)

    return at


def test_a_full_disk_costs_one_checkpoint(config, full, tmp_path, capfd):
    full(2)
    outcome = train.main(config(steps=3, checkpoint__every=0.34, checkpoint__keep=1))
    records = [json.loads(line) for line in outcome.path.read_text().splitlines()]
    said = [line for line in capfd.readouterr().err.splitlines() if "could not be written" in line]
    folder = tmp_path / "run.checkpoints"
    path = folder / "step_00000002.pt"
    sentence = f"checkpoint {path} could not be written: No space left on device"
    assert said == [f"trainer: {sentence}; the run goes on and tries again at the next one"]
    told = [(r["step"], r["about"], r["message"]) for r in records if r.get("event") == "warning"]
    assert told == [(2, "checkpoint", sentence)]
    assert [r["step"] for r in records if r["kind"] == "checkpoint"] == [1, 3]
    assert (outcome.step, records[-1]["status"]) == (3, "finished")
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "latest.pt", "step_00000003.pt"]


def test_a_full_disk_leaves_the_last_good_one(tmp_path, full):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save({"value": 1}, 1, best=True)
    full(2)
    with pytest.raises(SaveError, match="No space left on device"):
        kept.save({"value": 2}, 2, best=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "latest.pt", "step_00000001.pt"]
    for name in ("latest.pt", "best.pt"):
        assert checkpoint.load(tmp_path / name)["value"] == 1


def test_a_best_that_was_not_saved_is_not_best(trained, full):
    """The next one may be worse than the one that was lost, and is the best there is all the same."""
    full(3)
    _, records = trained(steps=6, checkpoint__every=0.5, evaluation__every=0.5)
    assert [(r["step"], r["best"]) for r in records if r["kind"] == "checkpoint"] == [(6, True)]


def test_a_last_checkpoint_that_is_lost_fails_the_run(settings, full, capfd, tmp_path):
    full(3)
    assert main(settings(steps=3, checkpoint__every=1.0)) == 1
    said = capfd.readouterr().err
    assert "trainer: failed: checkpoint" in said
    assert "No space left on device" in said
    assert "Traceback" not in said
    last = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["status"]) == ("end", "failed")


def test_a_file_that_may_not_grow(settings, tmp_path):
    """The kernel's own refusal, in the middle of torch.save, which tells of it in words of its own."""
    arguments = settings(steps=2, checkpoint__every=0.5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FULL, "2", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "step_00000002.pt could not be written: File too large" in done.stderr
    folder = tmp_path / "run.checkpoints"
    assert (folder / "latest.pt").resolve().name == "step_00000001.pt"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_is_no_failed_write_is_told_as_it_is(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        Checkpoints(tmp_path, keep=1).save({"value": lambda: None}, 1, best=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "small"}, "other size"),
        ({"optimizer__name": "muon"}, r"other optimizer\.name"),
        ({"model__kind": "plain"}, r"other model\.kind"),
        ({"model__halting": "false"}, r"other model\.halting"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimiser_is_refused(change, words, trained, config):
    trained(steps=1)
    with pytest.raises(UsageError, match=words):
        train.main(config(steps=1, **change), resume="auto")


def test_another_reach_of_gradients_is_no_other_run(trained):
    trained(steps=4, checkpoint__every=0.5)
    outcome, _ = trained("before:2", steps=4, model__bptt="full")
    assert outcome.step == 4


@pytest.mark.parametrize("spoilt", ["truncated", "empty", "pickle", "stranger", "weights", "shape"])
def test_a_spoilt_checkpoint_is_one_sentence(spoilt, trained, settings, tmp_path, capfd):
    trained(steps=1)
    good = (tmp_path / "run.checkpoints" / "latest.pt").resolve()
    path, state = tmp_path / "spoilt.pt", torch.load(good, weights_only=True)
    if spoilt in ("truncated", "empty"):
        path.write_bytes(good.read_bytes()[: 5000 if spoilt == "truncated" else 0])
    elif spoilt == "pickle":
        torch.save({"format": checkpoint.FORMAT, "model": Path("run")}, path)
    elif spoilt == "stranger":
        torch.save({"state_dict": {}}, path)
    else:
        name, weight = next(iter(state["model"].items()))
        state["model"] = {} if spoilt == "weights" else state["model"] | {name: weight[:1].clone()}
        torch.save(state, path)
    capfd.readouterr()
    assert main([*settings(steps=1), "--resume", str(path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"trainer: checkpoint {path} ")
    assert said.endswith((".\n",))
    assert len(said) < 300 + len(str(path))


def test_a_folder_whose_link_cannot_be_set_is_one_sentence(tmp_path):
    Checkpoints(tmp_path, 2).save({}, 1, best=False)
    (tmp_path / "latest.pt").unlink()
    (tmp_path / "latest.pt").mkdir()
    with pytest.raises(UsageError, match="checkpoints cannot be written to"):
        Checkpoints(tmp_path, 2).begin(1)
