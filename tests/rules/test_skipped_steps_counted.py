"""skipped-steps-counted: a scheduler that goes on where nothing was applied."""

import numpy as np
import pytest

from trainwatch.schedule import schedule_values

STEPS = np.arange(1, 2001)
COSINE = {"kind": "cosine", "start": 1e-3, "end": 0.0, "over_steps": 2000, "warmup": 100}


def columns(every, counted, shift=0, first=0):
    """Every so many steps one is skipped; the row holds the rate that its step used, or the one after."""
    skipped = (STEPS % every == 0) & (first <= STEPS)
    done = STEPS - 1 if counted else np.cumsum(~skipped) - ~skipped  # before this step
    if shift and not counted:
        done = np.cumsum(~skipped)
    rate = schedule_values(COSINE, done + (shift if counted else 0))
    return {"amp/skipped": skipped, "lr/main": rate, "lr/other": rate * 2}


def judged(make_run, judge, values, total=2000):
    return judge(make_run(values, header={"total_steps": total}), "skipped-steps-counted")


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("total", [2000, None])
def test_a_scheduler_that_counts_them(make_run, judge, shift, total):
    """One in twenty: a warning, from the first one on."""
    (found,) = judged(make_run, judge, columns(20, counted=True, shift=shift), total)
    assert (found.severity, found.first_step) == ("warning", 20)
    assert "and 1 more" in found.message


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("every", [4, 20, 100])
def test_a_scheduler_that_waits(make_run, judge, every, shift):
    """Whether the row holds the rate before or after the step."""
    assert judged(make_run, judge, columns(every, counted=False, shift=shift)) == []


def test_a_few_are_mentioned(make_run, judge):
    """As fp16 has them; on a constant rate nothing shows; of two in a row the second should not have moved it."""
    (found,) = judged(make_run, judge, columns(200, counted=True))
    assert found.severity == "info"
    flat = columns(20, counted=True) | {"lr/main": np.full(2000, 1e-3), "lr/other": np.full(2000, 1e-3)}
    assert judged(make_run, judge, flat) == []
    start = columns(20, counted=True) | {"amp/skipped": STEPS <= 8}
    assert [found.severity for found in judged(make_run, judge, start)] == ["info"]
    waits = columns(20, counted=False) | {"amp/skipped": STEPS <= 8}
    waits["lr/main"] = waits["lr/other"] = schedule_values(COSINE, np.maximum(STEPS - 9, 0))
    assert judged(make_run, judge, waits) == []


@pytest.mark.parametrize("total", [308, 2000])
def test_a_row_that_is_written_after_the_scheduler(make_run, judge, total):
    """The recorder sees the rate in the optimiser's hook, and where that is not called, once the step is over."""
    skipped = STEPS % 20 == 13
    ticks = np.where(skipped, STEPS, STEPS - 1)
    rate = schedule_values(COSINE, ticks)
    (found,) = judged(make_run, judge, {"amp/skipped": skipped, "lr/main": rate}, total)
    assert (found.severity, found.first_step) == ("warning", 13)
    done = np.cumsum(~skipped) - ~skipped
    assert judged(make_run, judge, {"amp/skipped": skipped, "lr/main": schedule_values(COSINE, done)}, total) == []
