"""post-clip-norm: a pile at the limit and nothing above it."""

import numpy as np
import pytest

RULE = "post-clip-norm"
N = 160
LIMIT = {"max_grad_norm": 5.0}


def norms(seed, scale=4.0):
    return scale * np.exp(0.6 * np.random.default_rng(seed).standard_normal(N))


@pytest.mark.parametrize("seed", range(10))
def test_a_pile_at_the_limit_is_named_from_the_first_step(seed, make_run, judge):
    """As clip_grad_norm_ leaves it: limit / (norm + 1e-6) times the norm."""
    norm = norms(seed)
    left = norm * np.minimum(1, 5.0 / (norm + 1e-6))
    (finding,) = judge(make_run({"grad_norm": left}, header=LIMIT), RULE)
    assert (finding.severity, finding.first_step, finding.last_step) == ("warning", 1, N)
    assert judge(make_run({"grad_norm": norm}, header=LIMIT), RULE) == []


def test_a_log_whose_norm_is_the_limit_in_every_row(make_run, judge):
    """Saturated, and rounded to four digits."""
    assert len(judge(make_run({"grad_norm": np.full(12, 1.0)}, header={"max_grad_norm": 1.0}), RULE)) == 1


@pytest.mark.parametrize("seed", range(50))
def test_norms_that_stay_below_are_healthy(seed, make_run, judge):
    """Even those that crowd under the limit; a single one above it proves that they were taken before."""
    crowd = 5.0 - 0.3 * np.abs(np.random.default_rng(seed).standard_normal(N))
    piled = np.where(np.arange(N) == N - 1, 7.0, np.minimum(norms(seed), 5.0))
    for norm in (norms(seed, 0.5).clip(max=4.9), crowd, piled):
        assert judge(make_run({"grad_norm": norm}, header=LIMIT), RULE) == []
