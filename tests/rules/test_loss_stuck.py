"""loss-stuck: nothing was learned, with a proof; without one it is no alarm."""

import math
import os
import time

import numpy as np
import pytest

from trainwatch.diagnosis import diagnose
from trainwatch.readers import read

RULE = "loss-stuck"
CLASSES = {"classes": {str(index): 100 for index in range(10)}}


def flat(n, level, seed=0, noise=0.02):
    return level + noise * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("n", [40, 400, 2000])
def test_each_proof(make_run, judge, n):
    """One number; a gradient of 0; no update; the cost of guessing, by equal shares and by unequal ones."""
    level = math.log(10)
    prior = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    for columns, header, word in (
        ({"loss": np.full(n, 2.302585)}, {}, "in every row"),
        ({"loss": flat(n, 10.3), "grad_norm": np.zeros(n)}, {}, "gradient is exactly 0"),
        ({"loss": flat(n, 10.3), "update_ratio/main": np.where(np.arange(n) % 10, np.nan, 0.0)}, {}, "do not move"),
        ({"loss": flat(n, level)}, CLASSES, "ln 10"),
        ({"loss": flat(n, prior, noise=0.01)}, {"classes": {"a": 900, "b": 100}}, "shares"),
    ):
        (found,) = judge(make_run(columns, header=header), RULE)
        assert (found.severity, found.first_step, found.last_step) == ("warning", 1, n)
        assert word in found.message


def test_a_loss_that_no_batch_changes_is_a_proof(make_run, judge):
    """Whose batches are known to differ, and whose validation stands as still."""
    n, random = 200, np.random.default_rng(0)
    evals = [{"step": 20 * i, "loss": 3.8, "metric/mrr": 0.0353 + 1e-5 * (i % 2)} for i in range(1, 11)]
    better = [row | {"metric/mrr": 0.002 * row["step"]} for row in evals]
    blind = {"loss": flat(n, 3.8, noise=5e-4), "data/fingerprint": random.integers(1 << 31, size=n)}
    (found,) = judge(make_run(blind, evals=evals), RULE)
    assert (found.severity, "the same for every batch" in found.message) == ("warning", True)
    for columns, figures in (
        (blind | {"loss": flat(n, 3.8, noise=0.01)}, evals),  # some batches are harder
        (blind | {"data/fingerprint": np.full(n, 7)}, evals),  # one batch, over and over
        ({"loss": blind["loss"]}, evals),
        (blind, better),  # a large constant in the loss
        (blind, []),
    ):
        assert [f for f in judge(make_run(columns, evals=figures), RULE) if f.severity != "info"] == []


def test_an_accuracy_at_chance_is_a_proof(make_run, judge):
    """No classes are declared, but exp(-loss) is the accuracy."""
    evals = [{"step": 50 * i, "split": "valid", "metric/acc": 0.1 + 0.002 * i} for i in range(1, 5)]
    (found,) = judge(make_run({"loss": flat(300, math.log(10))}, evals=evals), RULE)
    assert "accuracy" in found.message
    assert found.severity == "warning"


@pytest.mark.parametrize("seed", range(10))
def test_without_a_proof_it_is_no_alarm(make_run, judge, seed):
    """Fine-tuning at the floor, games, a loss beside ln K by chance; and what learns is not even an info."""
    n = 500
    for columns in ({"loss": flat(n, 0.05, seed)}, {"loss": flat(n, 2.3, seed), "lr/a": 1e-6}):
        assert {f.severity for f in judge(make_run(columns), RULE)} <= {"info"}
    learns = 2.3 - 0.5 * np.linspace(0, 1, n)
    for columns, header in (
        ({"loss": flat(n, 0, seed)}, {}),
        ({"loss": flat(n, 0.7, seed), "loss/gen": 1.0}, {}),
        ({"loss": learns + flat(n, 0, seed)}, CLASSES),
        ({"loss": np.zeros(n)}, {}),
        ({"loss": flat(n, 0.05, seed)}, {"resumed_from": 7}),
    ):
        assert judge(make_run(columns, header=header), RULE) == []


def test_a_quarter_of_the_planned_steps_is_waited_for(make_run, judge):
    """A slow warm-up stands at ln K too; so does a task that is learned at once, later."""
    columns = {"loss": flat(200, math.log(10))}
    assert judge(make_run(columns, header={**CLASSES, "total_steps": 1000}, end=None), RULE) == []
    assert len(judge(make_run(columns, header={**CLASSES, "total_steps": 700}, end=None), RULE)) == 1
    later = np.where(np.arange(600) < 300, math.log(10), 0.5) + flat(600, 0)
    assert judge(make_run({"loss": later}, header=CLASSES), RULE) == []


