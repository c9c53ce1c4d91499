"""Statistics that do not care how a stream is cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainwatch.stats import (
    Baseline,
    Blocks,
    History,
    Probes,
    Streak,
    carried,
    fall,
    in_blocks,
    medians,
    noise,
    spreads,
)

values = arrays.arrays(np.float64, st.integers(0, 60), elements=st.floats(-1e6, 1e6) | st.just(np.nan))


@given(values, st.integers(1, 9), st.lists(st.integers(0, 60)))
def test_blocks_are_the_same_however_the_stream_is_cut(column, size, cuts):
    """Only the count of rows since the beginning matters."""
    edges = [0, *sorted(min(cut, len(column)) for cut in cuts), len(column)]
    blocks, out = Blocks(size), []
    for start, stop in pairwise(edges):
        found = blocks.push({"x": column[start:stop]})
        out += list(found["x"]) if found else []
    whole = len(column) // size
    expected = column[: whole * size].reshape(whole, size)
    assert np.array_equal(np.array(out).reshape(whole, size), expected, equal_nan=True)


def test_a_column_that_comes_later_is_absent_before():
    """NaN in the rows that were held when it came."""
    blocks = Blocks(3)
    assert blocks.push({"a": np.ones(2)}) == {}
    both = blocks.push({"a": np.ones(1), "b": np.ones(1)})
    assert np.isnan(both["b"][0, :2]).all()
    assert both["b"][0, 2] == 1


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.floats(-9, 9) | st.just(np.nan)
    )
)
def test_medians_are_numpys_over_finite_values(rows):
    """And NaN, without a warning, where nothing is finite."""
    for row, median in zip(rows, medians(rows), strict=True):
        finite = row[np.isfinite(row)]
        assert np.isnan(median) if not len(finite) else np.isclose(median, np.median(finite))


def test_carried_gives_the_last_finite_value_before():
    """Absent values are bridged."""
    assert np.array_equal(carried(7.0, np.array([1.0, np.nan, 3.0])), [7.0, 1.0, 1.0])


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.lists(st.integers(0, 40)))
def test_a_streak_is_the_same_however_the_stream_is_cut(held, rows, cuts):
    """And what a plain loop over the rows finds."""
    edges = [0, *sorted(min(cut, len(held)) for cut in cuts), len(held)]
    streak, index = Streak(rows), np.arange(len(held), dtype=np.float64)
    for start, stop in pairwise(edges):
        streak.push(np.array(held[start:stop], dtype=bool), {"row": index[start:stop]})
    ends = [i for i in range(rows - 1, len(held)) if all(held[i - rows + 1 : i + 1])]
    where = [i for i, holds in enumerate(held) if holds]
    assert streak.onset == ({"row": ends[0] - rows + 1} if ends else None)
    assert streak.believed == ({"row": ends[0]} if ends else {})
    assert streak.latest == ({"row": where[-1]} if where else {})
    assert (streak.bad, streak.good_since) == (len(where), len(held) - 1 - where[-1] if where else len(held))


columns = arrays.arrays(np.float64, st.integers(0, 90), elements=st.floats(-9, 9) | st.just(np.nan))
CUTS = st.lists(st.integers(0, 90))


def pieces(length, cuts):
    return list(pairwise([0, *sorted(min(cut, length) for cut in cuts), length]))


@given(columns, CUTS, st.sampled_from([2, 4, 8]), st.integers(0, 9))
def test_a_history_is_the_same_however_the_stream_is_cut(column, cuts, most, rest):
    """Never more bins than agreed, beside those of the rest; every row is in one of them."""
    whole, cut = History(most), History(most)
    body = column[: len(column) - rest] if rest < len(column) else column
    tail = column[len(body) :]
    whole.push({"x": body})
    for start, stop in pieces(len(body), cuts):
        cut.push({"x": body[start:stop]})
    expected, found = whole.series({"x": tail})["x"], cut.series({"x": tail})["x"]
    assert np.array_equal(expected, found, equal_nan=True)
    assert len(whole.series().get("x", ())) <= most
    assert len(expected) == -(-len(column) // whole.width)


def test_a_history_of_few_rows_is_the_rows():
    """And a column that comes later is NaN before."""
    history = History(8)
    history.push({"a": np.arange(3.0)})
    history.push({"a": np.arange(2.0), "b": np.arange(2.0)})
    assert np.array_equal(history.series()["a"], [0, 1, 2, 0, 1])
    assert np.array_equal(history.series({"b": np.ones(1)})["b"], [np.nan, np.nan, np.nan, 0, 1, 1], equal_nan=True)


def test_a_history_follows_a_long_curve():
    """Within the width of a bin, through outliers."""
    curve = np.exp(-np.arange(10_000) / 3000)
    outliers = curve.copy()
    outliers[::501] = 1e9
    history = History(64)
    history.push({"x": outliers[:9_990]})
    found = history.series({"x": outliers[9_990:]})["x"]
    middles = [np.median(part) for part in np.split(curve, np.arange(history.width, 10_000, history.width))]
    assert np.quantile(np.abs(found - middles), 0.7) < 0.01  # the outliers spoil a bin each, at the beginning


@given(columns, st.lists(st.integers(0, 89), max_size=4), CUTS)
def test_a_baseline_is_the_median_before_in_one_regime(column, begins, cuts):
    """As a plain loop finds it, however the stream is cut."""
    fresh = np.isin(np.arange(len(column)), begins)
    baseline, found = Baseline(4, 2), []
    for start, stop in pieces(len(column), cuts):
        found += list(baseline.push({"x": column[start:stop]}, fresh[start:stop])["x"])
    for index, middle in enumerate(found):
        regime = max([0, *(begin for begin in begins if begin <= index)])
        before = column[max(regime, index - 4) : index]
        before = before[np.isfinite(before)]
        assert np.isclose(middle, np.median(before)) if len(before) >= 2 else np.isnan(middle)


def test_spread_and_noise_are_standard_deviations():
    """Of normal noise; on a slope too, where neighbours are compared."""
    values = np.random.default_rng(0).standard_normal((3, 4000))
    assert np.allclose(spreads(values, medians(values)), 1, atol=0.05)
    assert np.isclose(noise(values[0] + np.arange(4000)), 1, atol=0.05)
    assert noise(np.array([1.0])) == 0
    assert np.array_equal(in_blocks(np.arange(3.0), 2), [[0, 1], [2, np.nan]], equal_nan=True)


def test_fall_is_a_share_and_nothing_within_the_noise():
    """Down, up, level, through zero, and too few."""
    noisy = np.random.default_rng(0).standard_normal(200)
    assert fall(np.linspace(2.0, 1.0, 100)) == pytest.approx(0.5, abs=0.05)
    assert fall(np.linspace(1.0, 2.0, 100)) == pytest.approx(-0.5, abs=0.05)
    assert fall(np.linspace(1.0, -1.0, 100)) == pytest.approx(2.0, rel=0.1)
    assert [fall(np.full(100, 3.0)), fall(np.zeros(10)), fall(10 + noisy)] == [0.0, 0.0, 0.0]
    assert np.isnan(fall(np.array([1.0, np.nan, 2.0, 3.0, 4.0, 5.0])))


def test_fall_by_chance():
    """Of a thousand level series of any noise fewer than one in fifty seems to fall or to rise."""
    random = np.random.default_rng(1)
    series = [1 + 0.3 * random.standard_t(3, random.integers(6, 300)) for _ in range(1000)]
    assert np.mean([fall(values) != 0 for values in series]) < 0.02


@given(probed=st.lists(st.booleans(), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_probes_are_dated_by_the_row_after_the_probe_before(probed, cut):
    """However the rows are cut: the first row of all for the first probe."""
    step, expected, begin = np.arange(100.0, 100.0 + len(probed)), [], 100.0
    for at, probe in zip(step, probed, strict=True):
        expected.append(begin)
        begin = at + 1 if probe else begin
    probes, flags = Probes(), np.array(probed)
    parts = [probes.since(flags[:cut], step[:cut]), probes.since(flags[cut:], step[cut:])]
    assert np.concatenate(parts).tolist() == expected


@given(holds=st.lists(st.booleans(), max_size=60), cut=st.integers(0, 60), steps=st.integers(0, 40))
def test_a_streak_that_must_last_so_many_steps(holds, cut, steps):
    """Three rows at least, and their steps; however they are cut."""
    step, flags = 5.0 * np.arange(len(holds)), np.array(holds, dtype=bool)
    streak = Streak(3, steps)
    streak.push(flags[:cut], {"step": step[:cut]})
    streak.push(flags[cut:], {"step": step[cut:]})
    expected, began = None, 0
    for row, held in enumerate(holds):
        began = began if held else row + 1
        if expected is None and row - began >= 2 and step[row] - step[began] + 1 >= steps:
            expected = {"step": step[began]}
    assert streak.onset == expected
