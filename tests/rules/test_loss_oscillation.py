"""loss-oscillation: a rhythm, not noise."""

import numpy as np
import pytest

RULE = "loss-oscillation"


def swinging(n, periods, height=0.6, seed=0):
    t = np.arange(n) / n
    noise = 0.05 * np.random.default_rng(seed).standard_normal(n)
    return 1.2 + np.exp(-9 * t) + height * np.sin(2 * np.pi * periods * t) + noise


@pytest.mark.parametrize("n", [200, 4000])
@pytest.mark.parametrize("periods", [7, 14])
def test_a_rhythm(make_run, judge, n, periods):
    """Its period in steps; a warning under a rate that holds, as more than half of the progress swings."""
    (found,) = judge(make_run({"loss": swinging(n, periods), "lr/main": 1e-2}), RULE)
    assert found.severity == "warning"
    assert found.evidence["period"] == pytest.approx(n / periods, rel=0.15)
    (found,) = judge(make_run({"loss": swinging(n, periods)}), RULE)
    assert found.severity == "info"


@pytest.mark.parametrize("seed", range(8))
def test_what_is_none(make_run, judge, seed):
    """Noise of any length of memory, heavy tails, cyclic rates, games."""
    random = np.random.default_rng(seed)
    n = int(random.integers(40, 3000))
    t, white = np.arange(n) / n, random.standard_normal(n)
    kernel = np.ones(int(random.integers(2, 30)))
    wave = swinging(n, 8, seed=seed)
    for columns in (
        {"loss": 1 + np.exp(-9 * t) + 0.3 * white},
        {"loss": 3 + np.convolve(white, kernel, mode="same") / len(kernel) ** 0.5},
        {"loss": 3 + 0.1 * np.cumsum(white)},
        {"loss": np.exp(0.3 * random.standard_t(2.5, n).clip(-8, 8))},
        {"loss": wave, "lr/main": 1e-3 * (1.2 + np.sin(2 * np.pi * 8 * t))},
        {"loss": wave, "loss/disc": wave},
    ):
        assert [f.message for f in judge(make_run(columns), RULE) if f.rank] == []
