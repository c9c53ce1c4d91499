"""Patience: when a run that gets no better lowers its rate, and when it ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer import train
from trainer.patience import Patience, Plateau

losses = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(losses, st.integers(1, 5), st.integers(0, 2))
def test_it_counts_since_the_best(course, most, min_delta):
    patience = Patience(most, min_delta)
    best, since = math.inf, 0
    for loss in course:
        patience.seen(loss)
        best, since = (loss, 0) if loss < best - min_delta else (best, since + 1)
        assert (patience.since, patience.exhausted) == (since, since >= most)


@given(losses)
def test_no_patience_is_never_exhausted(course):
    patience = Patience(0)
    for loss in course:
        patience.seen(loss)
        assert not patience.exhausted


def test_what_is_not_finite_is_no_better():
    patience = Patience(2)
    for loss in (math.nan, math.inf):
        patience.seen(loss)
    assert patience.exhausted


@given(losses, st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.01, 0.3]))
def test_a_plateau_is_torchs_own(course, most, factor, least):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = ReduceLROnPlateau(optimizer, factor=factor, patience=most - 1, threshold=0.0, min_lr=least, eps=0.0)
    ours = Plateau(Patience(most), factor, least)
    for loss in course:
        theirs.step(loss)
        ours.seen(loss)
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    again = Plateau(Patience(most), factor, least)
    again.load(ours.state())
    assert again == ours


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose loss is what the test says, in order."""
    evaluate = train.evaluation.evaluate

    def script(*values):
        left = iter(values)

        def scored(*arguments):
            found, shown = evaluate(*arguments)
            return found | {"loss/sequence": next(left)}, shown

        monkeypatch.setattr(train.evaluation, "evaluate", scored)

    return script


def test_a_plateau_lowers_every_rate_down_to_its_floor(trained, steps_of, scripted):
    scripted(3.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0)
    changes = {"optimizer__schedule": "plateau", "optimizer__patience": 1, "optimizer__factor": 0.1}
    changes |= {"optimizer__warmup": 0.34, "optimizer__final": 0.05, "optimizer__lr": 1.0, "optimizer__name": "muon"}
    _, records = trained(steps=6, evaluation__every=0.17, **changes)
    rows = steps_of(records)
    assert [row["lr/other"] for row in rows] == pytest.approx([0.5, 1.0, 0.1, 0.05, 0.05, 0.05])
    assert [row["lr/hidden"] for row in rows] == pytest.approx([0.02 * row["lr/other"] for row in rows])
    assert not [name for name in records[0]["schedules"] if name.startswith("lr/")]


def test_a_run_that_gets_no_better_ends_early(trained, scripted, tmp_path):
    scripted(3.0, 2.0, 1.95, 1.8, 1.81, 1.75)
    changes = {"steps": 10, "evaluation__every": 0.1, "evaluation__patience": 2, "evaluation__min_delta": 0.1}
    outcome, records = trained(**changes)
    assert (outcome.step, outcome.stopped) == (5, "early stopping: 2 evaluations without a better loss")
    assert (records[-1]["status"], records[-1]["reason"]) == ("stopped", outcome.stopped)
    assert (tmp_path / "run.checkpoints" / "latest.pt").resolve().name == "step_00000005.pt"


def test_patience_outlives_a_resume(trained, scripted):
    changes = {"steps": 8, "evaluation__every": 0.125, "evaluation__patience": 3, "checkpoint__every": 0.125}
    scripted(3.0, 1.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0)
    whole, _ = trained(name="whole", checkpoint__keep=9, **changes)
    assert whole.step == 7
    scripted(2.0, 2.0)
    resumed, _ = trained("before:5", name="whole", **changes)
    assert resumed.step == 7


def test_another_schedule_does_not_go_on_from_a_lowered_rate(trained, steps_of, scripted):
    scripted(*[1.0, 2.0, 2.0, 2.0, 2.0], 2.0, 2.0)
    changes = {"steps": 4, "evaluation__every": 0.25, "optimizer__patience": 1, "optimizer__warmup": 0.0}
    trained(optimizer__schedule="plateau", **changes)
    _, records = trained("before:2", optimizer__schedule="constant", optimizer__lr=1e-3, **changes)
    assert [row["lr/hidden"] for row in steps_of(records)[-2:]] == [1e-3, 1e-3]


def test_the_last_evaluation_ends_a_run_anyway(trained, scripted):
    scripted(1.0, 2.0, 2.0)
    outcome, records = trained(steps=2, evaluation__every=0.5, evaluation__patience=2)
    assert (outcome.stopped, records[-1]["status"]) == ("", "finished")
