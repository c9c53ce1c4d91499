"""wrong-time-axis: training by steps, evaluation by epochs."""

import numpy as np
import pytest


def judged(make_run, judge, evals, steps):
    evaluations = [{"step": int(step), "loss": 1.0} for step in evals]
    return judge(make_run({"step": steps, "loss": np.ones(len(steps))}, evals=evaluations), "wrong-time-axis")


def test_evaluations_by_epoch(make_run, judge):
    """Ten epochs of a thousand steps."""
    (found,) = judged(make_run, judge, range(1, 11), np.arange(100, 10_001, 100))
    assert (found.severity, found.first_step, found.last_step) == ("info", 1, 10)
    assert found.evidence["other"] == 10_000


def test_training_by_epoch(make_run, judge):
    """And evaluations by step."""
    (found,) = judged(make_run, judge, range(500, 5001, 500), np.arange(10))
    assert found.message.startswith("Training rows are numbered")


@pytest.mark.parametrize(
    ("evals", "steps"),
    [
        (range(100, 1001, 100), range(1, 1001)),
        (range(1, 11), range(1, 11)),
        (range(11), range(1, 12)),
        ([1, 2], range(1, 1001)),
        ([0, 10, 20], range(1, 1001)),
        ([], range(1, 1001)),
        (range(1, 11), []),
    ],
)
def test_axes_that_agree(make_run, judge, evals, steps):
    """Or of which too little is known."""
    assert judged(make_run, judge, evals, np.array(steps)) == []
