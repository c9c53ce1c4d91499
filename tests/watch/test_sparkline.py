"""A curve in one line: its shape, and a mark for whatever is not finite, at its place."""

from __future__ import annotations

import numpy as np
import pytest

from trainwatch.watch.sparkline import BLOCKS, MARK, Curve, sparkline


def curve(values, steps=None, broken=()):
    values = np.asarray(values, dtype=np.float64)
    steps = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    return Curve(steps.astype(np.int64), values, np.asarray(broken, dtype=np.int64))


def drawn(one, first, last, width):
    return sparkline(one, first, last, width).plain


def test_a_fall_falls():
    assert drawn(curve(np.linspace(8, 1, 80)), 1, 80, 8) == BLOCKS[::-1]


def test_what_is_not_finite_is_marked_at_its_place_however_long_the_run():
    values = np.linspace(8, 1, 99_999)
    steps = np.delete(np.arange(1, 100_001), 50_000)
    assert drawn(curve(values, steps, broken=[50_001]), 1, 100_000, 10) == f"████▇{MARK}▃▂▁▁".replace(
        "████▇", drawn(curve(values, steps), 1, 100_000, 10)[:5]
    ).replace("▃▂▁▁", drawn(curve(values, steps), 1, 100_000, 10)[6:])


def test_a_mark_is_drawn_also_where_nothing_else_is():
    assert drawn(curve([], [], broken=[1, 9]), 1, 10, 10) == f"{MARK}       {MARK} "


def test_what_is_recorded_now_and_then_stands_until_the_next_and_not_beyond_the_last():
    assert drawn(curve([1.0, 2.0], steps=[2, 5]), 1, 8, 8) == " ▁▁▁█   "


@pytest.mark.parametrize("value", [0.0, 3.0, -1e308, 1e-308])
def test_a_flat_curve_is_flat(value):
    assert drawn(curve(np.full(50, value)), 1, 50, 10) == "▄" * 10


def test_decades_are_drawn_by_the_logarithm():
    assert drawn(curve([1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3]), 1, 8, 8) == BLOCKS[::-1]


@pytest.mark.parametrize("width", [1, 3, 60])
@pytest.mark.parametrize(
    "one",
    [
        curve([1.7e308, -1.7e308, 1.0]),
        curve([1.0, 2.0], steps=[0, 2**61]),
        curve([1.0, 2.0, 3.0], steps=[5, 3, 4]),
        curve([]),
    ],
)
def test_nothing_is_too_odd_to_draw(one, width):
    last = int(max(one.steps, default=1))
    assert len(drawn(one, 0, last, width)) == min(width, last + 1)
