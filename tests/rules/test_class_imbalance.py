"""Declared counts, what the batches held, and what the config does about it."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "class-imbalance"


LOST = {f"c{i}": 1000 for i in range(20)} | {"rare": 10}
TAIL = {"cousin of": 2100, "child of": 967, "friend of": 642, "consul of": 16, "mayor of": 12}


def evaluated(figures, steps=300, header=None):
    """Ten evaluations of a run whose training loss is 0.5; a figure is one number, or one for each of them."""
    evals = [
        {"step": steps * (n + 1) // 10, "split": "validation"}
        | {name: float(np.broadcast_to(values, 10)[n]) for name, values in figures.items()}
        for n in range(10)
    ]
    return {"columns": {"loss": np.full(steps, 0.5)}, "header": header, "evals": evals}


@pytest.mark.parametrize(
    ("counts", "severity"),
    [
        ({"a": 797, "b": 195, "c": 8}, "info"),
        ({"a": 5000, "b": 90}, "info"),
        (LOST, "info"),
        (TAIL, "info"),
        ({"a": 500, "b": 0}, None),  # a name that is reserved
        ({"a": 900, "b": 100}, None),
        ({"a": 1000}, None),
        ({"a": 0, "b": 0}, None),
        ({f"word{i}": 10**6 // (i + 1) for i in range(3000)}, "info"),
        ({"a": "many", "b": None, "c": -5}, None),
    ],
)
def test_declared_counts_prove_nothing(make_run, judge, counts, severity):
    """However far apart they are: words, relations and defects are so by nature."""
    found = judge(make_run({"loss": np.ones(10)}, header={"classes": counts}), RULE)
    assert [finding.severity for finding in found] == ([severity] if severity else [])


GAP = {"loss": np.linspace(0.6, 1.5, 10)}
GROWING = np.linspace(0.5, 0.9, 10)


@pytest.mark.parametrize(
    ("counts", "figures", "severity"),
    [
        (LOST, GAP, "warning"),  # validation has that class, training hardly
        (LOST, {"loss": 0.6}, "info"),
        (LOST, {"loss": 2.0}, "info"),  # another quantity from the first on
        (TAIL, GAP, "info"),  # learned by heart, as such graphs are
        ({"a": 797, "b": 195, "c": 8}, GAP, "warning"),
        ({"a": 797, "b": 195, "c": 8}, GAP | {"metric/recall_c": GROWING}, "info"),
        ({"a": 797, "b": 195, "c": 8}, GAP | {"metric/balanced_accuracy": GROWING}, "info"),
        ({"a": 797, "b": 195, "c": 8}, {"metric/recall_c": GROWING, "metric/map_min": 0.0}, "info"),
        ({"a": 797, "b": 195, "c": 8}, {"metric/min_acc_gap": 0.0}, "info"),
        ({"0": 9000, "1": 60}, {"metric/recall_1": 0.0}, "critical"),
        ({"0": 9000, "1": 60}, {"metric/precision/1_of_2": 0.0, "metric/recall_at_1": 0.0}, "info"),
        ({"0": 9000, "1": 60}, {"metric/recall_1": 0.7, "metric/precision/0.5_1": 0.0}, "info"),
        ({"a": 6000, "b": 3500, "c": 500}, {"metric/accuracy": np.linspace(0.6, 0.609, 10)}, "info"),
        ({"a": 6000, "b": 3500, "c": 500}, {"metric/accuracy": np.r_[0.3, np.full(8, 0.6), 0.601]}, "warning"),
        ({"a": 5000, "b": 90}, GAP, "info"),  # two classes are no tail, and ninety samples not few
        (LOST, {"metric/lowest_recall": 0.0}, "warning"),
        (TAIL, {"metric/lowest_recall": 0.0}, "info"),
        (TAIL | {"mayor": 8}, {"metric/recall/mayor": 0.0}, "critical"),
        (TAIL | {"mayor": 8}, {"metric/recall/mayor": [0, 0, 0, 0, 0, 0, 0, 0, 0.1, 0]}, "info"),
        ({"a": 5000, "b": 90}, {"metric/accuracy": 5000 / 5090}, "critical"),
        ({"a": 5000, "b": 90}, {"metric/accuracy": 0.98}, "info"),
        ({"a": 5000, "b": 90}, {"metric/accuracy": 5000 / 5090, "metric/auc": GROWING}, "info"),
    ],
)
def test_a_proof_makes_it_an_alarm(make_run, judge, counts, figures, severity):
    """A figure of the class at 0, accuracy at the share of the largest, or a loss that only validation pays."""
    case = evaluated(figures, header={"classes": counts})
    (found,) = judge(make_run(case.pop("columns"), **case), RULE)
    assert found.severity == severity


def test_rare_classes_are_learned_late(make_run, judge):
    """Before half of the plan a recall of 0 is a beginning."""
    case = evaluated({"metric/recall/rare": 0.0}, header={"classes": LOST, "total_steps": 1000})
    (found,) = judge(make_run(case.pop("columns"), end=None, **case), RULE)
    assert found.severity == "info"


@pytest.mark.parametrize(("steps", "severity"), [(300, "critical"), (600, "warning")])
def test_until_the_plan_is_done_it_is_a_warning(make_run, judge, steps, severity):
    """What stands at 0 may rise yet."""
    case = evaluated({"metric/iou/b": 0.0}, header={"classes": {"a": 5000, "b": 90}, "total_steps": steps})
    (found,) = judge(make_run(case.pop("columns"), end=None, **case), RULE)
    assert found.severity == severity


def test_a_name_without_samples_is_no_class(make_run, judge):
    """An id that is reserved: nothing is neglected."""
    case = evaluated(GAP, header={"classes": {"unused": 0, "a": 3000, "b": 3000, "c": 2500}})
    assert judge(make_run(case.pop("columns"), **case), RULE) == []


def test_the_sentence(make_run, judge):
    """79.7 % beside 0.8 %."""
    (found,) = judge(make_run(header={"classes": {"fit": 797, "mid": 195, "unfit": 8}}), RULE)
    assert found.message == ("fit has 79.7% of the samples that are declared, unfit has 0.8%: 100 times as many.")


@pytest.mark.parametrize(
    "config",
    [{"loss": {"class_weights": "inverse"}}, {"data": {"sampler": "WeightedRandomSampler"}}, {"loss": "FocalLoss"}],
)
def test_what_the_config_answers_is_worth_knowing_only(make_run, judge, config):
    """A weight, a sampler, a focal loss."""
    (found,) = judge(make_run(header={"classes": {"a": 1000, "b": 10}, "config": config}), RULE)
    assert found.severity == "info"


def test_what_was_drawn_counts_more_than_what_was_declared(make_run, judge):
    """Evened out by a sampler; or made worse by the loader."""
    even = {f"data/class/{name}": np.full(300, 16.0) for name in "ab"}
    (found,) = judge(make_run(even, header={"classes": {"a": 5000, "b": 50}}), RULE)
    assert (found.severity, found.state) == ("info", "over")
    skewed = {"data/class/a": np.full(300, 32.0)}
    (found,) = judge(make_run(skewed, header={"classes": {"a": 500, "b": 500}}), RULE)
    assert found.severity == "critical"
    assert "b has 0%" in found.message
    assert found.message.endswith(", where 4,800 were due.")


def test_few_batches_prove_nothing(make_run, judge):
    """Thirty steps of a sampler may miss a class."""
    assert judge(make_run({"data/class/a": np.full(30, 8.0), "data/class/b": np.zeros(30)}), RULE) == []


def test_counts_that_are_none_do_not_count(make_run, judge):
    """Negative or infinite sums; and sums are rounded alike, however the rows are cut."""
    drawn = {"data/class/a": np.full(300, 16.1), "data/class/b": np.full(300, 0.3)}
    (whole,) = judge(make_run(drawn), RULE)
    drawn["data/class/b"][:100] = -1e6
    (found,) = judge(make_run(drawn), RULE)
    assert found.evidence["smallest"] == pytest.approx(60)
    drawn["data/class/a"][:] = 1e308
    assert judge(make_run(drawn), RULE) == []
    run, engine = make_run(header={}, end=None), Engine()
    for first in range(0, 300, 20):
        rows = {"data/class/a": np.full(20, 16.1), "data/class/b": np.full(20, 0.3)}
        make_run(rows | {"step": np.arange(first + 1, first + 21)}, end=None, onto=run)
        engine.feed(run)
    assert [finding for finding in engine.findings(run) if finding.rule == RULE] == [whole]


def test_small_batches_in_many_rows(make_run, judge):
    """Six hundred samples of two classes are enough; an even draw is none."""
    random = np.random.default_rng(0)
    rare = random.binomial(6, 0.01, 100).astype(float)
    (found,) = judge(make_run({"data/class/a": 6 - rare, "data/class/b": rare}), RULE)
    assert found.severity == "info"
    even = random.binomial(6, 0.5, 100).astype(float)
    assert judge(make_run({"data/class/a": 6 - even, "data/class/b": even}), RULE) == []


FRAUD = {"legitimate": 8712, "fraud": 72}
RISING = {"metric/auc": np.linspace(0.4, 0.77, 10)}


@pytest.mark.parametrize(
    ("header", "figures", "alarms"),
    [
        ({}, {"metric/recall": 0.0}, 1),
        ({}, {"metric/recall": 0.0} | RISING, 0),  # they are ranked, and no answer reaches a half
        ({"config": {"pos_weight": 1.0}}, {"metric/recall": 0.0}, 1),  # no answer
        ({"config": {"pos_weight": 29.0}}, {"metric/recall": 0.0} | RISING, 0),
        ({"config": {"class_weights": True}}, {"metric/recall": 0.0} | RISING, 0),
        ({}, {"metric/recall": np.r_[np.zeros(9), 0.1]} | RISING, 0),
        ({}, {"metric/recall@10": 0.0, "metric/precision": 0.0} | RISING, 0),
        ({}, RISING, 0),
        ({"classes": FRAUD | {"unsure": 900}}, {"metric/recall": 0.0} | RISING, 0),  # of which class?
        ({"total_steps": 500}, {"metric/recall": 0.0} | RISING, 0),  # rare classes are learned late
    ],
)
def test_of_two_classes_the_recall_is_that_of_the_rare_one(header, figures, alarms, make_run, judge):
    run = evaluated(figures, header={"classes": FRAUD} | header)
    found = judge(make_run(**run, end=None if "total_steps" in header else "finished"), RULE)
    assert [one.severity for one in found] == ["warning" if alarms else "info"]
