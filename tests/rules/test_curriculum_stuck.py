"""curriculum-stuck: a stage that goes on when its end has passed."""

import numpy as np
import pytest

STEPS = np.arange(1, 2001)
BEGINS = (0, 500, 1000, 1500)


def head(total=2000, weights=(0.0, 0.1, 0.2, 0.3)):
    stages = [{"start": s, "name": f"s{i}", "weights": {"b": weights[i]}} for i, s in enumerate(BEGINS)]
    return {"total_steps": total, "curriculum": {"name": "P", "stages": stages}}


def stages(steps):
    return np.searchsorted(BEGINS, steps, side="right") - 1


@pytest.mark.parametrize("every", [1, 10, 50])
def test_a_stage_that_never_changes(make_run, judge, every):
    """Named at the boundary that was missed, in logs of every step and of every 50th; later it is grave."""
    steps = STEPS[every - 1 :: every]
    columns = {"step": steps, "stage": np.minimum(stages(steps), 1)}
    (found,) = judge(make_run({k: v[steps <= 1300] for k, v in columns.items()}, header=head()), "curriculum-stuck")
    assert (found.severity, found.first_step, found.state) == ("warning", 1000, "active")
    (found,) = judge(make_run(columns, header=head()), "curriculum-stuck")
    assert (found.severity, found.first_step, found.last_step) == ("critical", 1000, 2000)


def test_without_a_recorded_stage(make_run, judge):
    """The weights tell in which stage the loop is."""
    run = make_run({"weight/b": np.zeros(2000)}, header=head())
    assert [found.first_step for found in judge(run, "curriculum-stuck")] == [500]


def test_it_can_be_over(make_run, judge):
    """Two hundred steps late, then as declared."""
    stage = np.where((STEPS >= 1000) & (STEPS < 1200), 1, stages(STEPS))
    (found,) = judge(make_run({"stage": stage}, header=head()), "curriculum-stuck")
    assert (found.first_step, found.last_step, found.state) == (1000, 1199, "over")


@pytest.mark.parametrize("late", [-1, 0, 1, 30])
def test_boundaries_that_are_met(make_run, judge, late):
    """A step early or late, or at the end of an epoch; attempted steps that were skipped do not count."""
    assert judge(make_run({"stage": stages(STEPS - late)}, header=head()), "curriculum-stuck") == []
    applied = np.maximum(STEPS - 200, 0)
    columns = {"stage": stages(applied - late), "applied": applied}
    assert judge(make_run(columns, header=head()), "curriculum-stuck") == []


def test_weights_that_say_nothing(make_run, judge):
    """The same in every stage, or none of the declared."""
    same = head(weights=(0.1, 0.1, 0.1, 0.1))
    assert judge(make_run({"weight/b": np.full(2000, 0.1)}, header=same), "curriculum-stuck") == []
    assert judge(make_run({"weight/b": np.full(2000, 7.0)}, header=head()), "curriculum-stuck") == []
