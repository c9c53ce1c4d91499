"""overfitting: validation rises while training falls; noise, divergence and a new stage are none."""

import numpy as np
import pytest

STEPS = np.arange(1, 2001)
TRAIN = 0.3 + 2.0 * np.exp(-STEPS / 400)


def evals(values, **more):
    return [{"step": 100 * (i + 1), "split": "valid", "loss": float(v), **more} for i, v in enumerate(values)]


def course(up=0.05, noise=0.01, seed=0, best=7):
    """20 evaluations: down to the best one at step 100 x (best + 1), then up by ``up`` each."""
    k = np.arange(20)
    values = np.where(k <= best, 1.0 + 0.15 * (best - k), 1.0 + up * (k - best))
    return values + noise * np.random.default_rng(seed).standard_normal(20)


def test_validation_rises_while_training_falls(make_run, judge):
    """It began at the best evaluation, and is a warning."""
    (found,) = judge(make_run({"loss": TRAIN}, evals=evals(course(noise=0.0))), "overfitting")
    assert (found.severity, found.subject, found.first_step, found.state) == ("warning", "split:valid", 800, "active")
    assert found.last_step == 2000
    assert found.evidence["best"] == pytest.approx(1.0)
    assert found.evidence["train_now"] < found.evidence["train_at_best"]


def test_each_split_and_component_is_judged_apart(make_run, judge):
    """A healthy split beside a sick one, and components where no total is evaluated."""
    sick = evals(course(noise=0.0))
    fine = [{**record, "split": "test", "loss": 1.0} for record in sick]
    parts = [{"step": r["step"], "split": "part", "loss/a": r["loss"], "loss/b": 1.0} for r in sick]
    train = [{**record, "split": "train"} for record in sick]
    run = make_run({"loss": TRAIN, "loss/a": TRAIN, "loss/b": TRAIN}, evals=[*sick, *fine, *parts, *train])
    assert {finding.subject for finding in judge(run, "overfitting")} == {"split:valid", "component:a"}


@pytest.mark.parametrize("seed", range(20))
def test_noise_at_the_floor_is_none(make_run, judge, seed):
    """A converged loss scatters; also around 0, below 0, and while training still falls a little."""
    random = np.random.default_rng(seed)
    for level, scatter in ((1.0, 0.03), (0.0, 0.01), (-5.0, 0.2), (1e-4, 1e-4)):
        values = level + np.exp(-np.arange(60) / 3) + scatter * random.standard_normal(60)
        steps = np.arange(1, 6001)
        run = make_run({"loss": level + np.exp(-steps / 3000)}, evals=evals(values))
        assert judge(run, "overfitting") == []


def test_divergence_is_another_sickness(make_run, judge):
    """Training rises too."""
    assert judge(make_run({"loss": TRAIN[::-1]}, evals=evals(course())), "overfitting") == []


def test_a_new_stage_starts_afresh(make_run, judge):
    """Harder data from step 800 on: validation that rises with it is the plan."""
    values = np.concatenate([1 - 0.05 * np.arange(8), np.full(12, 1.5)])
    run = make_run({"loss": TRAIN, "stage": STEPS > 800}, evals=evals(values))
    assert judge(run, "overfitting") == []
    stages = [{"start": 0, "weights": {}}, {"start": 801, "weights": {}}]
    run = make_run({"loss": TRAIN}, header={"curriculum": {"name": "A", "stages": stages}}, evals=evals(values))
    assert judge(run, "overfitting") == []


def test_it_is_over_when_validation_finds_a_new_best(make_run, judge):
    """The finding stays, closed."""
    values = [*course(noise=0.0), 0.9, 0.8, 0.7]
    steps = np.arange(1, 2301)
    (found,) = judge(make_run({"loss": np.exp(-steps / 900)}, evals=evals(values)), "overfitting")
    assert (found.first_step, found.state, found.last_step) == (800, "over", 2100)


