"""What rules of balance share: roles, courses of bounded length, relapses."""

import numpy as np
import pytest

from trainwatch.header import Header
from trainwatch.stats import running_medians
from trainwatch.table import Chunk
from trainwatch.views.components import BINS, Courses, Roles, longest, relapse


def test_a_role_that_was_said_counts_more_than_a_name():
    """`task` is the default: only what is written says anything."""
    roles = Roles.of(Header.parse({"components": {"kl": {"role": "task"}, "mass": {"role": "auxiliary"}, "adv": {}}}))
    assert [roles.aside(name) for name in ("kl", "mass", "adv", "loss_D", "mel", "G", "grid")] == [
        *(False, True, True, True, False, True),
        False,
    ]
    assert roles.task("kl")
    assert not roles.task("adv")


def chunked(run, rows, size):
    """A course fed with whole blocks, and the rest."""
    courses = Courses(("loss/", "weight/"))
    whole = rows // 20 * 20
    for start in range(0, whole, size):
        courses.push(Chunk("train", run.train, start, min(start + size, whole)))
    return courses.course(Chunk("train", run.train, whole, rows))


@pytest.mark.parametrize("rows", [7, 100, 300, 2559, 2561, 9_990])
def test_a_course_has_few_bins_however_it_was_fed(rows, make_run):
    """And the same ones."""
    run = make_run({"loss/a": np.arange(rows) * 1.0, "weight/a": np.full(rows, 2.0)})
    one, other = chunked(run, rows, 20), chunked(run, rows, 400)
    assert len(one) <= BINS + 1
    for name in one.columns:
        np.testing.assert_array_equal(one[name], other[name])
    assert np.all(np.diff(one["loss/a"]) > 0)
    assert np.nanmax(np.abs(one.part("a") - 2 * one["loss/a"])) == 0
    assert one.steps(0, 10**9)[1] <= rows


def test_what_is_not_recorded_is_absent_and_weights_count_as_one(make_run):
    """In a run without any."""
    course = chunked(make_run({"loss/a": np.ones(50), "loss/b": np.ones(50)}), 50, 20)
    assert np.isnan(course["grad_norm"]).all()
    assert (course.weight("a") == 1).all()


def test_a_regime_begins_with_a_stage_or_a_warm_restart(make_run):
    """The last one before the bin counts."""
    row = np.arange(100)
    run = make_run({"loss/a": np.ones(100), "stage": (row >= 30) * 1.0, "lr/x": 1.0 - (row % 60) / 60})
    course = chunked(run, 100, 20)
    assert [course.regime_begin(before) for before in (20, 50, 100)] == [0, 30, 60]


@pytest.mark.parametrize("seed", range(10))
def test_a_relapse_is_a_fall_and_a_rise_that_stays(seed):
    """A wave, a rise from nothing, and noise are none."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(100)
    row = np.arange(100)
    found = relapse(1 + np.abs(row - 40) / 40 + noise, 0, 100, 0.1, 5.0)
    assert found is not None
    assert abs(found.at - 40) <= 8
    assert found.best == pytest.approx(1.0, abs=0.1)
    for healthy in (row / 50, 1 + 0.4 * np.cos(row / 8), np.exp(-row / 20) + 1, np.ones(100)):
        assert relapse(healthy + noise, 0, 100, 0.1, 5.0) is None


def test_longest_and_running_medians():
    """Small helpers, by value."""
    assert longest(np.array([True, False, True, True, False])) == (2, 4)
    assert longest(np.zeros(3, dtype=bool)) == (0, 0)
    np.testing.assert_array_equal(running_medians(np.array([1.0, 9.0, 2.0, np.nan, 3.0]), 3), [5, 2, 5.5, 2.5, 3])
