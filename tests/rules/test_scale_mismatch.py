"""scale-mismatch: what training sums and evaluation averages; other units, priors and learning are no alarm."""

import numpy as np
import pytest

from trainwatch.diagnosis import diagnose

RULE = "scale-mismatch"
N = 200
ROW = np.arange(N)
FALL = np.exp(-ROW / 80)


def columns(seed=0, times=3000.0, weight=1.0, share=None, name="value", other="mask", improves=False):
    """A value of about 1 that training sums over so many numbers, beside a task that stands still."""
    random = np.random.default_rng(seed)
    noise = [np.exp(0.1 * random.standard_normal(N)) for _ in range(2)]
    value, mask = times * FALL * noise[0], (1.5 * (FALL if improves else 1.0)) * noise[1]
    found = {"loss": weight * value + mask, f"loss/{name}": value, f"loss/{other}": mask}
    found |= {f"weight/{name}": np.full(N, weight), f"weight/{other}": np.ones(N)}
    return found if share is None else found | {f"grad_share/{name}": np.full(N, share)}


def evaluations(name="value", every=20, factor=1.0, split="validation"):
    return [
        {"step": int(step), "split": split, f"loss/{name}": factor * float(np.exp(-step / 80))}
        for step in range(every, N + 1, every)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [None, 0.98])
def test_a_sum_beside_a_mean_is_a_warning(seed, share, make_run, judge):
    found = judge(make_run(columns(seed, share=share), evals=evaluations()), RULE)
    assert [(f.severity, f.subject, f.first_step) for f in found] == [("warning", "component:value", 1)]
    assert 2000 < found[0].evidence["ratio"] < 5000


def test_a_policy_is_what_its_critic_is_there_for(make_run, judge):
    """However small its surrogate is by nature."""
    run = make_run(columns(name="critic", other="policy"), evals=evaluations("critic"))
    assert [finding.severity for finding in judge(run, RULE)] == ["warning"]


def test_from_the_step_on_at_which_it_began(make_run, judge):
    late = columns()
    late["loss/value"] = np.where(ROW < 100, late["loss/value"] / 3000, late["loss/value"])
    found = judge(make_run(late, evals=evaluations()), RULE)
    assert [(f.severity, f.first_step) for f in found] == [("warning", 101)]


def test_it_explains_the_imbalance(make_run):
    told = {"components": {name: {"role": "task"} for name in ("value", "mask")}}
    diagnosis = diagnose(make_run(columns(share=0.999), evals=evaluations(), header=told))
    assert diagnosis.root_cause.rule == RULE
    assert "loss-scale-imbalance" in {rule for rule, _, _ in diagnosis.explained}


MILD = {
    "the other task learns all the same": columns(improves=True),
    "the other task has its share of the gradient": columns(share=0.4),
    "a prior beside a reconstruction": columns(other="kl"),
}


@pytest.mark.parametrize("name", MILD)
def test_where_nobody_loses_it_is_an_info(name, make_run, judge):
    assert [finding.severity for finding in judge(make_run(MILD[name], evals=evaluations()), RULE)] == ["info"]


SHIFTING = [row | {"loss/value": 10.0 ** -(row["step"] // 20 % 4)} for row in evaluations()]
HEALTHY = {
    "alike": (columns(times=1.0), evaluations()),
    "augmentation makes training harder": (columns(times=8.0), evaluations()),
    "a weight that makes up for the unit": (columns(weight=1 / 3000), evaluations()),
    "two evaluations": (columns(), evaluations(every=80)),
    "learned by heart, and not in validation": (columns(times=1.0), evaluations(factor=300.0)),
    "another scale each time": (columns(), SHIFTING),
    "alone": ({"loss": 3000 * FALL, "loss/value": 3000 * FALL}, evaluations()),
    "solved in validation": (columns(), evaluations(factor=0.0)),
    "an evaluation of the training set": (columns(), evaluations(split="train")),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    run, evals = HEALTHY[name]
    assert judge(make_run(run, evals=evals), RULE) == []
