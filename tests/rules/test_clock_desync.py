"""clock-desync: a local counter that drives a schedule and is not where the run is."""

import numpy as np
import pytest

from trainwatch.schedule import schedule_values

STEPS = np.arange(1, 10001, dtype=float)
PENALTY = {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 10_000}


def head(**declared):
    return {"total_steps": 10_000, "schedules": {"penalty": {**PENALTY, **declared}}}


def test_a_declared_clock_that_falls_behind(make_run, judge):
    """From step 1,000 on it counts every fourth step: 1 % of the horizon is exceeded at 1,134."""
    clock = np.where(STEPS <= 1000, STEPS, 1000 + (STEPS - 1000) // 4)
    run = make_run({"clock/dqn": clock, "applied": STEPS}, header=head(clock="dqn"))
    (found,) = judge(run, "clock-desync")
    drifted = int(STEPS[np.argmax(STEPS - clock > 100)])
    assert (found.subject, found.severity, found.first_step) == ("clock:dqn", "critical", drifted)
    assert found.evidence["parted_step"] == int(STEPS[np.argmax(STEPS - clock > 1)])
    assert found.evidence["speed"] == pytest.approx(0.25, abs=0.01)
    assert (found.evidence["clock"], found.evidence["applied"]) == (3250, 10_000)


def test_the_numbers_of_the_message(make_run, judge):
    """1,200 at step 5,000 of 100,000: at 1.2 % instead of 5 %."""
    header = {"total_steps": 100_000, "schedules": {"penalty": {**PENALTY, "over_steps": 100_000, "clock": "dqn"}}}
    header["config"] = {"schedules": {"penalty": {"clock": "dqn"}}}
    (found,) = judge(make_run({"clock/dqn": STEPS[:5000] * 0.24}, header=header), "clock-desync")
    assert "reads 1,200 at step 5,000" in found.message
    assert "at 1.2% and it is at 5.0%" in found.message
    assert (found.severity, found.patch) == ("warning", {"schedules.penalty.clock": "applied"})


def test_a_clock_that_is_followed_without_being_declared(make_run, judge):
    """The cause of a schedule-desync that begins at the same step."""
    clock = STEPS // 4
    run = make_run({"clock/dqn": clock, "schedule/penalty": schedule_values(PENALTY, clock)}, header=head())
    (found,) = judge(run, "clock-desync")
    (effect,) = judge(run, "schedule-desync")
    assert found.subject == "clock:dqn"
    assert "not declared" in found.message
    assert found.first_step == effect.first_step
    assert effect.evidence["clock"] == "dqn"


@pytest.mark.parametrize(
    ("columns", "declared"),
    [
        ({"clock/generator": STEPS // 5}, {}),  # drives nothing
        ({"clock/samples": STEPS * 64}, {"clock": "samples", "over_steps": 640_000}),  # its own unit, the whole run
        ({"samples": STEPS * 64}, {"clock": "samples", "over_steps": 64_000}),  # its own unit, a tenth of the run
        ({"epoch": STEPS / 500}, {"clock": "epoch", "over_steps": 20}),
        ({"clock/gen": STEPS // 5}, {"clock": "gen", "over_steps": 2000}),  # as far along its own as the run is
        ({"clock/dqn": STEPS - 1}, {"clock": "dqn"}),  # counts from 0
        ({"epoch": (STEPS - 1) // 500}, {"clock": "epoch", "over_steps": 20}),  # whole epochs lag by up to one
        ({"epoch": (STEPS - 1) // 500 + 1}, {}),  # not declared: no epochs against a length in steps
        ({"clock/micro": STEPS * 4}, {"clock": "micro", "over_steps": 10_000}),  # over after a quarter of the run
        ({"clock/env": STEPS * 8 + 1000}, {"clock": "env", "over_steps": 25_000}),  # begins ahead
        ({"samples": np.cumsum(np.where(STEPS < 5000, 16, 64))}, {"clock": "samples", "over_steps": 400_000}),
        ({"clock/dqn": np.where(STEPS == 500, 0, STEPS)}, {"clock": "dqn"}),  # one stray reading
        ({"clock/dqn": np.full(10_000, np.nan)}, {"clock": "dqn"}),
    ],
)
def test_clocks_that_are_right(make_run, judge, columns, declared):
    """Free ones, and those that count something of their own."""
    values = schedule_values({**PENALTY, "over_steps": 10_000}, STEPS)
    run = make_run({**columns, "schedule/penalty": values}, header=head(**declared))
    assert judge(run, "clock-desync") == []


def test_a_counter_that_ticks_every_fourth_step(make_run, judge):
    """As a target network that is updated: its schedule would be at a third of its length when the run ends."""
    run = make_run({"clock/local": STEPS // 4}, header=head(clock="local", over_steps=8000))
    (found,) = judge(run, "clock-desync")
    assert (found.subject, found.severity, found.state) == ("clock:local", "critical", "active")
    assert found.first_step < 500


def test_a_counter_of_another_unit_that_falls_back(make_run, judge):
    """It is 8 times as fast as the steps, and loses 20,000 of its ticks at step 5,001."""
    clock = np.where(STEPS <= 5000, STEPS * 8, STEPS * 8 - 20_000)
    (found,) = judge(make_run({"clock/env": clock}, header=head(clock="env", over_steps=80_000)), "clock-desync")
    assert (found.first_step, found.severity, found.state) == (5001, "warning", "over")


def test_without_the_length_of_the_run(make_run, judge):
    """A clock that was seen to count steps is held against them; of any other nothing is known."""
    schedules = {"schedules": {"penalty": {**PENALTY, "clock": "dqn"}}}
    clock = np.where(STEPS <= 1000, STEPS, 1000 + (STEPS - 1000) // 4)
    assert len(judge(make_run({"clock/dqn": clock}, header=schedules), "clock-desync")) == 1
    assert judge(make_run({"clock/dqn": STEPS // 5}, header=schedules), "clock-desync") == []


def test_an_epoch_counter_with_a_length_in_steps(make_run, judge):
    """Epoch 20 of 10,000: the schedule never arrives."""
    (found,) = judge(make_run({"epoch": STEPS / 500}, header=head(clock="epoch")), "clock-desync")
    assert found.first_step == 101


def test_a_counter_that_a_resume_forgot(make_run, judge):
    """It is off from the first row on."""
    run = make_run({"clock/dqn": STEPS[:5000]}, header=head(clock="dqn"), end=None)
    later = {"step": STEPS[5000:], "clock/dqn": STEPS[:5000]}
    make_run(later, header={**head(clock="dqn"), "resumed_from": 5000}, onto=run)
    (found,) = judge(run, "clock-desync")
    assert (found.first_step, found.severity) == (5001, "critical")


def test_a_counter_of_its_own_that_is_called_step(make_run, judge):
    """It is not the row's: the schedule follows its clock, and that is what is wrong."""
    clock = STEPS // 4
    columns = {"clock/step": clock, "applied": STEPS, "schedule/penalty": schedule_values(PENALTY, clock)}
    run = make_run(columns, header=head(clock="step"))
    assert [one.subject for one in judge(run, "clock-desync")] == ["clock:step"]
    assert judge(run, "schedule-desync") == []


@pytest.mark.parametrize(("over", "alarms"), [(3300, 1), (2500, 0), (2900, 0)])
def test_a_schedule_of_a_third_of_the_run_that_never_arrives(over, alarms, make_run, judge):
    """A tick every fourth step makes 2,500: one of 3,300 was meant in steps, one of 2,900 may be planned so."""
    run = make_run({"clock/local": STEPS // 4}, header=head(clock="local", over_steps=over))
    assert len(judge(run, "clock-desync")) == alarms
