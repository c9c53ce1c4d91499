"""Declared counts, what the batches held, and what the config does about it."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "class-imbalance"


@pytest.mark.parametrize(
    ("counts", "severity"),
    [
        ({"a": 797, "b": 195, "c": 8}, "critical"),
        ({"a": 300, "b": 20}, "info"),
        ({"a": 5000, "b": 90}, "critical"),
        ({"a": 280_000, "b": 490}, "info"),
        ({"verb": 954, "noun": 943, "adv": 395, "intj": 151, "prep": 121, "conj": 50}, "info"),
        ({"verb": 756, "noun": 723, "adv": 297, "prep": 86, "conj": 38, "intj": 4}, "warning"),
        ({"verb": 93, "noun": 91, "adv": 40, "name": 36, "prep": 12, "conj": 3}, "info"),
        ({f"c{i}": 1000 for i in range(20)} | {"rare": 10}, "warning"),
        ({"a": 500, "b": 0}, "critical"),
        ({"a": 900, "b": 100}, None),
        ({"a": 1000}, None),
        ({"a": 0, "b": 0}, None),
        ({f"word{i}": 10**6 // (i + 1) for i in range(3000)}, "info"),
        ({"a": "many", "b": None, "c": -5}, None),
    ],
)
def test_declared_counts(make_run, judge, counts, severity):
    """How far off the smallest class is, how many samples it has, the majority, and the length of the tail decide."""
    found = judge(make_run({"loss": np.ones(10)}, header={"classes": counts}), RULE)
    assert [finding.severity for finding in found] == ([severity] if severity else [])


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
    assert found.rank > 0
    even = random.binomial(6, 0.5, 100).astype(float)
    assert judge(make_run({"data/class/a": 6 - even, "data/class/b": even}), RULE) == []
