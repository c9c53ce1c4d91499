"""The benchmarks of the trainer: their trials run through; departures, damage and kept records are what they say."""

import json
import lzma
from pathlib import Path

import departures
import diverge
import faults
import numpy as np
import trainings
from hypothesis import given
from hypothesis import strategies as st

from trainwatch.run import Run


def run_of(train=None, **evaluations):
    """A run with these columns, from step 1 on, and these evaluations, at 0, 10, 20, ..."""
    run, rows = Run(Path("made")), {name: np.array(values, float) for name, values in (train or {}).items()}
    if rows:
        run.add_rows("train", np.arange(1, len(next(iter(rows.values()))) + 1), rows)
    columns = {name.replace("__", "/"): np.array(values, float) for name, values in evaluations.items()}
    if columns:
        count = len(next(iter(columns.values())))
        run.add_rows("eval", 10 * np.arange(count), columns)
        run.eval.text["split"] = dict.fromkeys(range(count), "validation")
    return run


def test_the_trial_of_faults_makes_its_table_once(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    faults.main(["--quick", "--processes", "0", "poisoned-batch"])
    said = capsys.readouterr().out
    assert "non-finite-loss at 2 (1 of 1)" in said
    assert "Of 1 faults 1 are named in every seed" in said
    faults.main(["--quick", "--processes", "0", "poisoned-batch"])
    assert "trainings (2 are there)" in capsys.readouterr().out
    records = sorted((tmp_path / "logs" / "faults-quick").iterdir())
    assert [path.name for path in records] == ["healthy-0.jsonl.xz", "poisoned-batch-0.jsonl.xz"]
    header = json.loads(lzma.decompress(records[0].read_bytes()).splitlines()[0])
    assert not {"host", "pid", "command"} & set(header)
    assert str(tmp_path) not in json.dumps(header)


def test_the_trial_of_diverge_writes_its_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    diverge.main(["--quick", "--processes", "0"])
    capsys.readouterr()
    page = (tmp_path / "logs" / "diverge-quick" / "diverge.md").read_text()
    assert "None of 2 runs of DEFAULT came to a loss that is not finite" in page
    assert "| raw_ppm | fp32 | trm | 1 | 4 x 1 | no |" in page


def test_every_fault_has_its_runs_and_twins_are_shared():
    pairs = [faults.pair(fault, (), 3) for fault in faults.FAULTS.values()]
    names = {training.name for one in pairs for training in (*one.sick, *one.healthy)}
    assert len({training for one in pairs for training in (*one.sick, *one.healthy)}) == len(names)
    assert len({one.healthy for one in pairs}) == 6
    resumed = {one.fault.name: one.resumed for one in pairs if one.resumed}
    assert resumed == {"weights-only-resume": 80}
    assert all(one.fault.begins(one.config, one.resumed) >= 1 for one in pairs)


def test_another_setting_is_trained_again(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(trainings, "_train", lambda training, _folder: done.append(training.name))
    monkeypatch.setattr(trainings, "_prepare", lambda _missing: None)
    first, other = trainings.Training("a", ("steps=3",)), trainings.Training("a", ("steps=4",))
    header = {"kind": "run", "config": trainings.as_dict(trainings.load([], ["steps=3", "name=a"])[0])}
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(json.dumps(header).encode()))
    trainings.ensure([first], tmp_path, 0)
    assert done == []
    trainings.ensure([other, other], tmp_path, 0)
    assert done == ["a"]
    (tmp_path / "a.jsonl.xz").write_bytes(b"torn")
    trainings.ensure([first], tmp_path, 0)
    assert done == ["a", "a"]


@given(st.floats(allow_nan=False, width=32))
def test_shortened_numbers_are_the_same_float32(number):
    short = trainings._shortened({"a": [number, "text", 7]})["a"]
    assert np.float32(short[0]) == np.float32(number)
    assert short[1:] == ["text", 7]
    assert trainings._shortened(1.0 / 3) == 1.0 / 3  # a double stays what it is


def test_damage_is_what_stays():
    healthy = [run_of(loss__sequence=[3, 2.0, 1.5, 1.2, 1.0]), run_of(loss__sequence=[3, 2.2, 1.6, 1.3, 1.1])]
    sick = [run_of(loss__sequence=[3, 9, 1.5, 2, np.nan])]
    assert departures.damage(sick, healthy, begins=1) == 30  # the peak at 10 passed
    assert departures.damage(sick, healthy, begins=31) == 40
    assert (
        departures.damage([run_of(loss__sequence=[9, 9, 9, 9, 1.15])], healthy, begins=1) == 0
    )  # within what the seeds differ


def test_the_first_clear_departure_is_shown():
    noise = np.random.default_rng(0).normal(size=(3, 60))
    still = np.ones(60)
    healthy = [run_of({"a": still, "norm": wave, "time/step": wave}) for wave in noise]
    jump = np.where(np.arange(1, 61) >= 30, 50.0, 0.0)
    late = np.where(np.arange(1, 61) >= 40, 2.0, 1.0)
    sick = [run_of({"a": late, "norm": wave + jump, "time/step": wave + 100}) for wave in noise]
    shown = departures.first_shown(sick, healthy, begins=1)
    assert (shown.channel, shown.step) == ("norm", 30)
    assert departures.first_shown(sick, healthy, begins=45).channel == "a"  # beyond doubt, and first in the row
    assert departures.first_shown(healthy, healthy, begins=1) is None


def test_a_loss_without_a_weight_is_not_looked_at():
    weight = np.where(np.arange(1, 11) >= 6, 0.5, 0.0)
    run = run_of({"weight/x": weight, "loss/x": np.arange(1.0, 11.0)})
    np.testing.assert_array_equal(departures.by_step(run, "loss/x"), [np.nan] * 5 + [6, 7, 8, 9, 10])
