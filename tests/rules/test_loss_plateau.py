"""loss-plateau: an info on a standstill under a rate that does not move."""

import numpy as np
import pytest

RULE = "loss-plateau"


def curve(n, speed, seed=0):
    return (0.5 + 2 * np.exp(-speed * np.arange(n) / n)) * (1 + 0.03 * np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize("n", [120, 3000])
def test_a_standstill_under_a_constant_rate(make_run, judge, n):
    """From about where it began; never an alarm."""
    (found,) = judge(make_run({"loss": curve(n, 50), "lr/main": 1e-3}), RULE)
    assert (found.severity, found.last_step) == ("info", n)
    assert 0.02 * n < found.first_step < 0.25 * n


@pytest.mark.parametrize("seed", range(10))
def test_what_is_none(make_run, judge, seed):
    """A decayed rate, a rate that is not known, a loss that still falls, one that never fell, one at 0, a game."""
    n = 600
    decay, flat = np.linspace(1e-3, 0, n), np.full(n, 1e-3)
    noise = 0.03 * np.random.default_rng(seed).standard_normal(n)
    for columns in (
        {"loss": curve(n, 50, seed), "lr/main": decay},
        {"loss": curve(n, 2, seed), "lr/main": flat},
        {"loss": 1 + noise, "lr/main": flat},
        {"loss": np.abs(np.exp(-np.arange(n) / 20) + 0.01 * noise), "lr/main": flat},
        {"loss": curve(n, 50, seed), "lr/main": flat, "loss/critic": 1.0},
    ):
        assert judge(make_run(columns), RULE) == []
    assert judge(make_run({"loss": curve(n, 50, seed)}), RULE) == []


def test_the_end_of_a_training_is_no_news(make_run, judge):
    """It has stood for two thirds: told while most of the plan is ahead, not where it ends."""
    columns = {"loss": curve(600, 15), "lr/main": 1e-3}
    for total, told in ((600, 0), (1000, 0), (3000, 1)):
        assert len(judge(make_run(columns, header={"total_steps": total}), RULE)) == told
