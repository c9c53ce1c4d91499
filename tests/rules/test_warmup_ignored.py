"""warmup-ignored: a warm-up is declared and the run begins at the full rate."""

import numpy as np
import pytest

from trainwatch.schedule import schedule_values

RULE = "warmup-ignored"
N = 200
SAID = {"kind": "cosine", "start": 1e-3, "end": 0.0, "over_steps": N, "warmup": 20}
PLAIN = {**SAID, "warmup": 0}
STEP = np.arange(1, N + 1.0)


def head(**said):
    return {"schedules": {"lr/main": {**SAID, **said}}}


def test_the_full_rate_from_the_first_step(make_run, judge):
    """One finding for all groups, and it explains schedule-desync."""
    rate = schedule_values(PLAIN, STEP)
    header = {"schedules": {"lr/main": SAID, "lr/other": SAID}}
    (finding,) = judge(make_run({"lr/main": rate, "lr/other": rate}, header=header), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "schedule:lr/main", 1)
    assert finding.evidence["declared"] == pytest.approx(5e-5)
    assert "1 more" in finding.message


def test_it_is_known_in_the_third_step_of_a_live_run(make_run, judge):
    """Before any block is full; and in a log of every fifth step."""
    for step in (STEP[:3], STEP[4::5]):
        run = make_run({"lr/main": schedule_values(PLAIN, step), "step": step}, header=head(), end=None)
        assert len(judge(run, RULE)) == (1 if len(step) == 3 else 0) or len(step) > 3


HEALTHY = {
    "as declared": (schedule_values(SAID, STEP), head()),
    "one step behind": (schedule_values(SAID, STEP - 1), head()),
    "a root instead of a line": (1e-3 * np.minimum(STEP / 20, 1) ** 0.5, head()),
    "only the first row, before the scheduler was built": (
        np.where(STEP == 1, 1e-3, schedule_values(SAID, STEP)),
        head(),
    ),
    "a warm-up of three steps": (np.full(N, 1e-3), head(warmup=3)),
    "by another clock": (np.full(N, 1e-3), head(clock="samples")),
    "no schedule": (np.full(N, 1e-3), {"schedules": {}}),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy(case, make_run, judge):
    """None of them ignores its warm-up."""
    rate, header = HEALTHY[case]
    assert judge(make_run({"lr/main": rate}, header=header), RULE) == []


def test_a_resume_is_past_its_warm_up(make_run, judge):
    """At the full rate in its first row."""
    run = make_run({"lr/main": np.full(50, 1e-3), "step": np.arange(101, 151)}, header=head() | {"resumed_from": 100})
    assert judge(run, RULE) == []


def test_one_row_of_a_sparse_log_is_enough(make_run, judge):
    """The only one in the first half of the warm-up, if it is no first step: a log of every sixth step."""
    step = STEP[5::6]
    run = make_run({"lr/main": schedule_values(PLAIN, step), "step": step}, header=head())
    assert [(one.severity, one.first_step) for one in judge(run, RULE)] == [("warning", 6)]
    for healthy in (schedule_values(SAID, step), 1e-3 * np.minimum(step / 20, 1) ** 0.5):
        assert judge(make_run({"lr/main": healthy, "step": step}, header=head()), RULE) == []
    first = make_run({"lr/main": schedule_values(PLAIN, step), "step": step - 5}, header=head(warmup=12))
    assert judge(first, RULE) == []
