"""loss-zero: exactly 0 is no success, unless it was learned or is meant."""

import numpy as np
import pytest

RULE = "loss-zero"


def test_from_well_above_to_exactly_zero(make_run, judge):
    """At its row; critical once it lasts; over when the loss is back."""
    loss = 1 + np.exp(-np.arange(300) / 50)
    loss[150:] = 0
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.first_step, found.last_step, found.state) == ("critical", 151, 300, "active")
    loss[160:] = 1
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.first_step, found.last_step, found.state) == ("warning", 151, 160, "over")


def test_ten_rows_are_enough(make_run, judge):
    """A log of epochs."""
    (found,) = judge(make_run({"loss": [2.0, 1.5, 1.2, 1.1, 0, 0, 0, 0, 0, 0]}), RULE)
    assert (found.severity, found.first_step) == ("warning", 5)


@pytest.mark.parametrize(("norm", "severity"), [(0.0, ["warning"]), (np.nan, ["info"]), (1.0, [])])
def test_zero_from_the_first_row(make_run, judge, norm, severity):
    """The gradient decides: GRPO's first update has a loss of 0 and a gradient."""
    found = judge(make_run({"loss": np.zeros(50), "grad_norm": norm}), RULE)
    assert [finding.severity for finding in found] == severity


@pytest.mark.parametrize("seed", range(10))
def test_what_is_healthy(make_run, judge, seed):
    """A hinge loss; a learned 0; single empty batches; weights of 0 by plan; a surrogate."""
    random = np.random.default_rng(seed)
    t = np.arange(400) / 400
    hinge = np.maximum(0, 0.5 * np.exp(-5 * t) + 0.15 * random.standard_normal(400) - 0.05)
    learned = np.round(2 * np.exp(-15 * t), 3)
    single = np.where(random.random(400) < 0.05, 0.0, 1.0)
    late = np.where(t < 0.5, 1.0, 0.0)
    for columns in (
        {"loss": hinge},
        {"loss": learned},
        {"loss": single},
        {"loss": late, "weight/a": late, "loss/a": 1.0},
        {"loss": late, "loss/policy": late},
        {"loss": np.zeros(10)},
    ):
        assert judge(make_run(columns), RULE) == []


@pytest.mark.parametrize(
    ("before", "norm", "severity"), [(1, 0.0, "info"), (1, np.nan, "critical"), (9, 0.0, "critical")]
)
def test_solved_by_the_first_update(make_run, judge, before, norm, severity):
    """A perceptron on data that can be parted; not where it trained for long, nor where no gradient says so."""
    zero = np.arange(300) >= before
    (found,) = judge(make_run({"loss": np.where(zero, 0.0, 1.0), "grad_norm": np.where(zero, norm, 1.0)}), RULE)
    assert (found.severity, "either" in found.message) == (severity, severity == "info")
