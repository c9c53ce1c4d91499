"""gradient-explosion: norms that leave their floor for good, with a loss that suffers."""

import numpy as np
import pytest

RULE = "gradient-explosion"
N = 400


def healthy(seed, rows=N):
    """A loss that falls, and a norm with a heavy tail that falls along."""
    random, row = np.random.default_rng(seed), np.arange(rows)
    loss = (0.5 + 2 * np.exp(-row / 80)) * np.exp(0.1 * random.standard_normal(rows))
    return {"loss": loss, "grad_norm": (0.5 + np.exp(-row / 80)) * np.exp(0.5 * random.standard_t(3, rows).clip(-4, 4))}


def test_sustained_growth_with_a_loss_that_suffers_is_critical(make_run, judge):
    """Named by the row in which it began."""
    columns = healthy(0)
    columns["grad_norm"][300:] *= 1000
    columns["loss"][300:] += 3
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.first_step, finding.last_step) == ("critical", 301, 400)
    assert finding.evidence["ratio"] > 100
    assert finding.state == "active"


def test_an_explosion_that_ends_in_nan_needs_no_twenty_rows(make_run, judge):
    """In the run's first block: eight rows from 1 to 1e8, and then nothing is a number."""
    norm, loss = np.full(60, np.nan), np.full(60, np.inf)
    norm[:16], loss[:16] = 1.0, 2.0
    norm[8:16], loss[8:16] = 10.0 ** np.arange(1, 9), 2.0 ** np.arange(2, 10)
    (finding,) = judge(make_run({"grad_norm": norm, "loss": loss}), RULE)
    assert (finding.severity, finding.state) == ("critical", "active")
    assert finding.first_step in (9, 10)


def test_it_is_over_when_the_norm_comes_back(make_run, judge):
    """Sixty rows."""
    columns = healthy(1)
    columns["grad_norm"][200:260] *= 50
    columns["loss"][200:260] += 3
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.state) == ("warning", "over")
    assert 201 <= finding.first_step <= 205
    assert 255 <= finding.last_step <= 262


def test_a_norm_that_hurts_nobody_is_an_info(make_run, judge):
    """Also where the goal moves."""
    columns = healthy(2)
    columns["grad_norm"][200:] *= 50
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == ["info"]
    columns["loss"][200:] += 3
    assert [f.severity for f in judge(make_run(columns | {"metric/reward": columns["loss"]}), RULE)] == ["info"]


@pytest.mark.parametrize("seed", range(30))
def test_heavy_tails_spikes_and_stages_are_healthy(seed, make_run, judge):
    """Single rows of a hundred times the norm; a stage that begins with another scale."""
    columns = healthy(seed)
    assert judge(make_run(columns), RULE) == []
    columns["grad_norm"][seed * 10 + 40] *= 100
    columns["loss"][seed * 10 + 40] += 5
    assert judge(make_run(columns), RULE) == []
    stage = (np.arange(N) >= 200).astype(float)
    columns["grad_norm"] *= 1 + 50 * stage
    assert judge(make_run(columns | {"stage": stage, "loss": columns["loss"] + 3 * stage}), RULE) == []


def test_a_single_row_is_enough_where_the_next_is_not_finite(make_run, judge):
    """A hundred times and more, with a loss that goes along; less, or a loss that stays, is none."""
    for times, loss, told in ((1e4, 50.0, ["critical"]), (20.0, 50.0, []), (1e4, 1.0, [])):
        columns = {name: values[:120].copy() for name, values in healthy(3).items()}
        columns["grad_norm"][100], columns["loss"][100] = times * np.median(columns["grad_norm"]), loss
        columns["grad_norm"][101:] = columns["loss"][101:] = np.nan
        run = make_run(columns)
        for row in range(101, 120):
            run.train.mark(row, "loss", 1)
        assert [(f.severity, f.first_step) for f in judge(run, RULE)] == [(severity, 101) for severity in told]


@pytest.mark.parametrize(
    ("weights", "norm", "header", "severities"),
    [
        (390.0, 40.0, None, ["warning"]),
        (390.0, 40.0, {"max_grad_norm": 1.0}, []),  # a step of any length is cut
        (390.0, 0.6, None, []),  # many weights
        (30.0, 40.0, None, []),
    ],
)
def test_a_gradient_that_was_too_steep_from_the_start(weights, norm, header, severities, make_run, judge):
    """Nothing grows; but a ten-thousandth of the weights is worth the whole loss."""
    columns = healthy(2)
    columns["loss"] = columns["loss"].clip(1.0)
    columns["grad_norm"] *= norm
    columns["weight_norm/all"] = np.where(np.arange(N) % 50 == 0, weights, np.nan)
    found = judge(make_run(columns, header=header), RULE)
    assert [(one.severity, one.first_step) for one in found] == [(severity, 1) for severity in severities]


def test_who_learns_all_the_same_copes_with_it(make_run, judge):
    """A quarter of the loss is left: worth knowing."""
    columns = healthy(2)
    columns["loss"] *= np.exp(-np.arange(N) / 100)
    columns["grad_norm"] *= 40
    columns["weight_norm/all"] = np.full(N, 390.0)
    assert [one.severity for one in judge(make_run(columns), RULE)] == ["info"]


def test_a_summed_loss_that_is_learned_well(make_run, judge):
    """From 1,000 to 10, and the norm with it; accuracy began where a pre-trained model stands."""
    fall = 10 + 990 * np.exp(-np.arange(N) / 40)
    noise = 1 + 0.03 * np.random.default_rng(0).standard_normal(N)
    run = {"loss": fall * noise, "grad_norm": 20 * fall * noise, "weight_norm/all": np.full(N, 500.0)}
    evals = [{"step": N * n // 8, "split": "validation", "metric/accuracy": 0.93 + 0.004 * n} for n in range(1, 9)]
    assert [one.severity for one in judge(make_run(run, evals=evals), RULE)] == ["info"]


@pytest.mark.parametrize(("limit", "severities"), [(1e9, ["warning"]), (30.0, [])])
def test_what_the_optimiser_saw_tells_it_as_well(limit, severities, make_run, judge):
    """Unless it is a limit on the norm that nobody declared."""
    columns = healthy(2)
    columns["grad_norm_at_step"] = np.minimum(100 * columns.pop("grad_norm"), limit)
    columns |= {"loss": columns["loss"].clip(1.0), "weight_norm/all": np.full(N, 390.0)}
    assert [one.severity for one in judge(make_run(columns), RULE)] == severities
