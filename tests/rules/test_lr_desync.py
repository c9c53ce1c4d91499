"""lr-desync: the learning rate moves at another speed than the steps."""

import numpy as np
import pytest

from trainwatch.schedule import schedule_values

STEPS = np.arange(1, 4001, dtype=float)
COSINE = {"kind": "cosine", "start": 1e-3, "end": 1e-5, "over_steps": 4000, "warmup": 200}


def run_of(make_run, values, declared=COSINE, steps=STEPS, **columns):
    header = {"total_steps": 4000, "schedules": {"lr/main": declared, "lr/other": declared}}
    header["horizon"] = {"epochs": 1, "samples": 64_000, "batch_size": 4, "accumulation": 4, "processes": 2}
    return make_run({"step": steps, "lr/main": values, "lr/other": values, **columns}, header=header)


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("more", [{}, {"warmup": 0}, {"kind": "linear"}, {"kind": "exponential"}])
def test_the_speed_is_estimated(make_run, judge, speed, more):
    """From the first rows that are off; one finding for all groups, and the other rule only mentions them."""
    run = run_of(make_run, schedule_values({**COSINE, **more}, STEPS * speed), {**COSINE, **more})
    (found,) = judge(run, "lr-desync")
    assert found.evidence["speed"] == speed
    assert (found.severity, found.subject, found.evidence["groups"]) == ("warning", "schedule:lr/main", 2)
    assert {finding.severity for finding in judge(run, "schedule-desync")} == {"info"}


def test_the_onset_and_the_usual_numbers(make_run, judge):
    """In a warm-up the first row is off; k is the accumulation, or the number of processes."""
    (found,) = judge(run_of(make_run, schedule_values(COSINE, STEPS * 4)), "lr-desync")
    assert found.first_step == 1
    assert "the number of micro-batches a step" in found.message
    (found,) = judge(run_of(make_run, schedule_values(COSINE, STEPS * 2)), "lr-desync")
    assert "the number of processes" in found.message


def test_a_cosine_that_comes_up_again(make_run, judge):
    """torch's own goes on beyond its end when it is stepped too often; the speed stays the one of the beginning."""
    values = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * STEPS * 4 / 4000)) / 2
    (found,) = judge(run_of(make_run, values, {**COSINE, "warmup": 0}), "lr-desync")
    assert found.evidence["speed"] == 4.0


@pytest.mark.parametrize("rows", [8, 40])
def test_short_logs(make_run, judge, rows):
    """Every 100th step."""
    steps = np.linspace(100, 4000, rows).round()
    (found,) = judge(run_of(make_run, schedule_values(COSINE, steps * 2), steps=steps), "lr-desync")
    assert found.evidence["speed"] == 2.0


@pytest.mark.parametrize("shift", [0, 1])
def test_what_is_declared_or_no_speed_is_silent(make_run, judge, shift):
    """As declared; a plateau; a warm-up that is left out; what a recorded clock explains."""
    assert judge(run_of(make_run, schedule_values(COSINE, STEPS - shift)), "lr-desync") == []
    full = schedule_values({**COSINE, "warmup": 0}, STEPS)
    for values in (np.full(4000, 3e-4), full, np.where(STEPS > 500, 1e-3 * 0.5 ** (STEPS // 700), 1e-3)):
        assert judge(run_of(make_run, values), "lr-desync") == []
    clock = STEPS // 2
    run = run_of(make_run, schedule_values(COSINE, clock), **{"clock/dqn": clock})
    assert judge(run, "lr-desync") == []
    assert {finding.severity for finding in judge(run, "schedule-desync")} == {"warning"}


ROW = np.arange(300)
GONE = {
    "halved every second step": (0.5 ** (ROW // 2), {}, 3),
    "a tenth every tenth step": (0.1 ** (ROW // 10), {}, 11),
    "a fifth less each step": (0.8**ROW, {}, 2),
    "slower, to a thousandth": (1e-3 ** (ROW / 300), {}, 0),
    "to a millionth at the end": (1e-6 ** (ROW / 300), {}, 0),
    "a cosine": (np.cos(np.pi * ROW / 600), {}, 0),
    "a line to nothing by half": (np.maximum(0, 1 - ROW / 120), {}, 0),
    "a plateau that waited": (np.where(ROW < 20, 1.0, 0.33 ** (1 + (ROW - 20) // 8)), {}, 0),
    "a plateau by its config": (0.5 ** (ROW // 2), {"config": {"lr_step": "plateau"}}, 0),
    "restarts": (0.5 ** (ROW % 30), {}, 0),
}


@pytest.mark.parametrize("name", GONE)
def test_a_rate_without_a_schedule_that_is_gone_early(name, make_run, judge):
    """By one factor from the first steps on: a scheduler of epochs is stepped with each batch."""
    rate, header, first = GONE[name]
    run = make_run({"lr/main": 0.1 * rate, "lr/other": 0.2 * rate}, header={"total_steps": 300, **header})
    assert [found.first_step for found in judge(run, "lr-desync")] == [first] * (first > 0)


@pytest.mark.parametrize(("every", "alarms"), [(10, 0), (1, 1), (15, 1)])
def test_a_rate_that_waits_for_validation(every, alarms, make_run, judge):
    """A tenth after each evaluation, from the first on: a plateau, whatever the config calls it."""
    evals = [{"step": step, "split": "validation", "loss": 1.0} for step in range(every, 301, every)]
    run = make_run({"lr/main": 0.1 * 0.1 ** (ROW // 10)}, header={"total_steps": 300}, evals=evals)
    assert len(judge(run, "lr-desync")) == alarms


@pytest.mark.parametrize(("samples", "alarms"), [(40, 0), (4000, 1)])
def test_a_rate_that_falls_once_an_epoch(samples, alarms, make_run, judge):
    """Epochs that are short, by the header: then it was meant."""
    header = {"total_steps": 300, "horizon": {"samples": samples, "batch_size": 4, "epochs": 30}}
    run = make_run({"lr/main": 0.1 * 0.1 ** (ROW // 10)}, header=header)
    assert len(judge(run, "lr-desync")) == alarms
