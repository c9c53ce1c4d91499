"""gradient-spike: outliers are counted, and alarm only where the loss suffers again and again."""

import numpy as np
import pytest

RULE = "gradient-spike"
N = 600


def noisy(seed, tail=0.3):
    random = np.random.default_rng(seed)
    return {"loss": 1 + 0.05 * random.standard_normal(N), "grad_norm": np.exp(tail * random.standard_normal(N))}


def test_spikes_are_counted_and_told_as_an_info(make_run, judge):
    """With the largest of them, and its step."""
    columns = noisy(0)
    columns["grad_norm"][[150, 250, 350]] = [200.0, 900.0, 200.0]
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.first_step, finding.last_step, finding.state) == ("info", 151, 351, "over")
    assert (finding.evidence["spikes"], finding.evidence["step"], finding.evidence["largest"]) == (3, 251, 900.0)


def test_spikes_that_hurt_again_and_again_are_an_alarm(make_run, judge):
    """The loss of the rows that follow each of them rises by a half; not where the goal moves."""
    columns = noisy(1)
    for row in (150, 250, 350, 450):
        columns["grad_norm"][row] = 300.0
        columns["loss"][row : row + 30] += 0.5
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == ["warning"]
    assert [f.severity for f in judge(make_run(columns | {"loss/critic": columns["loss"]}), RULE)] == ["info"]


@pytest.mark.parametrize("seed", range(30))
def test_heavy_tails_are_no_spikes(seed, make_run, judge):
    """Student's t with three degrees of freedom in the logarithm, and one or two real outliers."""
    columns = noisy(seed)
    columns["grad_norm"] = np.exp(0.3 * np.random.default_rng(seed).standard_t(3, N))
    assert [f for f in judge(make_run(columns), RULE) if f.rank] == []
    columns = noisy(seed)
    columns["grad_norm"][[200, 400]] = 500.0
    assert judge(make_run(columns), RULE) == []
