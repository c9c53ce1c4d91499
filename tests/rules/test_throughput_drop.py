"""Slower than the run's own steady state, for the same work."""

import numpy as np
import pytest

RULE = "throughput-drop"


def step_times(random, rows, seconds=0.2, scatter=0.1):
    return seconds * np.exp(scatter * random.standard_normal(rows))


def test_a_drop_that_stays(make_run, judge):
    """The onset within a block, and how much is lost; twenty seeds."""
    for seed in range(20):
        times = step_times(np.random.default_rng(seed), 1000)
        times[500:] *= 1.8
        (found,) = judge(make_run({"time/step": times}), RULE)
        assert (found.severity, found.state) == ("warning", "active")
        assert abs(found.first_step - 501) <= 20
        assert found.evidence["ratio"] == pytest.approx(1.8, rel=0.1)


def test_little_lost_is_worth_knowing_only(make_run, judge):
    """Steps of 5 ms: the drop costs two seconds."""
    times = step_times(np.random.default_rng(0), 1000, 0.005)
    times[500:] *= 1.8
    (found,) = judge(make_run({"time/step": times}), RULE)
    assert found.severity == "info"


def test_it_ends(make_run, judge):
    """A neighbour that came and went."""
    times = step_times(np.random.default_rng(0), 2000)
    times[500:1000] *= 2
    (found,) = judge(make_run({"time/step": times}), RULE)
    assert found.state == "over"


def ramp(random, channel):
    work = np.linspace(8, 64, 2000)
    return {channel: np.cumsum(work), "time/step": work * step_times(random, 2000, 0.01)}


