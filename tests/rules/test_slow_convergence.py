"""slow-convergence: an info on a run that ends on the slope."""

import numpy as np
import pytest

RULE = "slow-convergence"


def line(n, seed=0):
    return 3 - 0.8 * np.arange(n) / n + 0.03 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("n", [80, 3000])
def test_it_ends_on_the_slope(make_run, judge, n):
    """A straight line; said as an info, from the first row on."""
    (found,) = judge(make_run({"loss": line(n), "lr/main": 1e-6}), RULE)
    assert (found.severity, found.first_step, found.last_step) == ("info", 1, n)
    assert found.evidence["slope"] == pytest.approx(-0.8 / n, rel=0.2)


def test_it_is_drawn_on_to_the_planned_end(make_run, judge):
    """With its uncertainty; and not before half of the steps are done."""
    header = {"total_steps": 900}
    (found,) = judge(make_run({"loss": line(600)}, header=header, end=None), RULE)
    assert "ends at 1.8" in found.message or "ends at 1.7" in found.message
    assert judge(make_run({"loss": line(300)}, header=header, end=None), RULE) == []


@pytest.mark.parametrize("seed", range(10))
def test_what_is_none(make_run, judge, seed):
    """A descent that levels out, noise, a power law, a decayed rate, a late drop, a resumed run."""
    n, random = 600, np.random.default_rng(seed)
    t, noise = np.arange(n) / n, 0.03 * random.standard_normal(n)
    for columns in (
        {"loss": 0.5 + 2 * np.exp(-6 * t) + noise},
        {"loss": 1 + noise},
        {"loss": 2 + 8 * (1 + np.arange(n)) ** -0.3 + noise},
        {"loss": line(n, seed), "lr/main": 1e-3 * (1 - t)},
        {"loss": 2.3 - 2 / (1 + np.exp(-60 * (t - 0.85))) + noise},
    ):
        assert judge(make_run(columns), RULE) == []
    assert judge(make_run({"loss": line(n)}, header={"resumed_from": 5}), RULE) == []
