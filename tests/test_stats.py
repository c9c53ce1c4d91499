"""Statistics that do not care how a stream is cut."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainwatch.stats import Blocks, Streak, carried, medians

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
