"""lr-too-high: large steps, and a loss that does not come down."""

import numpy as np
import pytest

RULE = "lr-too-high"
N = 300
ROW = np.arange(N)
SAMPLED = (ROW == 0) | ((ROW + 1) % 50 == 0)


def run_of(ratio, loss, **others):
    columns = {"update_ratio/main": np.where(SAMPLED, ratio, np.nan), "lr/main": np.full(N, 0.5), "loss": loss}
    return columns | {name.replace("__", "/"): values for name, values in others.items()}


def flat(seed=0):
    return 2.3 + 0.2 * np.random.default_rng(seed).standard_normal(N)


def test_steps_that_rewrite_the_weights_and_teach_nothing(make_run, judge):
    """With the rate to aim for; an info where the goal moves."""
    (finding,) = judge(make_run(run_of(0.4, flat())), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:main", 1)
    assert "from 0.5 to about 0.005" in finding.advice
    assert [f.severity for f in judge(make_run(run_of(0.4, flat(), loss__policy=flat())), RULE)] == ["info"]


def test_one_sample_is_enough_where_the_loss_blows_up(make_run, judge):
    """Forty rows that end in infinity."""
    loss = np.where(ROW < 20, 2.0 * 3.0 ** np.minimum(ROW, 20), np.inf)
    columns = {name: values[:40] for name, values in run_of(0.3, loss).items()}
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == ["critical"]


def test_a_group_without_a_single_ratio_is_no_matter(make_run, judge):
    """Its weights are all 0, so that there is none; the other is to blame."""
    loss = np.where(ROW < 20, 2.0 * 3.0 ** np.minimum(ROW, 20), np.inf)
    columns = run_of(0.3, loss, update_ratio__zeros=np.where(SAMPLED, np.inf, np.nan))
    (found,) = judge(make_run({name: values[:40] for name, values in columns.items()}), RULE)
    assert found.subject == "group:main"


@pytest.mark.parametrize("seed", range(20))
def test_large_ratios_of_a_run_that_learns_are_healthy(seed, make_run, judge):
    """Weights that begin at 0; large steps and a falling loss; ordinary steps, whatever the loss does."""
    falls = np.exp(-ROW / 80) * flat(seed)
    first = np.where(ROW < 50, 5.0, 1e-3)
    for columns in (run_of(first, flat(seed)), run_of(0.4, falls), run_of(0.01, flat(seed)), run_of(1e-3, 9 - falls)):
        assert judge(make_run(columns), RULE) == []


def test_weights_that_are_swept_away(make_run, judge):
    """From one sample to the next, while the loss jumps; games are no excuse. What begins at 0 leaps in health."""
    swept, jumps = np.where(ROW < 20, 10.0, 400.0), np.where(ROW < 20, 2.3, 2.5) * (1 + 3 * ((ROW > 9) & (ROW < 30)))
    columns = run_of(0.01, jumps * np.exp(-ROW / 200)) | {"weight_norm/main": np.where(SAMPLED, swept, np.nan)}
    for more in ({}, {"loss/actor": flat()}):
        (finding,) = judge(make_run(columns | more), RULE)
        assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:main", 1)
    assert judge(make_run(columns | {"loss": 2.3 * np.exp(-ROW / 200)}), RULE) == []
    late = np.where(ROW < 170, 2.3 * np.exp(-ROW / 50), 5.0)  # a bad batch: the rate was well until then
    broken = {"loss": late, "weight_norm/main": np.where(SAMPLED, np.where(ROW < 170, 10.0, 400.0), np.nan)}
    assert judge(make_run(columns | broken), RULE) == []


def test_a_step_that_doubles_all_weights_and_ends_the_learning(make_run, judge):
    """A loss that never comes down since; where it does, or one small group alone doubles, all is well."""
    norm = {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 20, 7.0, 20.0), np.nan)}
    ratio = np.where(ROW < 20, 0.4, 1e-4)
    (finding,) = judge(make_run(run_of(ratio, flat()) | norm), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 1)
    assert judge(make_run(run_of(ratio, np.exp(-ROW / 80) * flat()) | norm), RULE) == []
    assert (
        judge(make_run(run_of(ratio, flat()) | norm | {"weight_norm/b": np.where(SAMPLED, 90.0, np.nan)}), RULE) == []
    )