def guessed(accuracy, loss=2.4):
    return [{"step": 50 * i, "split": "valid", "metric/accuracy": accuracy, "loss": loss} for i in range(1, 9)]


def test_a_validation_that_is_no_better_than_a_guess(make_run, judge):
    """The training loss falls all the same: it is learnt by heart."""
    falls = 2.4 - 0.5 * np.linspace(0, 1, 400) + flat(400, 0)
    (found,) = judge(make_run({"loss": falls}, header=CLASSES, evals=guessed(0.1)), RULE)
    assert (found.severity, found.last_step) == ("warning", 400)
    assert "guess" in found.message
    for evals in (guessed(0.3), guessed(0.1, loss=2.1)):
        assert judge(make_run({"loss": falls}, header=CLASSES, evals=evals), RULE) == []
    skill = [{"step": 50 * i, "split": "valid", "metric/r2": 0.01 * (-1) ** i} for i in range(1, 9)]
    assert len(judge(make_run({"loss": falls}, evals=skill), RULE)) == 1
    early = make_run({"loss": falls}, header={**CLASSES, "total_steps": 1000}, evals=guessed(0.1), end=None)
    assert judge(early, RULE) == []


def test_no_answer_is_right_and_the_loss_stands(make_run, judge):
    """One that still falls is on its way."""
    stands = np.where(np.arange(400) < 40, 3.4 - 0.03 * np.arange(400), 2.2) + flat(400, 0)
    falls = 3.4 * 0.997 ** np.arange(400) + flat(400, 0)
    for loss, alarms in ((stands, 1), (falls, 0)):
        found = judge(make_run({"loss": loss}, evals=guessed(0.0)), RULE)
        assert len([one for one in found if one.rank]) == alarms


@pytest.mark.parametrize("name", ["exact", "iou", "tags/f1_macro"])
def test_an_overlap_of_nothing_all_along(name, make_run, judge):
    """Where the loss came down to what is common, and where it never moved; not where something is right in the end."""
    common = 2.2 + 1.2 * np.exp(-np.arange(400) / 20) + flat(400, 0)
    for loss in (common, flat(400, 2.2)):
        for best, alarms in ((0.0, 1), (0.1, 0)):
            evals = [{"step": 50 * i, "split": "valid", f"metric/{name}": best * i / 8} for i in range(1, 9)]
            found = judge(make_run({"loss": loss}, evals=evals), RULE)
            assert len([one for one in found if one.rank]) == alarms


@pytest.mark.parametrize(("last", "alarms"), [(5.8, 0), (11.0, 1)])
def test_a_class_that_is_most_of_them_beside_an_error_that_is_learned(last, alarms, make_run, judge):
    """The accuracy stands at the largest class's share; what else is asked for is measured in a unit of its own."""
    falls = 3.0 * np.exp(-np.arange(400) / 80) + 0.5
    evals = [one | {"metric/error_db": last + (12.0 - last) * 0.5**i} for i, one in enumerate(guessed(0.1))]
    assert len(judge(make_run({"loss": falls}, header=CLASSES, evals=evals), RULE)) == alarms


def test_who_is_sure_and_right_does_not_guess(make_run, judge):
    """Fine-tuning at the floor: exp(-loss) is the accuracy there. A few noisy rows stand at any level."""
    evals = [{"step": 50 * i, "split": "valid", "metric/acc": 0.95} for i in range(1, 5)]
    for columns, header in (
        ({"loss": flat(300, 0.05, noise=0.005)}, {}),
        ({"loss": flat(40, math.log(2), noise=0.5)}, {"classes": {"a": 1, "b": 1}}),
    ):
        assert {one.severity for one in judge(make_run(columns, header=header, evals=evals), RULE)} <= {"info"}


@pytest.mark.parametrize(("error", "alarms"), [(1.0, 1), (0.4, 0)])
def test_a_rate_of_errors_that_never_left_one(error, alarms, make_run, judge):
    """What saying nothing costs, while the loss came down to a level and stands."""
    loss = flat(200, 3.0) + 4 * np.exp(-np.arange(200) / 10)
    evals = [{"step": 20 * i, "split": "valid", "metric/word_error": error} for i in range(1, 11)]
    assert len(judge(make_run({"loss": loss}, header={"total_steps": 200}, evals=evals), RULE)) == alarms


def test_the_first_step_of_a_warm_up_moves_nothing(make_run, judge):
    """It is of rate 0; two probes of one row are no proof."""
    ratio = np.full(40, np.nan)
    ratio[0] = 0.0
    assert judge(make_run({"loss": flat(40, 0.5), "update_ratio/a": ratio, "update_ratio/b": ratio}), RULE) == []


