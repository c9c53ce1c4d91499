"""lr-zero: no rate in any group for most of the run."""

import numpy as np
import pytest

RULE = "lr-zero"
N = 300
ROW = np.arange(N)
ZERO = np.zeros(N)


def flat(seed=0):
    return 2.3 + 0.05 * np.random.default_rng(seed).standard_normal(N)


def test_from_start_to_end_is_critical(make_run, judge):
    """Also in a short log, and with the update ratio as the witness instead of a loss."""
    for columns in ({"loss": flat()}, {"update_ratio/main": ZERO}, {"loss": flat()[:12], "step": ROW[:12] + 1}):
        rows = len(next(iter(columns.values())))
        (finding,) = judge(make_run(columns | {"lr/main": ZERO[:rows]}), RULE)
        assert (finding.severity, finding.first_step, finding.state) == ("critical", 1, "active")


def test_most_of_the_run_is_a_warning_and_a_tail_an_info(make_run, judge):
    """A scheduler that is stepped three times as often, one and a half times as often."""
    for end, severity in ((100, "warning"), (200, "info")):
        rate = 1e-3 * np.clip(1 - ROW / end, 0, None)
        loss = np.where(end > ROW, 2.3 * np.exp(-ROW / 100), 2.3 * np.exp(-end / 100)) * flat() / 2.3
        (finding,) = judge(make_run({"lr/main": rate, "loss": loss}), RULE)
        assert (finding.severity, finding.first_step) == (severity, end + 1)


HEALTHY = {
    "a cosine's last rows": {"lr/a": 1e-3 * (1 + np.cos(np.pi * np.minimum(ROW / 295, 1))), "loss": flat()},
    "a frozen group": {"lr/a": ZERO, "lr/b": np.full(N, 1e-3), "loss": flat()},
    "a first step of a warm-up": {"lr/a": np.minimum(ROW / 50, 1), "loss": flat()},
    "a rate that is rounded in the log": {"lr/a": ZERO, "loss": 3 * np.exp(-ROW / 100)},
    "a rate that moves the weights": {"lr/a": ZERO, "update_ratio/a": np.full(N, 1e-4), "loss": flat()},
    "nothing that would prove it": {"lr/a": ZERO},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy(case, make_run, judge):
    """None of them is a sickness."""
    assert judge(make_run(HEALTHY[case]), RULE) == []


def test_one_optimiser_of_several(make_run, judge):
    """Its rates and updates are 0 from start to end; a group beside others of its optimiser may rest."""
    sampled = np.where(ROW % 50 == 0, 1.0, np.nan)
    columns = {"loss": flat(), "lr/generator.0": ZERO, "lr/critic.0": np.full(N, 1e-3)}
    columns |= {"update_ratio/generator.0": 0 * sampled, "update_ratio/critic.0": 1e-3 * sampled}
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:generator", 1)
    assert judge(make_run(columns | {"update_ratio/generator.0": 1e-9 * sampled}), RULE) == []
    assert judge(make_run({name.replace(".0", ""): values for name, values in columns.items()}), RULE) == []


def test_a_warm_up_that_begins_at_nothing_is_not_where_the_idle_rows_begin(make_run, judge):
    """The schedule ends early: it is dated by its end, and its cause may be found before it."""
    rate = np.where(ROW < 100, 1e-3 * np.minimum(ROW / 20, 1.0), 0.0)
    (finding,) = judge(make_run({"lr/main": rate, "loss": flat()}), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 101)


def test_steps_that_the_scaler_skips_are_none_of_a_warm_up(make_run, judge):
    """Sixteen of the first twenty rows stand at the warm-up's beginning; a rate that stays at 0 is no warm-up."""
    skipped = np.maximum(ROW - 15, 0)
    columns = {"lr/a": np.minimum(skipped / 50, 1), "applied": skipped, "loss": flat()}
    assert judge(make_run({name: values[:20] for name, values in columns.items()}, end=None), RULE) == []
    (finding,) = judge(make_run(columns | {"lr/a": ZERO}), RULE)
    assert finding.severity == "critical"
