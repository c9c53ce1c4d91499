"""Schedules: both end points exact, never beyond them, monotone, and the same as trainwatch's own formula."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.schedules import KINDS, Schedule, epoch_reading
from trainwatch.schedule import schedule_value

values = st.floats(-1e6, 1e6)
moving = st.sampled_from([kind for kind in KINDS if kind != "constant"])


@given(moving, values, values, st.integers(2, 10_000), st.data())
def test_both_ends_are_exact(kind, start, end, over, data):
    warmup = data.draw(st.integers(0, over - 1))
    schedule = Schedule(kind, start, end, over, warmup)
    assert schedule.at(warmup) == start
    assert schedule.at(over) == schedule.at(2 * over) == end


@given(moving, values, values, st.integers(2, 500))
def test_it_moves_one_way_and_stays_between_its_ends(kind, start, end, over):
    course = [Schedule(kind, start, end, over).at(tick) for tick in range(over + 2)]
    slack = 1e-9 * max(abs(start), abs(end))
    assert all((after - before) * (1 if end >= start else -1) >= -slack for before, after in pairwise(course))
    assert min(course) >= min(start, end) - slack
    assert max(course) <= max(start, end) + slack


@given(st.sampled_from(KINDS), st.floats(0, 10), st.floats(0, 10), st.integers(2, 500), st.data())
def test_the_declaration_gives_the_value_that_was_used(kind, start, end, over, data):
    schedule = Schedule(kind, start, end, over, data.draw(st.integers(0, over - 1)))
    tick = data.draw(st.integers(0, over + 10))
    assert schedule_value(schedule.declaration(), tick) == pytest.approx(schedule.at(tick), abs=1e-9)


def test_warm_up_rises_from_zero():
    schedule = Schedule("cosine", 1.0, 0.1, 100, warmup=10)
    assert [schedule.at(tick) for tick in (0, 5, 10)] == [0.0, 0.5, 1.0]


@given(moving, st.integers(2, 500), st.floats(0.001, 1000), st.data())
def test_a_rate_scales_with_its_peak(kind, over, peak, data):
    """So that every group of parameters has the same shape."""
    warmup, final = data.draw(st.integers(0, over - 1)), data.draw(st.floats(0, 1))
    one, scaled = (Schedule(kind, top, top * final, over, warmup) for top in (1.0, peak))
    for tick in range(over + 2):
        assert scaled.at(tick) == pytest.approx(peak * one.at(tick), rel=1e-9)


@given(moving, st.integers(2, 500), st.data())
def test_a_warm_up_rises_evenly_to_the_start(kind, over, data):
    warmup = data.draw(st.integers(1, over - 1))
    course = [Schedule(kind, 1.0, 0.0, over, warmup).at(tick) for tick in range(warmup + 1)]
    assert course == pytest.approx([tick / warmup for tick in range(warmup + 1)])


@given(st.integers(1, 9), st.integers(1, 20), st.floats(0, 9))
def test_the_epoch_clock_stands_still_within_an_epoch_after_the_warm_up(epochs, each, warmup):
    readings = [epoch_reading((step - 1) // each, step, each, warmup) for step in range(1, epochs * each + 1)]
    assert all(after >= before for before, after in pairwise(readings))
    for step, reading in enumerate(readings, 1):
        assert reading == (step / each if step / each < warmup else max(warmup, (step - 1) // each))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cubic", 1, 0, 10), "'cubic' does not exist; choose one of constant"),
        (("linear", 1, 0, 10, 10), "warm-up of 10"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Schedule(*arguments)
