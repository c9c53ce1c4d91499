"""clipping-saturated: an alarm where the norm is far off and nothing is learned, and silence where it is."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "clipping-saturated"
N = 400
ROW = np.arange(N)
LIMIT = {"max_grad_norm": 1.0}


def noise(seed=0):
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(N))


def test_what_learns_all_the_same_is_not_told(make_run, judge):
    """Eleven times the limit, and five hundred times; nor what was told before the loss fell."""
    for times in (11, 500):
        run = make_run({"grad_norm": times * noise(), "loss": 3 * np.exp(-ROW / 200)}, header=LIMIT)
        assert judge(run, RULE) == []
    columns = {"grad_norm": 500 * noise(), "loss": np.where(ROW < 300, 2.0, 1.0)}
    run, engine = make_run({name: values[:300] for name, values in columns.items()}, header=LIMIT, end=None), Engine()
    engine.feed(run)
    assert [f.evidence["times"] for f in engine.findings(run) if f.rule == RULE] == [pytest.approx(500, rel=0.2)]
    make_run({name: values[300:] for name, values in columns.items()} | {"step": ROW[300:] + 1}, end=None, onto=run)
    engine.feed(run)
    assert [f for f in engine.findings(run) if f.rule == RULE] == []


def test_far_above_the_limit_with_a_loss_that_stands_is_an_alarm(make_run, judge):
    """From the block in which it began; not where the goal moves, nor where a resume begins with it."""
    columns = {"grad_norm": np.where(ROW < 100, 0.5, 5e3) * noise(), "loss": 2 + 0.01 * noise(1)}
    (finding,) = judge(make_run(columns, header=LIMIT), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 101)
    moving = make_run(columns | {"metric/episode_reward": np.ones(N)}, header=LIMIT)
    resumed = make_run(columns, header=LIMIT | {"resumed_from": 100})
    assert [f.severity for run in (moving, resumed) for f in judge(run, RULE)] == []


def test_it_is_over_when_the_norm_comes_down(make_run, judge):
    """Two hundred rows."""
    run = make_run({"grad_norm": np.where(ROW < 200, 500, 0.1) * noise(), "loss": np.ones(N)}, header=LIMIT)
    assert [(f.last_step, f.state) for f in judge(run, RULE)] == [(200, "over")]


@pytest.mark.parametrize("seed", range(20))
def test_a_norm_near_its_limit_is_no_news(seed, make_run, judge):
    """How large models begin; and a run that is clipped in every second step."""
    for norm in ((1 + 2 * np.exp(-ROW / 50)) * noise(seed) ** 0.3, 5 * noise(seed) ** 8):
        assert judge(make_run({"grad_norm": norm, "loss": np.ones(N)}, header=LIMIT), RULE) == []


def test_a_limit_that_nobody_means_is_told_though_the_loss_falls(make_run, judge):
    """From the first rows on, and in a log of thirteen; not where the norm is as small, nor for a while only."""
    slip, falls = {"max_grad_norm": 1e-6, "total_steps": N}, 3 * np.exp(-ROW / 100)
    for rows in (N, 13):
        (finding,) = judge(make_run({"grad_norm": noise()[:rows], "loss": falls[:rows]}, header=slip), RULE)
        assert (finding.severity, finding.first_step, finding.state) == ("warning", 1, "active")
    for norm in (1e-5 * noise(), np.where(ROW < 100, 1e-7, 1.0) * noise()):
        assert judge(make_run({"grad_norm": norm, "loss": falls}, header=slip), RULE) == []


@pytest.mark.parametrize(("total", "count"), [(120, 1), (10 * N, 0)])
def test_half_of_the_planned_steps_is_time_enough_to_learn(total, count, make_run, judge):
    """A short run that stands still; of a long one it is too early to say."""
    columns = {"grad_norm": 500 * noise()[:120], "loss": 2 + 0.01 * noise(1)[:120]}
    assert len(judge(make_run(columns, header=LIMIT | {"total_steps": total}), RULE)) == count


@pytest.mark.parametrize(("falls", "planned", "found"), [(0.05, 50, 1), (0.3, 50, 0), (0.05, 200, 0), (0.05, None, 0)])
def test_fifty_rows_are_enough_if_they_are_the_whole_plan(falls, planned, found, make_run, judge):
    """Of a run of fifty epochs, say, that learned nothing; not where half of what there was came in the first twenty
    of them, nor at the beginning of a longer run, nor where the weights move or nobody knows: Adam minds no limit.
    """
    rows = np.arange(50)
    loss = 2 * (1 - falls * (1 - np.exp(-rows / 8))) + 0.01 * np.random.default_rng(0).standard_normal(50)
    header = LIMIT | ({"total_steps": planned} if planned else {})
    columns = {"grad_norm": 500 * noise()[:50], "loss": loss}
    assert judge(make_run(columns, header=header), RULE) == []
    for ratio, still in ((1e-5, found), (1e-4, 0)):
        run = make_run(columns | {"update_ratio/all": np.where(rows % 25 == 0, ratio, np.nan)}, header=header)
        assert len(judge(run, RULE)) == still


def test_fifty_rows_of_which_the_first_were_not_clipped(make_run, judge):
    """The loss came to its floor before."""
    norm = np.where(np.arange(60) < 20, 0.5, 500) * noise()[:60]
    run = make_run({"grad_norm": norm, "loss": np.full(60, 2.0)}, header=LIMIT | {"total_steps": 60})
    assert judge(run, RULE) == []
