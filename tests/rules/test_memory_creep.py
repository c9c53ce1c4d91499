"""Memory that grows evenly and does not stop; caches, collectors and stages are healthy."""

import numpy as np
import pytest

RULE = "memory-creep"
ROWS = 3000
STEP = np.arange(ROWS)


def noisy(values, seed=0, every=1):
    values = values + 2e7 * np.random.default_rng(seed).standard_normal(len(values))
    values[(np.arange(len(values)) + 1) % every != 0] = np.nan
    return values


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("begins", [0, 1000])
def test_a_leak(make_run, judge, begins, every):
    """Two megabytes a step, from the start or later, read at every step or every fiftieth; ten seeds."""
    for seed in range(10):
        memory = noisy(8e9 + 2e6 * np.maximum(STEP - begins, 0), seed, every)
        (found,) = judge(make_run({"memory/cuda": memory}), RULE)
        assert found.severity == "warning"
        assert abs(found.first_step - begins) <= max(60, 3 * every)
        assert found.evidence["bytes_a_step"] == pytest.approx(2e6, rel=0.1)


def test_when_it_will_be_full(make_run, judge):
    """Of the device whose memory it is."""
    head = {"device": {"name": "T4", "memory": 15e9}, "total_steps": 10_000}
    memory = noisy(8e9 + 0.5e6 * STEP)
    (found,) = judge(make_run({"memory/cuda": memory}, header=head), RULE)
    assert found.evidence["full_at"] == pytest.approx(14_000, rel=0.1)
    (found,) = judge(make_run({"memory/cuda": 1.4 * memory}, header=head), RULE)
    assert "it will be full at step 5," in found.message
    (found,) = judge(make_run({"memory/rss": memory}, header=head), RULE)
    assert "full_at" not in found.evidence


def test_a_cache_that_fills_in_the_first_epoch(make_run, judge):
    """While it fills it is an info; then nothing."""
    epoch = STEP / 1000
    memory = noisy(8e9 + 4e9 * np.minimum(epoch, 1))
    assert judge(make_run({"memory/rss": memory, "epoch": epoch}), RULE) == []
    (found,) = judge(make_run({"memory/rss": memory[:800], "epoch": epoch[:800]}), RULE)
    assert found.severity == "info"


HEALTHY = {
    "flat": lambda _random: np.full(ROWS, 8e9),
    "caches that saturate": lambda random: 8e9 + 3e9 * (1 - np.exp(-STEP / random.uniform(50, 500))),
    "a collector's saw": lambda random: 8e9 + 3e9 * (STEP % random.integers(50, 1000)) / 1000,
    "a random walk": lambda random: 8e9 + np.cumsum(5e7 * random.standard_normal(ROWS)).clip(-6e9),
    "a small process that grows": lambda _random: 2e7 + 1e4 * STEP,
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_what_is_healthy(make_run, judge, kind):
    """Twenty seeds of each."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        assert judge(make_run({"memory/rss": noisy(HEALTHY[kind](random), seed)}), RULE) == []


def test_stages_and_high_water_marks_are_healthy(make_run, judge):
    """Longer sequences take more, by plan; a peak only ever rises."""
    stage = np.repeat(np.arange(3.0), ROWS // 3)
    assert judge(make_run({"memory/cuda": noisy(8e9 * (1 + stage)), "stage": stage}), RULE) == []
    assert judge(make_run({"memory/cuda_peak": 8e9 + 2e6 * STEP}), RULE) == []


@pytest.mark.parametrize(("rise", "alarms"), [(3e7, 1), (0.0, 0)])
def test_six_readings_of_a_short_run(rise, alarms, make_run, judge):
    """Each above the one before; of memory that stands still none is told."""
    for seed in range(20):
        memory = np.full(300, np.nan)
        memory[49::50] = 5e8 + rise * np.arange(6) + 2e6 * np.random.default_rng(seed).standard_normal(6)
        run = make_run({"memory/rss": memory, "epoch": np.arange(300) / 44})
        assert len([found for found in judge(run, RULE) if found.rank]) == alarms


def test_parts_of_one_reading_and_of_two(make_run, judge):
    """Two megabytes a step in a run of twelve readings, of which the collector gives a little back now and then."""
    memory = np.full(120, np.nan)
    memory[9::10] = 1e6 * np.array([536, 561, 585, 609, 633, 639, 659, 681, 705, 729, 753, 759])
    (found,) = judge(make_run({"memory/rss": memory, "epoch": np.arange(120) / 20}), RULE)
    assert found.severity == "warning"
