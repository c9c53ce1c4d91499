"""metric-stuck: a success rate that stays at chance."""

import numpy as np
import pytest

RULE = "metric-stuck"


def found(make_run, judge, values, name="success_rate", end="finished"):
    evals = [{"step": 10 * i, "split": "test", f"metric/{name}": v} for i, v in enumerate(values, 1)]
    return judge(make_run({"loss": np.ones(10 * len(values))}, evals=evals, end=end), RULE)


def chance(count, rate=0.07, seed=0):
    return np.random.default_rng(seed).binomial(240, rate, count) / 240


@pytest.mark.parametrize("seed", range(20))
def test_success_at_chance(make_run, judge, seed):
    (one,) = found(make_run, judge, chance(43, seed=seed))
    assert (one.severity, one.subject, one.first_step, one.last_step) == ("warning", "split:test", 10, 430)
    assert "never rose in 43 evaluations" in one.message


def test_none_at_all(make_run, judge):
    assert len(found(make_run, judge, np.zeros(40), "test/is_success".rpartition("/")[2].replace("is_", ""))) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_rises_late_or_is_young(make_run, judge, seed):
    """A rare reward that is found at last; a rise within the noise of one evaluation; a run of twenty evaluations."""
    late = np.concatenate([chance(30, 0.02, seed), np.linspace(0.02, 0.6, 13)])
    slow = np.random.default_rng(seed).binomial(240, np.linspace(0.02, 0.15, 45)) / 240
    for values in (late, slow, chance(20, seed=seed)):
        assert found(make_run, judge, values) == []


def test_other_figures_are_let_alone(make_run, judge):
    """An accuracy of many classes may stand low for long; so may what is no share."""
    assert found(make_run, judge, chance(43), "accuracy") == []
    assert found(make_run, judge, -chance(43)) == []
    assert found(make_run, judge, 100 * chance(43)) == []


def test_while_it_runs_it_is_an_info(make_run, judge, monkeypatch):
    monkeypatch.setattr("trainwatch.run.Run.status", lambda *_: "running")
    (one,) = found(make_run, judge, chance(43), end=None)
    assert one.severity == "info"


@pytest.mark.parametrize("name", ["mean_dice", "val_acc", "mIoU", "mAP50"])
def test_a_merit_of_nothing_beside_a_loss_that_falls(make_run, judge, name):
    """A class index that is off by one: what the loss learns the figure never sees."""

    def judged(values, falls=True):
        evals = [{"step": 10 * i, "split": "validation", f"metric/{name}": v} for i, v in enumerate(values, 1)]
        loss = np.linspace(2, 0.5 if falls else 1.9, 10 * len(values))
        return judge(make_run({"loss": loss}, evals=evals, end="finished"), RULE)

    nothing = [0, 0, 0.003, 0, 0.0005, 0, 0.001, 0, 0]
    (one,) = judged(nothing)
    assert (one.severity, one.subject) == ("warning", "split:validation")
    assert "while the training loss fell from 1.9" in one.message
    assert judged(nothing, falls=False) == []  # nothing is learned: another story
    assert judged(nothing[:7]) == []  # a beginning
    assert judged([*nothing, 0.004]) == []  # it rises
    assert judged([*nothing, 0.5]) == []


@pytest.mark.parametrize(
    ("name", "beside"),
    [("f1_rare", {}), ("mAP_95", {}), ("accuracy_gap", {}), ("adv_acc", {}), ("mAP", {"accuracy": 0.04})],
)
def test_a_share_that_is_nothing_in_health(make_run, judge, name, beside):
    """Of one class, of a strict threshold, a spread, under attack; or another figure of that split rises."""
    evals = [
        {"step": 10 * i, "split": "test", f"metric/{name}": 0.004 - 0.0001 * i}
        | {f"metric/{other}": 0.4 + slope * i for other, slope in beside.items()}
        for i in range(1, 11)
    ]
    assert judge(make_run({"loss": np.linspace(2, 0.5, 100)}, evals=evals, end="finished"), RULE) == []


def returns(make_run, judge, tested, pay, **more):
    """Ten evaluations of a policy, and what it was paid in 100 rows of training."""
    evals = [{"step": 10 * i, "split": "test", "metric/return": v} for i, v in enumerate(tested, 1)]
    header = more.pop("header", {})
    return judge(make_run({"loss/policy": np.ones(100)} | pay | more, evals=evals, end="finished", header=header), RULE)


UNTRAINED = np.concatenate([np.linspace(-8, -11, 15), np.full(85, -11.5)])
WORSE = np.concatenate([[-11.5], np.full(9, -12.3)])


