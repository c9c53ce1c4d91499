"""hidden-nan: a loss that looks well beside a gradient that is none; zeros that mean zero are no alarm."""

import numpy as np

RULE = "hidden-nan"
N = 80


def falling(random=None, n=N):
    loss = 0.3 + 2.0 * np.exp(-np.arange(n) / 30)
    return loss * (1 + 0.1 * random.standard_normal(n)) if random else loss


def with_bad_norms(run, first, last=N):
    for row in range(first - 1, last):
        run.train[("grad_norm")][row] = np.nan
        run.train.mark(row, "grad_norm", 1)
    return run


def test_zero_from_one_row_to_the_next(make_run, judge):
    """What Hugging Face's filter writes; with a norm it is proved."""
    for norm, severity in (({}, "warning"), ({"grad_norm": np.ones(N)}, "critical")):
        run = make_run({"loss": np.where(np.arange(N) < 40, falling(), 0.0), **norm})
        (finding,) = judge(with_bad_norms(run, 41) if norm else run, RULE)
        assert (finding.first_step, finding.last_step, finding.severity, finding.state) == (41, N, severity, "active")


def test_the_last_good_value_again_and_again(make_run, judge):
    loss = np.where(np.arange(N) < 40, falling(), falling()[39])
    (finding,) = judge(with_bad_norms(make_run({"loss": loss, "grad_norm": np.ones(N)}), 41), RULE)
    assert (finding.first_step, finding.severity) == (41, "critical")


def test_short_logs_and_the_end_of_it(make_run, judge):
    """Seven rows that no block holds; and a loss that came back."""
    loss = np.array([2.0, 1.9, 1.8, 1.7, 1.6, 0, 0, 0, 0, 0])
    assert [f.first_step for f in judge(make_run({"loss": loss}), RULE)] == [6]
    assert judge(make_run({"loss": loss[:9]}), RULE) == []
    (finding,) = judge(make_run({"loss": [*loss, *np.ones(20)]}), RULE)
    assert (finding.state, finding.last_step) == ("over", 10)


def test_a_skipping_scaler_hides_nothing(make_run, judge):
    """Its loss goes on moving; its flag, or nothing, says so."""
    for flag in ({"amp/skipped": (np.arange(N) < 30).astype(float)}, {}):
        run = make_run({"loss": falling(np.random.default_rng(0)), "grad_norm": np.ones(N), **flag})
        assert judge(with_bad_norms(run, 1, 30), RULE) == []


def test_zeros_that_mean_zero(make_run, judge):
    """Rewards that all samples earn, margins that are met, a fit that is perfect, four printed digits."""
    for seed in range(100):
        random = np.random.default_rng(seed)
        policy = np.where(random.random(N) < 0.6, 0.0, random.normal(0, 0.01, N))
        margin = np.maximum(0.0, 1 - np.arange(N) / 30 + 0.2 * random.standard_normal(N))
        perfect = np.round(2 * np.exp(-np.arange(N) / 3) * np.exp(0.3 * random.standard_normal(N)), 4)
        for loss in (policy, margin, perfect, np.zeros(N), -falling(random)):
            assert judge(make_run({"loss": loss}), RULE) == [], seed
    switched_off = np.where(np.arange(N) < 40, 1.0, 0.0)
    assert judge(make_run({"loss": switched_off, "grad_norm": np.ones(N)}), RULE) == []
