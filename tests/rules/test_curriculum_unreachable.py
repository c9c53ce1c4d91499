"""curriculum-unreachable: stages that the run never comes to."""

import numpy as np
import pytest


def head(total, *begins, **more):
    ends = [*begins[1:], begins[-1] * 2]
    stages = [{"start": a, "end": b, "name": f"s{a}"} for a, b in zip(begins, ends, strict=True)]
    return {"total_steps": total, "curriculum": {"name": "LONG", "stages": stages}, **more}


def test_a_plan_that_cannot_fit_is_told_at_once(make_run, judge):
    """Before the first step, with the setting that would mend it."""
    run = make_run({}, header=head(500, 0, 400, 500, 800, config={"curriculum_steps": 1600}), end=None)
    (found,) = judge(run, "curriculum-unreachable")
    assert (found.severity, found.first_step, found.patch) == ("warning", 0, {"curriculum_steps": 500})
    assert found.evidence == {"steps": 500, "begins": 500.0, "stages": 4, "unreached": 2}


@pytest.mark.parametrize(("end", "told"), [("finished", ["info"]), ("stopped", ["info"]), ("failed", []), (None, [])])
def test_a_run_that_was_cut_short(make_run, judge, end, told):
    """The plan fits: it is only told, and not while the run goes on."""
    run = make_run({"loss": np.ones(300)}, header=head(1000, 0, 400, 800), end=end)
    assert [found.severity for found in judge(run, "curriculum-unreachable")] == told


@pytest.mark.parametrize("header", [head(1000, 0, 400, 999), head(None, 0, 4000), head(100, 0), {"total_steps": 5}])
def test_plans_that_fit(make_run, judge, header):
    """And those of an unknown length, of one stage, of none."""
    assert judge(make_run({"loss": np.ones(1000)}, header=header, end=None), "curriculum-unreachable") == []
