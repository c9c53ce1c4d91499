"""suspicious-validation: better on what was never seen; dropout and its like are the usual reason."""

import numpy as np
import pytest

RULE = "suspicious-validation"
STEPS = np.arange(1, 2001)
TRAIN = 1.0 + 1.5 * np.exp(-STEPS / 300)
PLAIN = {"config": {"model": {"dropout": 0.0}, "augment": False}}


def evals(share, split="valid", first=1.0):
    at = TRAIN[99::100]
    values = np.concatenate([[first * TRAIN[:100].mean()], share * at[1:]])
    return [{"step": 100 * (i + 1), "split": split, "loss": float(v)} for i, v in enumerate(values)]


def test_without_an_excuse_a_half_is_a_warning(make_run, judge):
    """And nine tenths are an info."""
    (found,) = judge(make_run({"loss": TRAIN}, header=PLAIN, evals=evals(0.4)), RULE)
    assert (found.severity, found.subject) == ("warning", "split:valid")
    assert found.evidence["ratio"] == pytest.approx(0.4, abs=0.05)
    (found,) = judge(make_run({"loss": TRAIN}, header=PLAIN, evals=evals(0.8)), RULE)
    assert found.severity == "info"


@pytest.mark.parametrize("config", [{}, {"model": {"dropout": 0.1}}, {"loss": {"label_smoothing": 0.1}, "dropout": 0}])
def test_dropout_and_its_like(make_run, judge, config):
    """Up to twice as bad in training is health; beyond, an info."""
    header = {"config": config}
    assert judge(make_run({"loss": TRAIN}, header=header, evals=evals(0.6)), RULE) == []
    assert [f.severity for f in judge(make_run({"loss": TRAIN}, header=header, evals=evals(0.4)), RULE)] == ["info"]


def test_what_is_none(make_run, judge):
    """Alike; averaged weights; a steep descent, in which the mean lags; a difference that was there at once is info."""
    for records in (evals(1.0), evals(0.4, "average"), evals(1.2)):
        assert judge(make_run({"loss": TRAIN}, header=PLAIN, evals=records), RULE) == []
    steep = {"loss": np.exp(-STEPS / 100)}
    at = [{"step": s, "split": "valid", "loss": float(np.exp(-s / 100))} for s in range(100, 2001, 100)]
    assert judge(make_run(steep, header=PLAIN, evals=at), RULE) == []
    (found,) = judge(make_run({"loss": TRAIN}, header=PLAIN, evals=evals(0.4, first=0.4)), RULE)
    assert found.severity == "info"


def test_a_sum_over_the_batches_of_an_epoch_is_another_quantity(make_run, judge):
    """Both fall, at 400 times each other, from the first evaluation on."""
    assert judge(make_run({"loss": 400 * TRAIN}, evals=evals(1 / 400, first=1 / 400)), RULE) == []
    assert len(judge(make_run({"loss": TRAIN}, evals=evals(1 / 400)), RULE)) == 1


@pytest.mark.parametrize(
    ("values", "config", "alarms"),
    [
        (np.full(20, 0.15), {"dropout": 0.05}, 1),
        (np.full(20, 0.15), {"dropout": 0.5}, 0),
        (np.full(20, 0.15), {"dropout": 0.05, "label_smoothing": 0.1}, 0),
        (0.1 * TRAIN[99::100], {"dropout": 0.05}, 0),
    ],
)
def test_what_training_never_reaches(values, config, alarms, make_run, judge):
    """From the first evaluation on, and not the same quantity in another unit."""
    records = [{"step": 100 * (i + 1), "split": "valid", "loss": float(v)} for i, v in enumerate(values)]
    found = judge(make_run({"loss": TRAIN}, header={"config": config}, evals=records), RULE)
    assert len([one for one in found if one.rank]) == alarms


def test_training_that_stands_at_its_floor_as_well_tells_nothing(make_run, judge):
    """A model that is fine-tuned has nothing left to fall, and its dropout weighs more the nearer it is to 0."""
    header, records = {"config": {"dropout": 0.1}}, evals(0.0, first=0.0)
    records = [{**one, "loss": 0.008} for one in records]
    noisy = 0.02 * np.exp(0.3 * np.random.default_rng(0).standard_normal(len(TRAIN)))
    assert [one for one in judge(make_run({"loss": noisy}, header=header, evals=records), RULE) if one.rank] == []


def test_a_part_of_a_hundredth_of_the_loss_is_left_alone(make_run, judge):
    header = {"config": {"dropout": 0.05}}
    columns = {"loss": TRAIN * 1.01, "loss/copy": TRAIN * 0.01}
    records = [
        {"step": 100 * (i + 1), "split": "valid", "loss": 1.01 * value, "loss/copy": 1e-6}
        for i, value in enumerate(TRAIN[99::100].tolist())
    ]
    assert judge(make_run(columns, header=header, evals=records), RULE) == []
