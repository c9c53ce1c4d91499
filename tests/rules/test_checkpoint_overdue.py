"""What would be lost now."""

import numpy as np
import pytest

RULE = "checkpoint-overdue"


def run_with(make_run, saved, steps, *, every=None, end=None):
    head = {} if every is None else {"checkpoint_every": every}
    events = [{"kind": "checkpoint", "step": step, "path": "x.pt"} for step in saved]
    return make_run({"loss": np.ones(steps)}, header=head, events=events, end=end)


@pytest.mark.parametrize(
    ("saved", "steps", "every", "first"),
    [
        ([100, 200], 450, 100, 300),
        ([], 250, 100, 100),
        ([90, 180, 270, 365, 450], 900, None, 540),
    ],
)
def test_by_what_is_declared_and_by_its_own_rhythm(make_run, judge, saved, steps, every, first):
    """Since the step at which it was due."""
    (found,) = judge(run_with(make_run, saved, steps, every=every), RULE)
    assert (found.severity, found.first_step, found.last_step) == ("warning", first, steps)
    assert found.evidence["lost_steps"] == steps - max(saved, default=0)


@pytest.mark.parametrize(
    ("saved", "steps", "every"),
    [
        ([100, 200], 390, 100),
        ([10, 30, 90, 200, 500], 3000, None),  # whenever it got better
        ([100, 200, 300], 3000, None),  # too few to be a rhythm
        ([], 3000, None),
        ([], 3000, "never"),
    ],
)
def test_what_is_healthy(make_run, judge, saved, steps, every):
    """In time, without a rhythm, or without a word of checkpoints."""
    assert judge(run_with(make_run, saved, steps, every=every), RULE) == []


def test_a_run_that_is_through_loses_nothing(make_run, judge):
    """One that failed does."""
    assert judge(run_with(make_run, [100], 500, every=100, end="finished"), RULE) == []
    assert len(judge(run_with(make_run, [100], 500, every=100, end="failed"), RULE)) == 1


def test_other_ranks_leave_it_to_the_first(make_run, judge):
    """Their files declare the interval, and hold no checkpoint."""
    run = run_with(make_run, [100, 200], 250, every=100)
    run.ranks[1] = make_run({"loss": np.ones(250)}, header={"checkpoint_every": 100, "rank": 1}, end=None)
    assert judge(run, RULE) == []


def test_a_resume_counts_from_its_checkpoint(make_run, judge):
    """The process before it had written one."""
    head = {"checkpoint_every": 100, "resumed_from": 400}
    steps = np.arange(401, 560)
    assert judge(make_run({"step": steps, "loss": np.ones(159)}, header=head, end=None), RULE) == []


@pytest.mark.parametrize(("saved", "alarms"), [([], 1), ([100], 0)])
def test_a_finished_run_that_kept_nothing(saved, alarms, make_run, judge):
    """It declared checkpoints and wrote none; one that wrote some may have kept its last weights elsewhere."""
    end = {"status": "finished"}
    assert len(judge(run_with(make_run, saved, 450, every=100, end=end), RULE)) == alarms
