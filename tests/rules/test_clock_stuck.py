"""clock-stuck: a counter that drives a schedule and stands still."""

import numpy as np
import pytest

from trainwatch.engine import Engine

STEPS = np.arange(1, 5001)
PENALTY = {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 5000, "clock": "dqn"}


def judged(make_run, judge, clock, name="clock/dqn", declared=PENALTY, total=5000, **columns):
    header = {"total_steps": total, "schedules": {"penalty": declared}, "horizon": {"epochs": 4}}
    return judge(make_run({name: clock, **columns}, header=header), "clock-stuck")


@pytest.mark.parametrize("last", [100, 1003, 4000])
def test_a_clock_that_stops(make_run, judge, last):
    """From the first step on at which it should have moved."""
    (found,) = judged(make_run, judge, np.minimum(STEPS, last))
    assert (found.subject, found.first_step, found.last_step) == ("clock:dqn", last + 1, 5000)
    assert (found.severity, found.state) == ("critical" if last < 3500 else "warning", "active")


def test_a_clock_that_never_starts(make_run, judge):
    """Told after a fifth of the run."""
    assert judged(make_run, judge, np.zeros(1000)) == []
    (found,) = judged(make_run, judge, np.zeros(1100))
    assert (found.first_step, found.severity) == (2, "warning")


def test_it_goes_on(make_run, judge):
    """A pause is mentioned when it is over."""
    (found,) = judged(make_run, judge, np.where(STEPS < 2000, STEPS, np.maximum(STEPS - 500, 1999)))
    assert (found.severity, found.first_step, found.last_step, found.state) == ("info", 2000, 2499, "over")


@pytest.mark.parametrize("seed", range(10))
def test_clocks_that_come_unevenly(make_run, judge, seed):
    """Episodes of any length, epochs, a buffer that is filled first, one that has arrived, one that drives nothing."""
    random = np.random.default_rng(seed)
    episodes = np.cumsum(random.random(5000) < 1 / 30)
    assert judged(make_run, judge, episodes) == []
    assert judged(make_run, judge, np.maximum(STEPS - 900, 0)) == []
    assert judged(make_run, judge, np.minimum(STEPS * 2, 5000)) == []
    assert judged(make_run, judge, STEPS // 1250, "epoch", {**PENALTY, "over_steps": 4, "clock": "epoch"}) == []
    assert judged(make_run, judge, np.zeros(5000), "clock/free") == []
    assert judged(make_run, judge, np.zeros(5000), declared={**PENALTY, "kind": "constant"}) == []


def test_the_applied_steps(make_run, judge):
    """They stand where nothing was skipped; skipped steps are none."""
    declared = {**PENALTY, "clock": "applied"}
    applied, skipped = np.minimum(STEPS, 700), np.zeros(5000)
    (found,) = judged(make_run, judge, applied, "applied", declared, **{"amp/skipped": skipped})
    assert (found.subject, found.first_step) == ("clock:applied", 701)
    assert judged(make_run, judge, applied, "applied", declared, **{"amp/skipped": STEPS > 700}) == []
    assert judged(make_run, judge, applied, "applied", declared) == []


def test_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    steps = np.arange(50, 20_001, 50)
    declared = {**PENALTY, "over_steps": 20_000}
    (found,) = judged(make_run, judge, np.minimum(steps, 10_000), declared=declared, total=20_000, step=steps)
    assert (found.first_step, found.last_step, found.state) == (10_050, 20_000, "active")


def test_its_end_is_a_step_of_the_log(make_run, judge):
    """Every third step is told, and the reading goes on in the middle of a block."""
    steps = 3 * STEPS
    reading = np.where(STEPS < 2000, steps, np.maximum(steps - 1509, 3 * 1999))
    declared = {**PENALTY, "over_steps": 15_000}
    (found,) = judged(make_run, judge, reading, declared=declared, total=15_000, step=steps)
    assert (found.first_step, found.last_step, found.state) == (6000, 7506, "over")
    assert found.evidence["rows"] == 503


def test_a_stand_that_ends_in_a_later_piece_is_counted_whole(make_run):
    """The rows of that piece before the tick belong to it."""
    header = {"total_steps": 5000, "schedules": {"penalty": PENALTY}}
    clock = np.where(STEPS < 2000, STEPS, np.maximum(STEPS - 500, 1999))
    run, engine = make_run({"clock/dqn": clock[:2300]}, header=header, end=None), Engine()
    engine.feed(run)
    make_run({"clock/dqn": clock[2300:], "step": STEPS[2300:]}, end=None, onto=run)
    engine.feed(run)
    (found,) = [finding for finding in engine.findings(run) if finding.rule == "clock-stuck"]
    assert (found.first_step, found.last_step, found.evidence["rows"]) == (2000, 2499, 500)


@pytest.mark.parametrize(("taken", "count"), [(0, 1), (None, 0)])
def test_a_clock_that_holds_the_stages_back(make_run, judge, taken, count):
    """It drives them if they are where it reads; a free clock drives nothing."""
    stages = [{"start": start, "weights": {}} for start in (0, 1000, 3000)]
    header = {"total_steps": 5000, "clocks": ["own"], "curriculum": {"name": "A", "stages": stages}}
    stage = np.searchsorted([1000, 3000], STEPS, side="right") if taken is None else np.full(5000, taken)
    found = judge(make_run({"clock/own": np.zeros(5000), "stage": stage}, header=header), "clock-stuck")
    assert [(one.subject, one.first_step, one.severity) for one in found] == [("clock:own", 2, "critical")] * count
