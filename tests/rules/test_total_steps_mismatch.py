"""total-steps-mismatch: planned steps against the data, and against what is taken."""

import numpy as np
import pytest

from trainwatch.engine import Engine

HORIZON = {"epochs": 3, "samples": 1003, "batch_size": 10, "accumulation": 4, "drop_last": False, "processes": 2}
"""101 batches, 26 steps an epoch."""


def judged(make_run, judge, total, steps=0, end=None, first=1, horizon=HORIZON, **header):
    columns = {"step": np.arange(first, first + steps), "loss": np.ones(steps)} if steps else {}
    run = make_run(columns, header={"total_steps": total, "horizon": horizon, **header}, end=end)
    return judge(run, "total-steps-mismatch")


@pytest.mark.parametrize("total", [78, 77, 79])
def test_the_right_count(make_run, judge, total):
    """Within 2 %."""
    assert judged(make_run, judge, total, steps=total, end="finished") == []


@pytest.mark.parametrize(
    ("total", "why"), [(303, "micro-batches were counted"), (156, "every process's batches"), (110, "gives 75 to 78.")]
)
def test_too_many(make_run, judge, total, why):
    """Told before the first step, with the factor if there is one."""
    (found,) = judged(make_run, judge, total, config={"training": {"max_steps": total}})
    assert (found.severity, found.first_step) == ("warning", 0)
    assert why in found.message
    assert found.patch == ({} if total == 110 else {"training.max_steps": 78})


def test_epochs_that_were_not_rounded(make_run, judge):
    """Hundred epochs of 33 samples in batches of 32: 200 steps, and not 104."""
    horizon = {"epochs": 100, "samples": 33, "batch_size": 32, "drop_last": False}
    (found,) = judged(make_run, judge, 104, horizon=horizon)
    assert (found.severity, found.evidence["most"]) == ("warning", 200)
    assert judged(make_run, judge, 104, horizon={**horizon, "drop_last": None}) == []  # 100 to 200


@pytest.mark.parametrize("total", [26, 39, 20, 50])
def test_fewer_may_be_meant(make_run, judge, total):
    """One epoch, a batch size of one process, of the whole group, or a bound on the steps."""
    horizon = HORIZON if total > 20 else {**HORIZON, "epochs": 1}
    assert [found.severity for found in judged(make_run, judge, total, horizon=horizon)] == ["info"]


def test_a_run_that_goes_on_past_its_end(make_run, judge):
    """From the first step beyond the plan; not for a rounding of a few, nor where it counts on from another run."""
    (found,) = judged(make_run, judge, 100, steps=150, horizon=None)
    assert (found.severity, found.first_step, found.last_step) == ("warning", 101, 150)
    assert [found.severity for found in judged(make_run, judge, 100, steps=110, horizon=None)] == ["info"]
    assert judged(make_run, judge, 100, steps=102, horizon=None) == []
    assert judged(make_run, judge, 100, steps=150, first=5000, horizon=None) == []


@pytest.mark.parametrize(("end", "told"), [("finished", ["info"]), ("stopped", []), (None, [])])
def test_a_run_that_finishes_early(make_run, judge, end, told):
    """It may have been stopped early: only told."""
    found = judged(make_run, judge, 100, steps=60, end=end, horizon=None)
    assert [finding.severity for finding in found] == told


@pytest.mark.parametrize("horizon", [None, {}, {"epochs": 1}, {"epochs": 0, "samples": 5, "batch_size": 1}, [1]])
def test_without_a_horizon(make_run, judge, horizon):
    """Nothing to hold it against."""
    assert judged(make_run, judge, 100, horizon=horizon) == []


def test_a_count_of_something_else_is_taken_back(make_run):
    """Sixty times the plan may be; two hundred times is another unit, whenever one looked."""
    header, engine = {"total_steps": 1}, Engine()
    run = make_run({"step": np.arange(1, 61)}, header=header, end=None)
    engine.feed(run)
    assert [found.rule for found in engine.findings(run) if found.rule == "total-steps-mismatch"] != []
    make_run({"step": np.arange(61, 201)}, end=None, onto=run)
    engine.feed(run)
    assert [found.rule for found in engine.findings(run) if found.rule == "total-steps-mismatch"] == []


@pytest.mark.parametrize(
    ("steps", "losses", "told"),
    [
        (120, [3.0, 2.0, 1.0], "warning"),
        (120, [], "info"),  # one of two planned epochs looks the same
        (120, [3.0, 1.0, 2.0], "info"),  # what waits for validation has stopped it
        (110, [3.0, 2.0, 1.0], "info"),
    ],
)
def test_micro_batches_that_nothing_else_was_counted_by(make_run, judge, steps, losses, told):
    """The plan is the accumulation times what it took, and nothing stopped it while it went on learning."""
    run = make_run(
        {"step": np.arange(1, steps + 1), "loss": np.ones(steps)},
        header={"total_steps": 240, "config": {"accumulation": 2}},
        evals=[{"step": 20 * number, "split": "valid", "loss": loss} for number, loss in enumerate(losses, 1)],
        end="finished",
    )
    assert [found.severity for found in judge(run, "total-steps-mismatch")] == [told]


@pytest.mark.parametrize(("pay", "told"), [([-7.0, -5.0, -4.0], "warning"), ([-7.0, -4.0, -5.0], "info")])
def test_micro_batches_of_a_policy(make_run, judge, pay, told):
    """It has no loss to hold out: what it is paid goes on rising."""
    run = make_run(
        {"step": np.arange(1, 121), "loss/policy": np.ones(120)},
        header={"total_steps": 240, "config": {"accumulation": 2}},
        evals=[{"step": 40 * number, "split": "valid", "metric/return": paid} for number, paid in enumerate(pay, 1)],
        end="finished",
    )
    assert [found.severity for found in judge(run, "total-steps-mismatch")] == [told]