@pytest.mark.parametrize(("end", "count"), [(1.55, 1), (0.4, 0)])
def test_weights_that_are_swept_to_where_nothing_is_learned(end, count, make_run, judge):
    """The loss rises by a fifth only, and stands still for the rest of the run; where it comes down, all is well."""
    loss = np.where(ROW < 20, np.where(ROW > 5, 3.0, 2.5), np.where(end > 1, end, 2.5 * np.exp(-ROW / 60)))
    norm = {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 20, 30.0, 350.0), np.nan)}
    assert len(judge(make_run(run_of(0.01, loss * (flat() / 2.3) ** 0.2) | norm), RULE)) == count


def test_a_first_step_that_is_large_is_not_to_blame_for_what_comes_later(make_run, judge):
    """RMSprop begins so; a stage makes the loss thirty times as large long after, and a spike costs a row."""
    first = np.where(ROW < 20, 0.15, 0.01)
    later = np.where(ROW < 170, 1.0, 30.0)
    later[1] = 15.0
    assert judge(make_run(run_of(first, later)), RULE) == []
    assert [found.severity for found in judge(make_run(run_of(first, np.where(ROW < 9, 1.0, 30.0))), RULE)] == [
        "critical"
    ]


def test_weights_that_each_step_stirs_up(make_run, judge):
    """They grew at once, and the loss has stood ever since; not where it falls, or where weights are as they were."""
    loss = 3.3 + 1.4 * np.exp(-ROW / 4) + 0.1 * np.random.default_rng(0).standard_normal(N)
    thrown = {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 20, 70.0, 120.0), np.nan)}
    (finding,) = judge(make_run(run_of(0.03, loss) | thrown), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:main", 1)
    stays = {"weight_norm/main": np.where(SAMPLED, 70.0, np.nan)}
    falls = {"loss": loss * np.exp(-ROW / 100)}
    stages = {"curriculum": {"name": "P", "stages": [{"start": 0}, {"start": 150}]}}
    for columns, header in ((stays, None), (thrown | falls, None), (thrown, stages)):
        assert judge(make_run(run_of(0.03, loss) | columns, header=header), RULE) == []


@pytest.mark.parametrize(("best", "count"), [(0.4, 0), (0.9, 1)])
def test_what_comes_after_the_loss_is_learned_is_not_of_the_first_step(best, count, make_run, judge):
    """The last sample before the loss is lost was high: it is to blame only where nothing was learned since."""
    first = np.where(ROW == 0, 0.11, np.nan)
    loss = np.where(ROW < 60, best + (1 - best) * np.exp(-ROW / 10), 50.0)
    assert len(judge(make_run(run_of(first, loss)), RULE)) == count


def test_all_weights_together_are_thrown(make_run, judge):
    """By many long steps that teach little, or by one that is longer than all weights and costs what was there."""
    norm = np.where(SAMPLED, np.where(ROW < 10, 10.0, 28.0), np.nan)
    little, much = 2.3 - ROW / 600, 2.3 * np.exp(-ROW / 60)
    for loss, count in ((little, 1), (much, 0)):
        assert len(judge(make_run(run_of(0.05 * (ROW < 40), loss, weight_norm__main=norm)), RULE)) == count
    thrown = np.where(ROW == 2, 1e6, little)
    for ratio, count in ((3.0, 1), (0.05, 0)):
        norm = np.where(SAMPLED, np.where(ROW < 10, 10.0, 18.0), np.nan)
        columns = run_of(np.where(ROW < 10, ratio, 0.005), thrown, weight_norm__main=norm)
        assert len(judge(make_run(columns), RULE)) == count


@pytest.mark.parametrize(("after", "count"), [(1.3, 1), (1.1, 0)])
def test_what_a_model_knew_is_ruined_in_noise(after, count, make_run, judge):
    """An eighth of the run tells its level better than one row does; weights grew at once."""
    loss = np.where(ROW < 1, 0.9, after) + 0.14 * np.random.default_rng(0).standard_normal(N) * (ROW > 0)
    norm = {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 1, 10.0, 18.0), np.nan)}
    ratio = np.where(ROW < 1, 0.15, 1e-3)
    assert len(judge(make_run(run_of(ratio, loss) | norm), RULE)) == count


