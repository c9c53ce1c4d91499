"""overtraining: the best evaluation is long past, by the figure that counts."""

import numpy as np
import pytest

RULE = "overtraining"
TRAIN = {"loss": np.exp(-np.arange(300) / 100)}


def evals(values, name="metric/acc", **more):
    return [{"step": 10 * (i + 1), "split": "valid", name: float(v), **more} for i, v in enumerate(values)]


def accuracy(seed, down, best=10):
    i = np.arange(30)
    noise = 0.002 * np.random.default_rng(seed).standard_normal(30)
    return 0.8 - 0.4 * np.exp(-i / 3) - down * np.maximum(0, i - best) + noise


@pytest.mark.parametrize("seed", range(10))
def test_a_figure_that_is_long_past_its_best(make_run, judge, seed):
    """Whatever the loss says."""
    (found,) = judge(make_run(TRAIN, evals=evals(accuracy(seed, 0.01))), RULE)
    assert (found.severity, found.subject) == ("warning", "split:valid")
    assert abs(found.first_step - 110) <= 20
    assert found.last_step == 300


def test_less_is_better_where_the_name_says_so(make_run, judge):
    """A perplexity that rises; and a validation loss in a log that has no training loss."""
    rise = 1 / accuracy(0, 0.01)
    for name, columns in (("metric/ppl", TRAIN), ("loss", {"lr/main": np.ones(300)})):
        (found,) = judge(make_run(columns, evals=evals(rise, name)), RULE)
        assert found.severity == "warning"
    assert judge(make_run(TRAIN, evals=evals(rise, "loss")), RULE) == []  # overfitting's matter, not of this length


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_what_still_improves_are_no_alarm(make_run, judge, seed):
    """A converged figure; rewards; one figure of two that improves; few evaluations; a training loss that rose."""
    down, noise = accuracy(seed, 0.01), np.random.default_rng(seed).standard_normal(30)
    both = [{**r, "metric/f1": 0.01 * i} for i, r in enumerate(evals(down))]
    for columns, records in (
        (TRAIN, evals(0.8 - 0.4 * np.exp(-np.arange(30) / 3) + 0.03 * noise)),
        (TRAIN, evals(np.cumsum(noise), "metric/reward")),
        (TRAIN, both),
        (TRAIN, evals(down)[:5]),
        ({"loss": np.exp(np.arange(300) / 100)}, evals(down)),
    ):
        assert [f.message for f in judge(make_run(columns, evals=records), RULE) if f.rank] == []
