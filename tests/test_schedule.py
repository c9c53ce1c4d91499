"""What a declared schedule gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwatch.schedule import schedule_value

steps = st.floats(0, 2000, allow_nan=False)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_a_schedule_begins_at_start_and_ends_at_end(kind):
    """Exactly, also after its horizon."""
    declared = {"kind": kind, "start": 1.0, "end": 0.1, "begin": 100, "over_steps": 1000}
    assert schedule_value(declared, 0) == schedule_value(declared, 100) == 1.0
    assert schedule_value(declared, 1100) == schedule_value(declared, 99999) == 0.1


@given(st.sampled_from(["linear", "cosine", "exponential"]), steps, steps)
def test_a_schedule_never_turns_back(kind, first, second):
    """Monotone from start to end."""
    declared = {"kind": kind, "start": 3.0, "end": -1.0, "over_steps": 1000}
    low, high = sorted((first, second))
    assert schedule_value(declared, low) >= schedule_value(declared, high) - 1e-12


def test_warm_up_floor_and_restarts():
    """Warm-up counts within over_steps; two restarts are three cycles; the floor is a value."""
    declared = {
        "kind": "cosine",
        "start": 1.0,
        "end": 0.0,
        "over_steps": 310,
        "warmup": 10,
        "restarts": 2,
        "floor": 0.2,
    }
    assert schedule_value(declared, 5) == 0.5
    assert schedule_value(declared, 10) == schedule_value(declared, 110) == schedule_value(declared, 210) == 1.0
    assert schedule_value(declared, 60) == pytest.approx(0.5)
    assert schedule_value(declared, 310) == 0.2


@pytest.mark.parametrize(
    "declared", [{}, {"kind": "linear"}, {"kind": "poly", "start": 1}, {"kind": "linear", "start": "x"}]
)
def test_what_cannot_be_evaluated_is_none(declared):
    """A rule then withholds its judgement."""
    assert schedule_value(declared, 1) is None


def test_constant_may_begin_late():
    """No warm-up, no division by it."""
    assert schedule_value({"kind": "constant", "start": 2.0, "begin": 10}, 0) == 2.0
