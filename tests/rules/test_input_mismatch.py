"""input-mismatch: evaluation reads what is scaled otherwise than training's data; noise and curricula are no alarm."""

import numpy as np
import pytest

RULE = "input-mismatch"
N = 200
ROW = np.arange(N)


def columns(mean=0.0, spread=1.0, seed=0):
    """A look at each tenth step."""
    random = np.random.default_rng(seed)
    looked = ROW % 10 == 0
    wide = spread * np.exp(0.02 * random.standard_normal(N))
    return {
        "loss": 0.1 + np.exp(-ROW / 50),
        "data/read_mean": np.where(looked, mean, np.nan),
        "data/read_std": np.where(looked, wide, np.nan),
    }


def evaluations(mean=0.0, spread=1.0, loss=0.15, count=8):
    return [
        {"step": 25 * i, "split": "validation", "loss": loss, "data/read_mean": mean, "data/read_std": spread}
        for i in range(1, count + 1)
    ]


SICK = {
    "pixels that nobody divided": (columns(), evaluations(120.0, 70.0, loss=0.9)),
    "the other way round": (columns(120.0, 70.0), evaluations(loss=0.9)),
    "a mean that was not subtracted": (columns(), evaluations(mean=15.0, loss=0.9)),
}


@pytest.mark.parametrize("name", SICK)
def test_told(name, make_run, judge):
    run, evals = SICK[name]
    found = judge(make_run(run, evals=evals), RULE)
    assert [(one.severity, one.first_step, one.last_step) for one in found] == [("warning", 25, 200)]


def test_from_the_evaluation_on_that_began_it(make_run, judge):
    evals = evaluations(count=4) + [row | {"step": row["step"] + 100} for row in evaluations(100.0, 60.0, 0.9, 4)]
    assert [one.first_step for one in judge(make_run(columns(), evals=evals), RULE)] == [125]


@pytest.mark.parametrize(("read", "loss"), [((0.45, 0.22), 0.9), ((120.0, 70.0), 0.15), ((0.0, 0.05), 0.15)])
def test_where_validation_is_well_or_little_is_between_it_is_an_info(read, loss, make_run, judge):
    """The first batch of an evaluation may be the corner of an image, or the beginning of a game."""
    found = judge(make_run(columns(), evals=evaluations(*read, loss=loss)), RULE)
    assert [one.severity for one in found] == ["info"]


NOISY = columns() | {"data/read_std": np.where(ROW % 10 == 0, np.exp(np.sin(ROW)), np.nan)}
HEALTHY = {
    "alike": (columns(), evaluations()),
    "augmented": (columns(spread=1.8), evaluations(loss=0.9)),
    "two evaluations": (columns(), evaluations(120.0, 70.0, count=2)),
    "noise levels": (NOISY, evaluations(spread=20.0)),
    "another set each time": (columns(), [row | {"data/read_std": 0.1 * row["step"]} for row in evaluations()]),
    "mended": (columns(), evaluations(120.0, 70.0, count=7) + evaluations()[-1:]),
    "no looks": ({"loss": columns()["loss"]}, evaluations(120.0, 70.0)),
    "constant, which is another sickness": (columns(spread=0.0), evaluations()),
    "the air around a scan": (columns(), evaluations(spread=0.0, loss=0.9)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    run, evals = HEALTHY[name]
    assert judge(make_run(run, evals=evals), RULE) == []
