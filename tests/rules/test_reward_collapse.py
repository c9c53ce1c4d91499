"""reward-collapse: what a policy earned is lost again; noise, dips and harder tasks are no alarm."""

import numpy as np
import pytest

RULE = "reward-collapse"
RISES = np.array([-8.0, -7.8, -7.0, -6.0, -5.2, -4.8, -4.7, -4.7])


def evaluations(values, name="return"):
    return [{"step": 10 * i, "split": "validation", f"metric/{name}": float(v)} for i, v in enumerate(values, 1)]


def rewards(values):
    """Training's own reward, with its noise."""
    spread = 0.2 * np.random.default_rng(0).standard_normal(10 * len(values))
    return {"loss": np.ones(10 * len(values)), "reward": np.repeat(values, 10) + spread}


LOST = np.concatenate([RISES, [-6.0, -8.1, -8.2, -8.3]])


@pytest.mark.parametrize("columns", [rewards(LOST), {"loss": np.ones(120)}])
def test_told_from_the_evaluation_after_the_best(columns, make_run, judge):
    (found,) = judge(make_run(columns, evals=evaluations(LOST)), RULE)
    assert (found.severity, found.first_step, found.last_step) == ("warning", 90, 120)


@pytest.mark.parametrize("seed", range(20))
def test_a_reward_that_wanders_about_its_level_is_silent(seed, make_run, judge):
    values = np.random.default_rng(seed).standard_normal(20)
    assert judge(make_run(rewards(values), evals=evaluations(values)), RULE) == []


HEALTHY = {
    "it stays": np.concatenate([RISES, [-4.7, -4.6, -4.7]]),
    "half is left": np.concatenate([RISES, [-6.2, -6.3, -6.2]]),
    "two bad evaluations": np.concatenate([RISES, [-8.2, -8.3]]),
    "it comes back": np.concatenate([LOST, [-5.0]]),
    "one lucky evaluation": np.array([-8.0, -7.9, -8.1, -8.0, -4.0, -8.0, -8.1, -8.0, -7.9, -8.0]),
    "few": LOST[[0, 4, 6, 9, 10, 11]],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    assert judge(make_run({"loss": np.ones(150)}, evals=evaluations(HEALTHY[name])), RULE) == []


def test_another_figure_or_a_curriculum_or_a_good_policy_in_training(make_run, judge):
    """Tasks may become harder; and evaluations may be of another kind than what is trained."""
    harder = {"curriculum": {"name": "towers", "stages": [{"start": 0}, {"start": 90}]}}
    for run in (
        make_run(rewards(LOST), evals=evaluations(LOST, "arrived")),
        make_run(rewards(LOST), evals=evaluations(LOST), header=harder),
        make_run(rewards(np.concatenate([RISES, [-4.7, -4.7, -4.7, -4.7]])), evals=evaluations(LOST)),
    ):
        assert judge(run, RULE) == []