def test_repeated_evaluations_count_once(make_run, judge):
    """Three evaluations of one checkpoint are one."""
    twice = [{**r, "weights_step": r["step"] // 1000} for r in evals(course())]
    again = [{**r, "repeat": 1.0, "loss": 9.0} for r in evals(np.ones(8))]
    assert judge(make_run({"loss": TRAIN}, evals=[*twice, *again]), "overfitting") == []


@pytest.mark.parametrize("seed", range(10))
def test_a_mild_rise_after_a_steep_descent(make_run, judge, seed):
    """A quarter of the best, in twenty evaluations: the descent is no scatter."""
    share = np.arange(1, 21) / 20
    values = 0.8 + 1.2 * np.exp(-10 * share) + 0.4 * np.maximum(0, share - 0.3)
    values *= 1 + 0.01 * np.random.default_rng(seed).standard_normal(20)
    assert len(judge(make_run({"loss": TRAIN}, evals=evals(values)), "overfitting")) == 1


def test_a_training_loss_that_breaks_leaves_the_finding_as_it_was(make_run, judge):
    """NaN is neither falling nor standing."""
    train = np.where(STEPS < 1800, TRAIN, np.nan)
    (found,) = judge(make_run({"loss": train}, evals=evals(course(noise=0.0))), "overfitting")
    assert (found.state, found.last_step) == ("active", 1800)  # of its rows, 99 are finite
    assert "nan" not in found.message


def test_a_component_below_a_total_that_is_well(make_run, judge):
    """b rises where a falls; a regulariser may rise."""
    rise, flat = course(noise=0.0), np.ones(20)
    rows = [{**r, "loss": float(t), "loss/b": r["loss"]} for r, t in zip(evals(rise), flat, strict=True)]
    columns = {"loss": TRAIN + 1, "loss/b": TRAIN}
    (found,) = judge(make_run(columns, evals=rows), "overfitting")
    assert (found.subject, found.severity) == ("component:b", "warning")
    gains = [{**row, "loss": 9.0 - i / 4} for i, row in enumerate(rows)]
    assert [one.severity for one in judge(make_run(columns, evals=gains), "overfitting")] == ["info"]
    header = {"components": {"b": {"role": "regulariser"}}}
    assert judge(make_run(columns, header=header, evals=rows), "overfitting") == []


@pytest.mark.parametrize(("best", "alarms"), [(7, 1), (17, 0)])
def test_a_slow_rise_counts_once_it_lasts(best, alarms, make_run, judge):
    """Four percent of the best value, a fifth of what was gained, over more than five evaluations."""
    k = np.arange(20)
    values = 2.6 + np.where(k <= best, 0.07 * (best - k) * 7 / best, 0.01 * (k - best))
    assert len(judge(make_run({"loss": TRAIN}, evals=evals(values)), "overfitting")) == alarms


def test_the_stages_that_really_run_count(make_run, judge):
    """As for every other rule: a stage that makes validation harder is no overfitting."""
    plans = {"curriculum": [0], "curriculum_running": [0, 990]}
    header = {name: {"name": "P", "stages": [{"start": at} for at in begins]} for name, begins in plans.items()}
    values = np.where(np.arange(1, 21) * 100 < 990, 0.5, 0.9)
    assert judge(make_run({"loss": TRAIN}, evals=evals(values)), "overfitting") != []
    assert judge(make_run({"loss": TRAIN}, header=header, evals=evals(values)), "overfitting") == []


@pytest.mark.parametrize(("weight", "count"), [(0.0, 0), (1.0, 2)])
def test_what_is_not_trained_yet_may_rise(make_run, judge, weight, count):
    """A total that counts a component of weight 0 is another than the one that is trained."""
    rising = course(noise=0.0)
    records = [{"step": r["step"], "split": "v", "loss/a": 0.5, "loss/b": r["loss"]} for r in evals(rising)]
    records = [record | {"loss": record["loss/a"] + record["loss/b"]} for record in records]
    columns = {"loss/a": TRAIN, "loss/b": TRAIN, "loss": TRAIN * (1 + weight)}
    columns |= {"weight/a": np.ones(2000), "weight/b": np.full(2000, weight)}
    assert len(judge(make_run(columns, evals=records), "overfitting")) == count


@pytest.mark.parametrize(("end", "count"), [(1.0, 0), (0.0, 1)])
def test_a_total_under_a_weight_that_rises(make_run, judge, end, count):
    """It rises with the weight, and no overfitting is in it."""
    weight = 0.5 + end * STEPS / 2000
    prior = 2.0 if end else 2 * course(noise=0.0, up=0.2)
    values = 0.5 + weight[99::100] * prior
    run = make_run({"loss": TRAIN, "weight/a": np.ones(2000), "weight/kl": weight}, evals=evals(values))
    assert len(judge(run, "overfitting")) == count


@pytest.mark.parametrize(("end", "alarms"), [(0.2, 1), (0.95, 0)])
def test_a_rise_of_two_per_cent_counts_where_training_gains_alone(end, alarms, make_run, judge):
    """It is less than a seventh of what validation had gained."""
    train = np.interp(STEPS, [1, 800, 2000], [2.0, 1.0, end])
    values = np.concatenate([1.4 - 0.05 * np.arange(8), 1.05 + 0.0022 * np.arange(1, 13)])
    assert len(judge(make_run({"loss": train}, evals=evals(values)), "overfitting")) == alarms


@pytest.mark.parametrize(("end", "count"), [(0.04, 1), (0.25, 0)])
def test_three_evaluations_are_enough_where_training_has_halved(make_run, judge, end, count):
    """A curve that bends is no scatter. Where training gains little, a few evaluations prove nothing."""
    steps = np.arange(1, 121)
    train = np.interp(steps, (1, 60, 120), (1.4, 0.27, end))
    run = make_run({"loss": train}, evals=[
        {"step": 20 * (i + 1), "split": "valid", "loss": v} for i, v in enumerate((1.2, 1.1, 1.06, 1.15, 1.21, 1.24))
    ])  # fmt: skip
    assert len(judge(run, "overfitting")) == count


def test_one_sickness_of_several_splits_is_one_finding(make_run, judge):
    """Of the one that it was said of first, with the others named; a healthy one is not among them."""
    sick = evals(course(noise=0.0))
    others = [{**one, "split": name, "loss": one["loss"] + 1.0} for one in sick for name in ("seen", "far")]
    fine = [{**one, "split": "test", "loss": 1.0} for one in sick]
    (found,) = judge(make_run({"loss": TRAIN}, evals=[*sick, *others, *fine]), "overfitting")
    assert (found.subject, found.first_step, found.evidence["also"]) == ("split:valid", 800, "far, seen")
    assert found.message.endswith("So it is in far, seen.")


@pytest.mark.parametrize(("last", "severity"), [(2.0, "info"), (9.0, "warning")])
def test_a_component_of_a_total_that_is_weighed_for_later(make_run, judge, last, severity):
    """Validation weighs as the last stage does: whether it still finds new bests is seen by its own values."""
    rise = course(noise=0.0)
    rows = [
        {**r, "loss": float(t), "loss/b": r["loss"]} for r, t in zip(evals(rise), np.linspace(6, last, 20), strict=True)
    ]
    columns = {"loss": TRAIN, "loss/b": TRAIN, "weight/b": np.ones(2000)}
    assert [one.severity for one in judge(make_run(columns, evals=rows), "overfitting")] == [severity]


@pytest.mark.parametrize(
    ("height", "whole", "stands", "severity"),
    [
        (0.06, 0.02, True, "info"),
        (0.06, 0.02, False, "warning"),  # it goes on rising
        (0.06, 0.06, True, "warning"),  # so far does the whole rise
        (0.15, 0.02, True, "warning"),
    ],
)
def test_a_components_small_rise_that_is_over(height, whole, stands, severity, make_run, judge):
    """Tasks trade so much, while the whole hardly rises; taking an earlier checkpoint would gain little."""
    k = np.arange(30)
    up = np.clip((k - 7) / (6 if stands else 22), 0, 1) * (1 if stands else 22 / 6)
    down = 0.05 * np.maximum(7 - k, 0)
    rows = evals(1 + down + height * up)
    rows = [
        {**row, "loss/b": row["loss"], "loss": 2 + 2 * d + 2 * whole * u}
        for row, d, u in zip(rows, down, up, strict=True)
    ]
    step = np.arange(1, 3001)
    train = 0.3 + 2.0 * np.exp(-step / 600)
    found = judge(make_run({"loss": 2 * train, "loss/a": train, "loss/b": train}, evals=rows), "overfitting")
    assert [one.severity for one in found if one.subject == "component:b"] == [severity]


WAVES = 1.0 - 0.02 * np.arange(20) + 0.12 * np.maximum(np.sin(np.arange(20)), 0)
"""Validation that wanders, and comes to new bests again and again."""


def test_what_ends_in_a_new_best_was_no_alarm(make_run, judge):
    """Where no whole is logged too: a wave that found back by itself is an info once it is over."""
    parts = [{"step": r["step"], "split": "valid", "loss/a": r["loss"], "loss/b": r["loss"]} for r in evals(WAVES)]
    found = judge(make_run({"loss/a": TRAIN, "loss/b": TRAIN}, evals=parts), "overfitting")
    assert {finding.severity for finding in found if finding.state == "over"} <= {"info"}


@pytest.mark.parametrize("logged", [True, False])
def test_a_component_that_rises_while_the_whole_is_lower_is_an_info(make_run, judge, logged):
    """Taking the checkpoint where the component was best would lose more of the others than it gains of it."""
    rising, falling = course(noise=0.0), np.linspace(6.0, 3.0, 20)
    falling[-4:] = falling[-4]  # the whole stands at last
    whole = rising + falling
    parts = [
        {"step": 100 * (i + 1), "split": "valid", "loss/a": a, "loss/b": b} | ({"loss": w} if logged else {})
        for i, (a, b, w) in enumerate(zip(rising.tolist(), falling.tolist(), whole.tolist(), strict=True))
    ]
    run = make_run({"loss": 2 * TRAIN, "loss/a": TRAIN, "loss/b": TRAIN}, evals=parts)
    assert {(finding.subject, finding.severity) for finding in judge(run, "overfitting")} == {("component:a", "info")}


def test_what_came_back_by_itself_is_an_info(make_run, judge):
    """To the best value, if not below it."""
    values = [*course(noise=0.0)[:14], 1.2, 1.1, 1.03, 1.01, 1.01, 1.01]
    (found,) = judge(make_run({"loss": TRAIN}, evals=evals(values)), "overfitting")
    assert (found.severity, found.state, found.first_step) == ("info", "over", 800)


@pytest.mark.parametrize(
    ("train", "accuracy", "severity"), [(3.0, 0.9, "info"), (3.0, 0.5, "warning"), (0.5, 0.9, "warning")]
)
def test_a_target_that_moves_is_not_learned_by_heart(train, accuracy, severity, make_run, judge):
    """Training stays above validation, and a figure of merit is better than ever: both are asked for more."""
    rows = evals(course(noise=0.0, best=2))
    rows = [{**row, "metric/accuracy": 0.5 + (accuracy - 0.5) * i / 19} for i, row in enumerate(rows)]
    run = make_run({"loss": TRAIN - 0.3 + train}, evals=rows)
    assert [found.severity for found in judge(run, "overfitting")] == [severity]


def test_a_loss_that_is_exactly_0_again_has_found_back(make_run, judge):
    """All is right on that set, now and then all but one: nothing is better than 0, and one split is named once."""
    rise = np.linspace(0.2, 0.4, 8)
    values = np.concatenate([[1.0, 0.5, 0.0], rise, [0.0, 0.0], rise, [0.0] * 6, [1e-9]])
    steps = np.arange(1, 2801)
    found = judge(make_run({"loss": 0.5 + np.exp(-steps / 1000)}, evals=evals(values)), "overfitting")
    assert [(one.severity, one.state) for one in found] == [("info", "over")]
    assert "e-10" not in found[0].message
    assert "So it is in" not in found[0].message


@pytest.mark.parametrize(("last", "better"), [(0.9, True), (0.5, False)])
def test_a_cross_entropy_that_rises_while_accuracy_does_is_told_so(make_run, judge, last, better):
    """It learns by heart all the same: a warning, which says what got better."""
    records = evals(course(noise=0.0))
    accuracy = np.append(np.linspace(0.5, 0.7, 8), np.linspace(0.7, last, 12))
    rows = [{**one, "metric/accuracy": float(value)} for one, value in zip(records, accuracy, strict=True)]
    (found,) = judge(make_run({"loss": TRAIN}, evals=rows), "overfitting")
    assert (found.severity, found.message.endswith("the model is better.")) == ("warning", better)