HEALTHY = {
    "steady": lambda random: {"time/step": step_times(random, 2000)},
    "compilation first": lambda random: {"time/step": step_times(random, 2000) + 3 * (np.arange(2000) < 60)},
    "single stalls": lambda random: {"time/step": step_times(random, 2000) + 60 * (random.random(2000) < 0.05)},
    "batches of all sizes": lambda random: {"time/step": step_times(random, 2000, scatter=0.6)},
    "longer sequences by plan": lambda random: {
        "stage": np.repeat([0.0, 1.0], 1000),
        "time/step": step_times(random, 2000) * np.repeat([1, 3], 1000),
    },
    "a ramp of the batch": lambda random: ramp(random, "samples"),
    "a ramp of the length": lambda random: ramp(random, "tokens"),
    "faster and faster": lambda random: {"time/step": step_times(random, 2000) * np.linspace(2, 1, 2000)},
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_what_is_healthy(make_run, judge, kind):
    """Ten seeds of each."""
    for seed in range(10):
        assert judge(make_run(HEALTHY[kind](np.random.default_rng(seed))), RULE) == []


def test_the_figures_are_of_one_window(make_run, judge):
    """Not of the last block, which may be over it already."""
    times = np.full(1000, 0.2)
    times[500:700] = 0.4
    (found,) = judge(make_run({"time/step": times}), RULE)
    assert found.evidence["seconds"] == pytest.approx(found.evidence["ratio"] * found.evidence["steady_seconds"])
    assert "0.4 s, 2 times" in found.message


def test_less_than_a_hundredth_of_the_time_is_not_worth_a_word(make_run, judge):
    """A neighbour for a hundred steps of twenty thousand."""
    times = step_times(np.random.default_rng(0), 20_000, 0.005)
    times[500:620] *= 2
    assert judge(make_run({"time/step": times}), RULE) == []


def test_steps_that_take_longer_and_longer(make_run, judge):
    """However little is lost; not in a game, nor on a machine that is busy now and then."""
    random = np.random.default_rng(0)
    grows = step_times(random, 300, 0.005) * np.linspace(1, 2.5, 300)
    (found,) = judge(make_run({"time/step": grows}), RULE)
    assert (found.severity, found.first_step) == ("warning", 1)
    assert judge(make_run({"time/step": grows, "metric/episode_return": 1.0}), RULE) == []
    for seed in range(20):
        random = np.random.default_rng(seed)
        busy = step_times(random, 300, 0.005) * np.repeat(np.exp(0.4 * random.standard_normal(15)), 20)
        assert {one.severity for one in judge(make_run({"time/step": busy}), RULE)} <= {"info"}


def test_a_game_that_is_played_as_before(make_run, judge):
    """A policy that has learned, and is paid alike while each step takes longer: no episode grew. Where it goes on
    learning, or nobody says what it is paid, that is not known.
    """
    random = np.random.default_rng(0)
    grows = step_times(random, 120, 0.012, 0.02) + 0.0005 * np.maximum(np.arange(120) - 55, 0)
    learned = -4 - 4 * np.exp(-np.arange(120) / 12) + 0.1 * random.standard_normal(120)
    (found,) = judge(make_run({"time/step": grows, "reward/return": learned, "loss/policy": 0.1}), RULE)
    assert (found.severity, 30 < found.first_step < 65) == ("warning", True)
    slow = np.linspace(-8, -4, 120) + 0.7 * random.standard_normal(120)
    for pay in ({}, {"reward/return": slow}, {"reward/return": np.full(120, -4.0)}):
        assert judge(make_run({"time/step": grows, "loss/policy": 0.1} | pay), RULE) == []


def test_what_grows_in_the_second_half_of_a_short_run(make_run, judge):
    """Ten milliseconds on a busy machine that become ninety; steady ones are nothing."""
    times = np.random.default_rng(0).uniform(0.002, 0.012, 160)
    assert judge(make_run({"time/step": times}), RULE) == []
    times[80:] += np.linspace(0, 0.09, 80)
    (found,) = judge(make_run({"time/step": times}), RULE)
    assert found.severity == "warning"
    assert abs(found.first_step - 81) <= 10


def test_what_grows_after_a_third_of_a_short_run(make_run, judge):
    """From 20 ms to 100; not where every stage that is declared takes longer, nor by as much in jumps."""
    times = np.random.default_rng(0).uniform(0.015, 0.027, 120)
    grows = times + 0.001 * np.maximum(np.arange(120) - 40, 0)
    (found,) = judge(make_run({"time/step": grows}), RULE)
    assert found.severity == "warning"
    assert abs(found.first_step - 41) <= 5
    stages = {"time/step": times * np.repeat([1.0, 2.0, 3.0], 40), "stage": np.repeat([0, 1, 2], 40)}
    assert judge(make_run(stages), RULE) == []
    for seed in range(20):
        jumps = times * np.repeat([1, *np.random.default_rng(seed).uniform(1, 5, 5)], 20)
        assert judge(make_run({"time/step": jumps}), RULE) == []


@pytest.mark.parametrize(("turns", "count"), [(0.25, 0), (0.05, 1)])
def test_neighbours_that_come_one_after_the_other_take_turns(turns, count, make_run, judge):
    """What grows is paid in every step alike; where others want the processor, one step waits and the next does not."""
    random = np.random.default_rng(3)
    level = 0.06 + 0.006 * np.maximum(np.arange(120) - 40, 0) ** 0.9
    times = level * np.exp(turns * random.standard_normal(120))
    times = np.sort(times.reshape(24, 5).mean(axis=1)).repeat(5) + times - times.reshape(24, 5).mean(axis=1).repeat(5)
    assert len(judge(make_run({"time/step": times}), RULE)) == count


def creeping(seconds, rows=300):
    """Half as long again at the end, and more and more so."""
    return seconds * (1 + np.linspace(0, 1, rows) ** 2) * step_times(np.random.default_rng(1), rows, 1.0, 0.02)


def test_a_trend_costs_more_than_a_turn_on_the_processor(make_run, judge):
    """Steps of 1 ms that lose 0.1 s in all tell of neighbours; the same course of 50 ms steps is one of the run."""
    assert judge(make_run({"time/step": creeping(0.001)}), RULE) == []
    (found,) = judge(make_run({"time/step": creeping(0.05)}), RULE)
    assert found.severity == "warning"
    assert "longer than the one before" in found.message


def test_a_run_of_fifty_rows_is_looked_at_row_by_row(make_run, judge):
    """From 20 ms to 130; not neighbours that come and go, nor what every later stage of the curriculum costs."""
    times = np.random.default_rng(0).uniform(0.015, 0.027, 50)
    grows = times + 0.004 * np.maximum(np.arange(50) - 22, 0)
    (found,) = judge(make_run({"time/step": grows}), RULE)
    assert found.severity == "warning"
    assert abs(found.first_step - 23) <= 5
    assert judge(make_run({"time/step": grows, "stage": np.repeat(np.arange(10), 5)}), RULE) == []
    assert judge(make_run({"time/step": grows, "tokens": np.cumsum(grows)}), RULE) == []
    even = step_times(np.random.default_rng(0), 50, 0.05, 0.05)
    assert len(judge(make_run({"time/step": even * np.linspace(1, 6, 50)}), RULE)) == 1
    assert judge(make_run({"time/step": even * np.linspace(1, 2, 50)}), RULE) == []
    for seed in range(40):
        random = np.random.default_rng(seed)
        busy = times * np.exp(np.cumsum(0.15 * random.standard_normal(50)))
        assert judge(make_run({"time/step": busy}), RULE) == [], seed
