"""step-duplicate: two losses at one step."""

import numpy as np
import pytest

LOSS = np.random.default_rng(0).random(400)


def judged(make_run, judge, step, loss=LOSS, **columns):
    run = make_run({"step": step, "loss": np.asarray(loss)[: len(step)], **columns})
    return judge(run, "step-duplicate")


def test_a_counter_that_stands_still(make_run, judge):
    """From step 100 on every row comes under it."""
    (found,) = judged(make_run, judge, np.minimum(np.arange(1, 301), 100))
    assert (found.severity, found.first_step, found.evidence["repeats"]) == ("warning", 100, 200)


def test_a_second_writer(make_run, judge):
    """It joins at step 50."""
    step = np.concatenate([np.arange(1, 50), np.repeat(np.arange(50, 200), 2)])
    (found,) = judged(make_run, judge, step)
    assert (found.severity, found.first_step, found.last_step) == ("warning", 50, 199)


@pytest.mark.parametrize(
    ("step", "loss"),
    [
        (np.repeat(np.arange(1, 101), 4), LOSS),  # micro-batches, from the first row on
        (np.repeat(np.arange(1, 101), 2), np.repeat(LOSS, 2)),  # the same row twice
        (np.sort([*range(1, 300), 120, 180, 240]), LOSS),  # a stutter
    ],
)
def test_habits_are_mentioned(make_run, judge, step, loss):
    """They do not say that anything is wrong with the training."""
    assert [found.severity for found in judged(make_run, judge, step, loss)] == ["info"]


def test_rows_without_a_loss_are_no_repeats(make_run, judge):
    """Trackers write a step's other values in rows of their own; a resume does steps again."""
    step = np.repeat(np.arange(1, 101), 2)
    assert judged(make_run, judge, step, np.where(np.arange(200) % 2, np.nan, 1.0)) == []
    run = make_run({"loss": np.ones(50)}, header={}, end=None)
    make_run({"step": np.arange(50, 99), "loss": np.ones(49)}, header={"resumed_from": 49}, onto=run)
    assert judge(run, "step-duplicate") == []