@pytest.mark.parametrize(("level", "lucky", "alarms"), [(math.log(10), 0.2, 1), (2.0, 0.2, 0), (math.log(10), 0.5, 0)])
def test_one_task_of_several_costs_a_guess(level, lucky, alarms, make_run, judge):
    """A lucky evaluation is forgiven; another task is learned meanwhile."""
    ones, falls = np.ones(400), 3.0 - 2.0 * np.linspace(0, 1, 400)
    table = {"loss/a": flat(400, level), "loss/b": falls, "loss": flat(400, level) + falls}
    evals = [one | {"loss/a": level, "loss": 3.0 + level} for one in guessed(0.1)]
    for one in evals[2 if lucky < 0.5 else 0 : 3 if lucky < 0.5 else 8]:
        one["metric/accuracy"] = lucky
    run = make_run(table | {"weight/a": ones, "weight/b": ones}, header=CLASSES, evals=evals)
    assert len(judge(run, RULE)) == alarms


@pytest.mark.parametrize(
    ("level", "role", "alarms"), [(math.log(10), "task", 1), (2.0, "task", 0), (math.log(10), "auxiliary", 0)]
)
def test_one_task_costs_a_guess_and_no_figure_tells(level, role, alarms, make_run, judge):
    """Its loss is proof enough, in training and in validation."""
    falls = 3.0 - 2.0 * np.linspace(0, 1, 400)
    table = {"loss/a": flat(400, level), "loss/b": falls, "loss": flat(400, level) + falls}
    evals = [{"step": 50 * i, "split": "valid", "loss/a": level, "loss": 3.0 + level} for i in range(1, 9)]
    header = CLASSES | {"components": {"a": {"role": role}, "b": {"role": "task"}}}
    run = make_run(table | {"weight/a": np.ones(400), "weight/b": np.ones(400)}, header=header, evals=evals)
    assert [found.first_step for found in judge(run, RULE)] == [1] * alarms
    late = make_run(table | {"weight/a": 1.0 * (np.arange(400) >= 100)}, header=header, evals=evals)
    assert [found.first_step for found in judge(late, RULE)] == [101] * alarms


@pytest.mark.parametrize(("rows", "alarms"), [(80, 0), (200, 1)])
def test_a_guess_during_the_warm_up_is_none_yet(rows, alarms, make_run, judge):
    """Small weights begin at a guess and stay there while the rate is small: as many steps more are awaited."""
    warms = {"loss": flat(rows, math.log(10)), "lr/all": 0.1 * np.minimum(1, (1 + np.arange(rows)) / 77)}
    assert len(judge(make_run(warms, header=CLASSES | {"total_steps": 300}), RULE)) == alarms


def test_an_auc_of_a_half_is_told_of_a_log_without_an_end(tmp_path):
    """Its accuracy tells nothing without shares; nor does a run whose AUC left the half, or that is still written."""
    path = tmp_path / "training_log.csv"

    def told(aucs, age=10**6):
        rows = [f"{epoch},{0.6931 + 0.02 * 0.5**epoch},{auc},{0.01 * epoch}" for epoch, auc in enumerate(aucs)]
        path.write_text("\n".join(["epoch,loss,val_auc,val_accuracy", *rows, ""]))
        os.utime(path, (time.time() - age,) * 2)
        return [finding.severity for finding in diagnose(read(path)).findings if finding.rule == RULE]

    half = 0.5 + 0.001 * np.sin(np.arange(28))
    assert told(half) == ["warning"]
    assert told(half, age=0) == []
    assert told(half + 0.01 * np.arange(28)) == []


@pytest.mark.parametrize(
    ("first", "last", "gained", "alarms"),
    [
        (0.125, 0.08, 0.0, 1),
        (0.125, 0.08, 0.5, 0),  # training learns: overfitting has its own rules
        (0.125, 0.12, 0.0, 0),  # at the floor
        (0.9, 0.6, 0.0, 0),  # a good model may be spoilt on purpose: forgetting, pruning
    ],
)
def test_right_answers_that_only_become_fewer(first, last, gained, alarms, make_run, judge):
    """Labels that do not belong to their pictures; a margin that grows raises the loss besides. Another figure of right
    answers that does not fall says that something was learned.
    """
    loss = flat(100, 5.8) + np.linspace(0, 0.3, 100) - gained * np.linspace(0, 2, 100)
    values = last + (first - last) * np.exp(-np.arange(10) / 2)
    evals = [{"step": 10 * (i + 1), "loss": 5.0, "metric/recall_at_1": value} for i, value in enumerate(values)]
    found = judge(make_run({"loss": loss}, header={"total_steps": 100}, evals=evals), RULE)
    assert [one.severity for one in found] == ["warning"] * alarms
    beside = [{**one, "metric/accuracy": 0.3 + 0.01 * i} for i, one in enumerate(evals)]
    assert judge(make_run({"loss": loss}, header={"total_steps": 100}, evals=beside), RULE) == []
