"""schedule-desync: a value is not what its declared function gives at this step."""

import numpy as np
import pytest

from trainwatch.schedule import schedule_values

STEPS = np.arange(1, 4001, dtype=float)
COSINE = {"kind": "cosine", "start": 1e-3, "end": 1e-5, "over_steps": 4000, "warmup": 200}


def judged(make_run, judge, values, declared=COSINE, name="lr/main", **columns):
    header = {"total_steps": 4000, "schedules": {name: declared}}
    return judge(make_run({name: values, **columns}, header=header), "schedule-desync")


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("more", [{}, {"kind": "linear"}, {"restarts": 3}, {"kind": "exponential", "floor": 1e-4}])
def test_what_was_declared_is_right(make_run, judge, more, shift):
    """f(applied) and f(applied - 1), rounded as loggers round."""
    declared = {**COSINE, **more}
    values = np.array([float(f"{value:.4g}") for value in schedule_values(declared, STEPS - shift)])
    assert judged(make_run, judge, values, declared) == []


def test_a_value_that_breaks_off(make_run, judge):
    """The onset is exact, a single stray value before it is none."""
    values = schedule_values(COSINE, STEPS)
    values[499] *= 3
    values[999:] = values[999]
    (found,) = judged(make_run, judge, values)
    off = np.abs(values / schedule_values(COSINE, STEPS) - 1) > 0.01
    assert (found.severity, found.subject) == ("warning", "schedule:lr/main")
    assert abs(found.first_step - (1000 + np.argmax(off[999:]))) <= 1
    assert (found.last_step, found.state) == (4000, "active")


@pytest.mark.parametrize("speed", [0.25, 2.0, 4.0])
def test_a_constant_speed_is_named(make_run, judge, speed):
    """Stepped per micro-batch, per process, or every fourth step."""
    (found,) = judged(make_run, judge, schedule_values(COSINE, STEPS * speed))
    assert found.evidence["speed"] == speed


def test_a_clock_is_named(make_run, judge):
    """Among the recorded ones, the one that the values follow."""
    clock = np.floor(STEPS**0.9)
    values = schedule_values(COSINE, clock)
    (found,) = judged(make_run, judge, values, **{"clock/dqn": clock, "clock/other": STEPS // 3})
    assert found.evidence["clock"] == "dqn"


def test_skipped_steps_and_several_optimisers(make_run, judge):
    """A scheduler that counts a few skipped attempts is forgiven; each optimiser has a count of its own."""
    skipped = (STEPS <= 8) & (STEPS % 2 == 0)
    applied = STEPS - np.cumsum(skipped)
    more = {"applied": applied, "amp/skipped": skipped}
    assert judged(make_run, judge, schedule_values(COSINE, STEPS), **more) == []
    own = STEPS // 5
    columns = {"applied": STEPS, "applied/gen": own}
    assert judged(make_run, judge, schedule_values(COSINE, own), name="lr/gen.main", **columns) == []


@pytest.mark.parametrize("taken", [1, 5])
def test_one_of_several_optimisers_may_be_scheduled_by_the_loop(make_run, judge, taken):
    """A critic's scheduler is stepped once a round, after so many steps of the critic; twice is one too many."""
    columns = {"applied": STEPS, "applied/critic": taken * STEPS}
    assert judged(make_run, judge, schedule_values(COSINE, STEPS), name="lr/critic.main", **columns) == []
    assert judged(make_run, judge, schedule_values(COSINE, taken * STEPS), name="lr/critic.main", **columns) == []
    (found,) = judged(make_run, judge, schedule_values(COSINE, 2 * taken * STEPS), name="lr/critic.main", **columns)
    assert found.severity == "info"  # lr-desync tells of it


@pytest.mark.parametrize("speed", [1, 2])
def test_cycles_are_of_whole_steps(make_run, judge, speed):
    """130 steps and three restarts: the scheduler restarts each 32 steps, and once more two steps before the end."""
    step, declared = np.arange(1, 131), {"kind": "cosine", "start": 1e-3, "end": 0.0, "over_steps": 130, "restarts": 3}
    values = 5e-4 * (1 + np.cos(np.pi * (speed * (step - 1) % 32) / 32))
    found = judge(make_run({"lr/main": values}, header={"schedules": {"lr/main": declared}}), "schedule-desync")
    assert len(found) == speed - 1


def test_what_cannot_be_evaluated_is_skipped(make_run, judge):
    """A plateau schedule, a clock that is not recorded, values in samples."""
    assert judged(make_run, judge, STEPS, {"kind": "plateau", "start": 1.0}) == []
    assert judged(make_run, judge, STEPS, {**COSINE, "clock": "dqn"}) == []
    declared = {**COSINE, "over_steps": 4000 * 64, "warmup": 200 * 64, "clock": "samples"}
    values = schedule_values(declared, (STEPS - 1) * 64)
    assert judged(make_run, judge, values, declared, samples=STEPS * 64) == []


def test_a_schedule_with_a_clock_of_its_own_is_judged_by_it(make_run, judge):
    """Also where the run's length is not known, and where the batches grow; whether the clock is right is not asked."""
    samples = np.cumsum(np.where(STEPS < 2000, 16, 64))
    declared = {**COSINE, "over_steps": 160_000, "warmup": 8000, "clock": "samples"}
    header = {"schedules": {"lr/main": declared}}
    values = schedule_values(declared, samples)
    assert judge(make_run({"lr/main": values, "samples": samples}, header=header), "schedule-desync") == []
    values = schedule_values(declared, STEPS * 40)
    (found,) = judge(make_run({"lr/main": values, "samples": samples}, header=header), "schedule-desync")
    assert "samples" in found.advice


@pytest.mark.parametrize("first", [0, 1])
def test_a_schedule_that_is_stepped_once_an_epoch(make_run, judge, first):
    """Twenty epochs: one tick. In four it is something else than declared, and so is a value that never moves."""
    epoch = (STEPS - 1) // 200
    assert judged(make_run, judge, schedule_values(COSINE, epoch * 200), epoch=epoch + first) == []
    epoch = (STEPS - 1) // 1000
    assert len(judged(make_run, judge, schedule_values(COSINE, epoch * 1000), epoch=epoch + first)) == 1
    assert len(judged(make_run, judge, np.full(4000, 1e-3), {**COSINE, "warmup": 0}, epoch=np.zeros(4000))) == 1


def test_skips_without_a_flag_are_not_judged(make_run, judge):
    """`applied` stands still: the value is that of no step."""
    applied = np.concatenate([np.zeros(30), STEPS[:-30]])
    values = np.where(applied == 0, 0.5, schedule_values(COSINE, applied))
    assert judged(make_run, judge, values, applied=applied) == []


def test_it_can_be_over(make_run, judge):
    """200 wrong steps, then right again."""
    values = schedule_values(COSINE, STEPS)
    values[1000:1200] *= 0.5
    (found,) = judged(make_run, judge, values)
    assert (found.first_step, found.last_step, found.state) == (1001, 1200, "over")
