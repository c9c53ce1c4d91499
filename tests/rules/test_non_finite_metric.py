"""non-finite-metric: an evaluation that measures nothing."""

import math

import numpy as np
import pytest

RULE = "non-finite-metric"


def evals(values, split="valid"):
    for number, value in enumerate(values, 1):
        yield {"step": 10 * number, "split": split, "loss": 1.0, "metric/fid": value, "metric/accuracy": 0.5}


def found(make_run, judge, *splits):
    records = [record for split in splits for record in split]
    return judge(make_run({"loss": np.ones(200)}, evals=records), RULE)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_all_along(make_run, judge, value):
    (one,) = found(make_run, judge, evals([value] * 8))
    assert (one.severity, one.subject, one.first_step, one.last_step) == ("warning", "split:valid", 10, 80)
    assert one.evidence == {"value": "inf" if value > 0 else "-inf", "evaluations": 8}


def test_nan_after_it_was_a_number(make_run, judge):
    (one,) = found(make_run, judge, evals([3.0, 2.0, math.nan, math.nan, math.nan]))
    assert (one.first_step, one.evidence["last_finite"]) == (30, 2.0)
    assert "was 2 the last time" in one.message


def test_a_metric_that_is_not_defined_here(make_run, judge):
    """A class that does not occur in the set; single evaluations of too few samples; and finite ones."""
    assert found(make_run, judge, evals([math.nan] * 9)) == []
    assert found(make_run, judge, evals([1.0, math.nan, 1.0, math.inf, 1.0, math.nan, math.nan, 1.0])) == []
    assert found(make_run, judge, evals([1.0, 0.5, 0.25])) == []
    assert found(make_run, judge, evals([3.0, *[math.nan] * 4, 2.0])) == []


def test_one_finding_a_split(make_run, judge):
    records = [evals([1.0, *[math.nan] * 3], name) for name in ("easy", "hard")]
    assert [one.subject for one in found(make_run, judge, *records)] == ["split:easy", "split:hard"]


@pytest.mark.parametrize(
    ("rows", "code", "told"), [(range(60), 1, True), (range(12), 1, False), (range(40), 1, True), (range(60), 2, False)]
)
@pytest.mark.parametrize("finite", [False, True])
def test_a_statistic_that_never_was_a_number(rows, code, told, finite, make_run, judge):
    """An info, of all of them; few rows, a number at the end, or an infinity is another thing."""
    columns = {"loss": np.ones(60), "logged/mean": np.full(60, np.nan), "logged/other": np.full(60, np.nan)}
    columns["logged/mean"][59] = 1.0 if finite else np.nan
    run = make_run(columns)
    for row in rows:
        run.train.mark(row, "logged/mean", code)
        run.train.mark(row, "logged/other", 2 if finite else code)
    found = judge(run, RULE)
    assert [(one.severity, one.evidence["channels"]) for one in found] == [("info", 2)] * (told and not finite)
