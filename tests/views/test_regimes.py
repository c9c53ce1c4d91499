"""A run's own plan: stages, warm restarts, weights that enter."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwatch.run import Cursor
from trainwatch.table import Chunk
from trainwatch.views.regimes import Regimes


def begins(run, size=65_536):
    """The steps with which a new regime begins."""
    regimes, found = Regimes(), []
    for item in run.since(Cursor(), size):
        if isinstance(item, Chunk):
            found += item.step[regimes.begins(item)].tolist()
        elif "id" in getattr(item, "raw", {}):
            regimes.start(item)
    return found


COURSES = {
    "stage": (np.repeat([0, 1, 2], 10), [11, 21]),
    "lr/a": (np.tile(np.linspace(1, 0.1, 10), 3), [11, 21]),
    "weight/a": (np.repeat([0, 0.1, 0.5], 10), [11, 21]),
    "weight/b": (np.linspace(1.0, 3.0, 30), []),
    "loss": (np.linspace(9, 1, 30) ** 5, []),
}


@pytest.mark.parametrize("channel", COURSES)
def test_a_plan_that_is_recorded(make_run, channel):
    """A stage, a restart, a weight; a gentle ramp and a loss are none."""
    values, expected = COURSES[channel]
    assert begins(make_run({channel: values})) == expected


def test_a_stage_that_is_declared_only(make_run):
    """By the applied steps."""
    stages = [{"start": 0}, {"start": 10}]
    header = {"curriculum": {"name": "A", "stages": stages}}
    assert begins(make_run({"loss": np.ones(30), "applied": np.arange(30) // 2}, header=header)) == [21]


@given(size=st.integers(1, 31))
def test_how_it_is_cut_does_not_matter(make_run_once, size):
    """Row by row as well."""
    assert begins(make_run_once, size) == [11, 21]


@pytest.fixture(scope="module")
def make_run_once():
    from tests.conftest import build

    return build({name: values for name, (values, _) in COURSES.items()})


def expected(values):
    """One row after the other: three changes in twenty rows, and it begins no more until it stood still for twenty."""
    rows, found, restless = [], [], False
    for row in range(1, len(values)):
        if values[row] != values[row - 1]:
            restless &= not (rows and row - rows[-1] > 20)
            found += [] if restless else [row + 1]
            rows.append(row)
            restless |= len(rows) > 2 and row - rows[-3] < 20
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 45) | st.integers(1, 3), max_size=30), size=st.integers(1, 60))
def test_a_weight_that_is_toggled_begins_nothing(lengths, size, make_run):
    """Until it stands still; however the rows are cut."""
    values = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert begins(make_run({"weight/b": values}), size) == expected(values)


def test_a_loss_beside_a_toggled_weight_is_judged(make_run, judge):
    """A component that is sampled by batch."""
    row = np.arange(1000)
    random = np.random.default_rng(0)
    norm = np.exp(0.1 * random.standard_normal(1000))
    norm[[500, 600, 700]] = 500.0
    columns = {"loss": 1 + 0.01 * random.standard_normal(1000), "grad_norm": norm, "weight/b": row % 2}
    assert [finding.evidence["spikes"] for finding in judge(make_run(columns), "gradient-spike")] == [3]