@pytest.mark.parametrize(("after", "told"), [(0.1, ["warning"]), (0.3, []), (0.7, [])])
def test_what_a_policy_was_paid_is_gone(after, told, make_run, judge):
    """Its loss says nothing; more than half of the first reward is lost for good, or was never to be had."""
    random, sampled = np.random.default_rng(0), ROW % 5 == 0
    reward = np.where(sampled, np.where(ROW < 1, 0.45, after) + 0.03 * random.standard_normal(N), np.nan)
    columns = run_of(np.where(ROW < 1, 0.045, 0.01), 0.01 * random.standard_normal(N), loss__policy=np.zeros(N))
    columns |= {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 1, 10.0, 25.0), np.nan), "reward": reward}
    found = judge(make_run(columns), RULE)
    assert [one.severity for one in found if one.severity != "info"] == told
    assert all("the reward goes from 0.4" in one.message for one in found if told)


@pytest.mark.parametrize(("end", "count"), [(1.0, 0), (40.0, 1)])
def test_a_first_step_that_was_made_good(end, count, make_run, judge):
    """RMSprop's first steps are many rates long: the loss overshoots a hundredfold, and is back by the next sample."""
    loss = np.where(ROW < 5, 300.0, end) * np.exp(-ROW / 400)
    loss[0] = 3.6
    columns = run_of(np.where(ROW < 1, 1.05, 0.01), loss) | {"stage": ROW // 100}
    columns |= {"weight_norm/main": np.where(SAMPLED, np.where(ROW < 1, 5.8, 10.3), np.nan)}
    assert len(judge(make_run(columns), RULE)) == count


@pytest.mark.parametrize(("weighed", "count"), [(True, 0), (False, 1)])
def test_a_loss_that_is_weighed_up_is_not_lost(weighed, count, make_run, judge):
    """Forty times as much in the last third, by its weight or by itself."""
    raw, up = 2 * np.exp(-ROW / 200), np.where(ROW < 200, 1.0, 60.0)
    more = {"loss/a": raw if weighed else raw * up, "weight/a": up if weighed else np.ones(N)}
    assert len(judge(make_run(run_of(0.4, raw * up) | more), RULE)) == count


@pytest.mark.parametrize("before", [-1.0, 1.0])
def test_weights_that_leap_where_no_loss_was_logged(before, make_run, judge):
    """It is said without the loss; and norms below 0, which are a mistake of the log, have no growth."""
    norm = np.where(SAMPLED, np.where(ROW < 60, before, 1e4), np.nan)
    loss = np.where((ROW >= 40) & (ROW <= 110), np.nan, flat())
    found = judge(make_run(run_of(1e-9, loss, weight_norm__main=norm)), RULE)
    assert [("grew" in one.message, "loss" in one.message) for one in found] == [(True, False)] * (before > 0)


def test_a_blow_is_no_height_from_which_to_learn(make_run, judge):
    """One step of four times all weights, a loss of 1e8 for some rows, and two thirds of the first one at the end."""
    rows = np.arange(120)
    sampled = (rows == 0) | ((rows + 1) % 50 == 0)
    loss = np.where(rows < 1, 2.8, 2.0 + 1e8 * np.exp(-2.0 * rows)) + 0.05 * np.random.default_rng(0).random(120)
    ratio, norm = np.select([rows == 0, rows == 49], [4.4, 0.015], 0.001), np.where(rows < 1, 7.4, 30.0)
    columns = {"loss": loss, "lr/main": np.full(120, 0.1), "grad_norm": np.ones(120)}
    columns |= {
        "update_ratio/main": np.where(sampled, ratio, np.nan),
        "weight_norm/main": np.where(sampled, norm, np.nan),
    }
    assert [one.severity for one in judge(make_run(columns), "lr-too-high")] == ["warning"]


@pytest.mark.parametrize(("rows", "end", "count"), [(120, 1.5, 1), (20, 1.5, 0), (120, 0.5, 0)])
@pytest.mark.parametrize("paid", ["metric/return", "reward/return"])
def test_thrown_for_long_and_back_to_hardly_less(rows, end, count, paid, make_run, judge):
    """Forty times its first loss for two fifths of the run, after a step as long as all weights. Returns that are only
    evaluated, beside a held-out loss, make it no game; those by which it learns do.
    """
    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal(N))
    loss = np.select([ROW == 0, rows > ROW], [2.3, 90.0], end) * noise
    columns = run_of(1.0, loss, loss__action=loss, loss__return=0 * loss)
    columns["update_ratio/main"] = np.where(ROW == 0, 1.0, np.nan)
    evals = [{"step": step, "loss": end, "metric/return": 0.1} for step in range(20, N, 20)]
    columns |= {paid: np.zeros(N)} if paid.startswith("reward") else {}
    assert [one.severity for one in judge(make_run(columns, evals=evals), RULE)] == (
        [] if not count else ["warning" if paid.startswith("metric") else "info"]
    )