def test_a_policy_that_is_paid_less_than_untrained(make_run, judge):
    """The sign of the advantage is wrong: what turns out badly is done more often."""
    wander = 0.2 * np.random.default_rng(0).standard_normal(100)
    (one,) = returns(make_run, judge, WORSE, {"reward/return": UNTRAINED + wander})
    assert (one.severity, one.subject) == ("info", "split:test")  # an opponent that learns looks alike
    assert "The test return never rose in 10 evaluations" in one.message
    assert "advantage" in one.advice


@pytest.mark.parametrize(
    ("tested", "pay", "more"),
    [
        (WORSE, {}, {}),  # nothing is known of what it was paid in training
        (WORSE[::-1], {"reward/return": UNTRAINED}, {}),  # it rises
        ([*WORSE[:-1], -11.4], {"reward/return": UNTRAINED}, {}),  # at last
        (WORSE[:7], {"reward/return": UNTRAINED}, {}),  # a beginning
        (WORSE, {"reward/return": UNTRAINED[::-1]}, {}),
        (WORSE, {"reward/return": 0.1 * UNTRAINED - 7}, {}),  # a trained one that wanders
        (WORSE, {"reward/return": UNTRAINED}, {"stage": np.repeat([0.0, 1.0], 50)}),  # the task became harder
        (WORSE, {"reward/return": UNTRAINED}, {"header": {"resumed_from": 500}}),
    ],
)
def test_a_policy_of_which_that_is_not_known(make_run, judge, tested, pay, more):
    assert returns(make_run, judge, tested, pay, **more) == []


def test_a_trained_policy_that_wanders(make_run, judge):
    """Its returns go up and down slowly, around what they were."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        slow = np.zeros(100)
        for i in range(1, 100):
            slow[i] = 0.97 * slow[i - 1] + 0.2 * random.standard_normal()
        assert returns(make_run, judge, -4 + slow[9::10], {"reward/return": -4 + slow}) == []


@pytest.mark.parametrize(
    ("ends", "kinds", "name", "count"),
    [
        (0.105, 10.0, "map", 1),
        (0.105, 10.0, "val_acc", 1),
        (0.2, 10.0, "map", 0),  # twice what a guess is worth
        (0.105, 2.0, "map", 0),
        (0.105, np.nan, "map", 0),  # nobody knows what a guess is worth
        (0.105, 10.0, "f1", 0),
    ],
)
def test_answers_as_good_as_a_guess(make_run, judge, ends, kinds, name, count):
    """Ten classes, and labels that belong to other inputs: retrieval is where chance puts it."""
    values = np.linspace(0.25, ends, 10)
    evals = [{"step": 10 * i, "split": "valid", f"metric/{name}": v} for i, v in enumerate(values, 1)]
    table = {"loss": np.linspace(1.05, 0.99, 100), "data/label_kinds": np.full(100, kinds)}
    assert len(judge(make_run(table, evals=evals, end="finished"), RULE)) == count


def test_what_was_known_and_is_to_be_forgotten(make_run, judge):
    """An old task, and an attack beside a clean split that learns."""
    table = {"loss": np.linspace(2.3, 0.4, 100), "data/label_kinds": np.full(100, 10.0)}
    old = [{"step": 10 * i, "split": "old", "metric/acc": v} for i, v in enumerate(np.linspace(0.97, 0.01, 10), 1)]
    assert judge(make_run(table, evals=old, end="finished"), RULE) == []
    pgd = [{"step": 10 * i, "split": "pgd", "metric/acc": v} for i, v in enumerate(np.linspace(0.1, 0.01, 10), 1)]
    clean = [{"step": 10 * i, "split": "clean", "metric/acc": v} for i, v in enumerate(np.linspace(0.1, 0.95, 10), 1)]
    assert judge(make_run(table, evals=[*pgd, *clean], end="finished"), RULE) == []


def test_what_is_paid_hides_no_alarm(make_run, judge):
    """A split has one finding: a success rate that stays at chance, and not the info on its return."""
    figures = [{"metric/return": -11.0 - min(i, 5) / 5, "metric/success_rate": 0.02} for i in range(1, 41)]
    evals = [{"step": 2 * i, "split": "test"} | figure for i, figure in enumerate(figures, 1)]
    table = {"reward/return": UNTRAINED, "loss/policy": np.ones(100)}
    (one,) = judge(make_run(table, evals=evals, end="finished"), RULE)
    assert (one.severity, "success_rate never rose" in one.message) == ("warning", True)
