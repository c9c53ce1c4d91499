"""The share of the time that is wait: sustained, in rhythms, on a CPU; stalls and epochs are healthy."""

import numpy as np
import pytest

RULE = "data-starved"
GPU, CPU = {"device": {"name": "H100"}}, {"device": {"name": "cpu"}}


def columns(wait, rows=1000, work=0.05, seed=0):
    random = np.random.default_rng(seed)
    wait = wait * np.exp(0.3 * random.standard_normal(rows))
    return {"time/step": work * np.exp(0.1 * random.standard_normal(rows)) + wait, "time/data": wait}


def test_a_loader_that_falls_behind(make_run, judge):
    """The onset within a block, and one finding; twenty seeds."""
    for seed in range(20):
        wait = np.full(1000, 0.001)
        wait[400:] = 0.04
        (found,) = judge(make_run(columns(wait, seed=seed), header=GPU), RULE)
        assert (found.severity, found.state) == ("warning", "active")
        assert abs(found.first_step - 401) <= 20
        assert 0.35 < found.evidence["share"] < 0.55


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_a_wait_in_every_nth_step(make_run, judge, workers):
    """n - 1 workers keep up."""
    wait = np.where(np.arange(1000) % workers == 0, 0.05 * workers, 1e-4)
    (found,) = judge(make_run(columns(wait), header=GPU), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize(("wait", "severity"), [(0.008, "info"), (0.03, "warning")])
def test_how_much(make_run, judge, wait, severity):
    """A tenth is worth knowing, a fifth is worth doing something about."""
    (found,) = judge(make_run(columns(wait), header=GPU), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(("wait", "severity"), [(0.03, "info"), (0.1, "warning")])
def test_on_a_cpu_the_bar_is_higher(make_run, judge, wait, severity):
    """The loader and the model share the cores."""
    (found,) = judge(make_run(columns(wait), header=CPU), RULE)
    assert found.severity == severity


@pytest.mark.parametrize("rows", [120, 1000])
def test_neighbours_stretch_the_work_and_not_the_wait(make_run, judge, rows):
    """A disk of 40 ms is more than the quickest steps' 30 ms of work; work in the loop's own thread grows as well."""
    busy = 1 + np.random.default_rng(3).exponential(0.6, rows)
    for wait, severities in ((np.full(rows, 0.04), ["warning"]), (0.02 * busy, ["info"])):
        values = {"time/step": wait + 0.03 * busy, "time/data": wait}
        found = judge(make_run(values, header=CPU), RULE)
        assert [one.severity for one in found] == severities
        assert ["in the quickest steps" in one.message for one in found] == [severities == ["warning"]]


@pytest.mark.parametrize("rows", [15, 60, 130])
def test_short_logs_are_judged_as_a_whole(make_run, judge, rows):
    """Also those of a block or two; the first row, in which workers start, does not count."""
    (found,) = judge(make_run(columns(0.05, rows), header=GPU), RULE)
    assert (found.severity, found.first_step) == ("warning", 2)
    values = columns(0.001, rows)
    values["time/data"][0] += 100
    values["time/step"][0] += 100
    assert judge(make_run(values, header=GPU), RULE) == []


def test_it_ends(make_run, judge):
    """A disk that was busy for a while."""
    wait = np.full(1000, 0.001)
    wait[200:500] = 0.1
    (found,) = judge(make_run(columns(wait), header=GPU), RULE)
    assert found.state == "over"


def test_one_stall_workers_that_restart_and_short_waits_are_healthy(make_run, judge):
    """Ten minutes of a dead file system; a second at each epoch; a millisecond in a step of three."""
    stalled, epochs = np.full(1000, 0.001), np.full(1000, 0.001)
    stalled[500], epochs[::200] = 600.0, 1.0
    for seed in range(10):
        for values in (columns(stalled, seed=seed), columns(epochs, seed=seed), columns(0.001, work=0.002, seed=seed)):
            assert judge(make_run(values, header=GPU), RULE) == []


def test_two_milliseconds_are_worth_no_word_unless_they_are_a_fifth(make_run, judge):
    """In a step of twenty, and of eight."""
    assert judge(make_run(columns(0.003, work=0.02), header=GPU), RULE) == []
    assert judge(make_run(columns(0.003, rows=60, work=0.02), header=GPU), RULE) == []
    (found,) = judge(make_run(columns(0.003, work=0.008), header=GPU), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize("work", [0.0, 0.02])
def test_waits_of_nothing_are_healthy(make_run, judge, work):
    """The quickest rows, or all of them, take no time at all."""
    half = np.where(np.arange(30) % 2, 0.0, work)
    assert judge(make_run({"time/step": half, "time/data": np.zeros(30)}), RULE) == []
    whole = {"time/step": np.full(30, 0.01), "time/data": np.where(np.arange(30) % 3, 0.0, 0.01)}
    assert judge(make_run(whole), RULE) == []


def test_cheap_steps_among_dear_ones_are_no_quiet_neighbours(make_run, judge):
    """A step in seven skips its work."""
    random = np.random.default_rng(0)
    wait = np.abs(0.03 * (1 + 0.3 * random.normal(size=2000)))
    values = {"time/step": wait + np.where(random.random(2000) < 0.15, 0.005, 0.06), "time/data": wait}
    assert [one.severity for one in judge(make_run(values, header=CPU), RULE)] == ["info"]
