"""step-gap: the step jumps ahead, out of the log's rhythm."""

import numpy as np
import pytest


def judged(make_run, judge, step, **columns):
    run = make_run({"step": step, "loss": np.ones(len(step)), **columns}, header={"total_steps": 2000}, end=None)
    return judge(run, "step-gap")


@pytest.mark.parametrize("stride", [1, 50])
@pytest.mark.parametrize(("rows", "severity"), [(10, "info"), (60, "warning")])
def test_a_jump(make_run, judge, stride, rows, severity):
    """Named at the first row behind it; whether it is grave goes by what is missing."""
    index = np.arange(1, 201)
    step = stride * (index + rows * (index > 100))
    (found,) = judged(make_run, judge, step, time=1e9 + index * 0.5)
    assert (found.severity, found.first_step, found.last_step) == (
        severity,
        stride * (101 + rows),
        stride * (101 + rows),
    )
    assert found.evidence == {"stride": stride * (rows + 1), "usual": stride, "jumps": 1, "missing": stride * rows}


def test_the_time_tells_which(make_run, judge):
    """Rows that are missing took their time; a counter that was moved did not."""
    index = np.arange(1, 201)
    step = index + 100 * (index > 100)
    (found,) = judged(make_run, judge, step, elapsed=step * 0.5)
    assert (found.severity, "rows are missing" in found.message) == ("info", True)
    (found,) = judged(make_run, judge, step, time=1e9 + index * 0.5)
    assert (found.severity, "the counter was moved" in found.message) == ("warning", True)
    assert [found.severity for found in judged(make_run, judge, step)] == ["info"]  # no clock, no verdict


@pytest.mark.parametrize("seed", range(20))
def test_rhythms(make_run, judge, seed):
    """By time, by powers of two, every 10th and then every 100th, the last of an epoch, a row left out, a resume."""
    random = np.random.default_rng(seed)
    by_time = np.cumsum(random.integers(20, 60, 300))
    doubling = 2 ** np.arange(12)
    changed = np.concatenate([np.arange(1, 50), np.arange(50, 500, 10), np.arange(500, 5000, 100)])
    epochs = np.unique(np.concatenate([np.arange(50, 5000, 50), np.arange(390, 5000, 390)]))
    left_out = np.arange(1, 300)[random.random(299) > 0.05]
    for step in (by_time, doubling, changed, epochs, left_out, np.arange(0, 10), [1, 2, 3, 500]):
        assert judged(make_run, judge, step) == []
    run = make_run({"step": np.arange(1, 101)}, header={}, end=None)
    make_run({"step": np.arange(301, 400)}, header={"resumed_from": 300}, onto=run)
    assert judge(run, "step-gap") == []


def test_many_are_told_as_one(make_run, judge):
    """The first, and the widest."""
    step = np.cumsum(np.where(np.arange(400) % 50 == 49, 30, 1))
    (found,) = judged(make_run, judge, step)
    assert found.evidence["jumps"] == 7  # the last one has nothing behind it
    assert found.first_step == step[49]


def test_the_length_of_an_episode_is_no_gap(make_run, judge):
    """In a game rows may come by episode; one whose rows come evenly has gaps like any other run."""
    lengths = np.where(np.arange(200) == 100, 400, 9 + np.arange(200) % 3)
    paid = {"logged/episode_reward": np.ones(200)}
    assert judged(make_run, judge, np.cumsum(lengths), **paid) == []
    assert len(judged(make_run, judge, np.cumsum(lengths))) == 1
    assert len(judged(make_run, judge, np.cumsum(np.where(lengths == 400, 400, 9)), **paid)) == 1
