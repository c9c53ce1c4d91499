"""Games are known by the names of their losses, players and scores."""

import numpy as np
import pytest

from trainwatch.views.components import Roles, small_by_design
from trainwatch.views.games import contested, opponent, plays

GAMES = ["loss/D", "loss/G_adv", "loss/loss_gen", "loss/disc_real", "loss/policy", "loss/value", "loss/qf1", "loss/ppo"]
GAMES += ["loss/critic/1", "loss/wgan_gp", "grad_norm/critic", "lr/discriminator", "metric/episode_reward"]
GAMES += ["metric/rollout/ep_rew_mean", "metric/success_rate", "loss/vf", "epsilon", "rollout/exploration_rate"]
OTHERS = ["loss/dice", "loss/general", "loss/gene_expression", "loss/discrete", "loss/discount", "loss/organ"]
OTHERS += ["loss/precursor", "clock/generator", "grad_norm/decoder", "lr/0", "metric/real_time", "metric/fake_news_f1"]
OTHERS += ["grad_norm/attention.value", "grad_norm/generator", "metric/value", "grad_norm/encoder.d"]
OTHERS += ["adam_epsilon", "loss/epsilon_insensitive", "loss/epsilon"]


@pytest.mark.parametrize("name", GAMES)
def test_a_goal_that_moves(name):
    """Losses of players, modules that judge, and what is paid."""
    assert plays(["loss", name])
    assert opponent(name.partition("/")[2]) or not name.startswith("loss/")


@pytest.mark.parametrize("name", OTHERS)
def test_a_goal_that_stands(name):
    """A name that begins as theirs, or that stands elsewhere, says nothing."""
    assert not plays(["loss", name])
    assert not opponent(name.partition("/")[2]) or not name.startswith("loss/")


def test_the_rewards_of_preference_optimisation():
    """They are its own, on pairs that are given; its policy is no player, unless it is paid as well."""
    names = ["loss", "loss/preference", "rewards/margins", "rewards/chosen", "lr/policy"]
    assert not plays(names)
    assert plays([*names, "metric/episode_reward"])
    assert plays(["loss", "lr/policy"])


def test_a_regulariser_and_the_regression_of_boxes():
    """By what stands beside it."""
    assert small_by_design("loss_reg", ["ce"])
    assert not small_by_design("reg", ["cls", "obj"])
    assert small_by_design("kl", ["cls"])
    pair = ["variance", "covariance"]
    assert all(small_by_design(name, ["invariance", *pair]) for name in pair)
    assert not any(small_by_design(name, ["pitch", name]) for name in pair)
    assert not small_by_design("invariance", pair)
    assert not Roles(names=("cls", "reg")).aside("reg")
    assert Roles(names=("ce", "reg")).aside("reg")
    assert not any(small_by_design(name, []) for name in ("cross_entropy", "loss.cross-entropy", "cross_ent"))
    assert all(small_by_design(name, []) for name in ("entropy", "policy_entropy", "ent_bonus"))


def test_a_time_that_is_called_real_silences_nothing(make_run, judge):
    """The loss diverges, whatever the evaluation is called."""
    row = np.arange(600)
    loss = 0.5 + 3 * np.exp(-row / 60) + 0.02 * np.maximum(row - 300, 0)
    loss = loss * np.exp(0.03 * np.random.default_rng(0).standard_normal(600))
    evals = [{"step": 100, "split": "valid", "metric/real_time": 3.0}]
    assert judge(make_run({"loss": loss}, evals=evals), "loss-divergence") != []


@pytest.mark.parametrize(
    ("more", "held", "rises", "game"),
    [
        ({}, True, 0.0, False),
        ({}, True, 1.0, True),  # a world model that goes on exploring
        ({}, False, 0.0, True),
        ({"loss/policy": 1.0}, True, 0.0, True),
        ({"reward/mean": 1.0}, True, 0.0, True),
    ],
)
def test_returns_that_are_foretold_from_recordings(more, held, rises, game, make_run):
    """A held-out loss, no player, nothing that is paid while it trains, and nothing gained in the end."""
    train = {"loss": 1.0, "loss/action": 1.0, "loss/return": 1.0, "weight/return": 1.0} | more
    measured = {"loss": 1.0} if held else {}
    evals = [{"step": step, "metric/return": 3.0 + rises * step} | measured for step in range(2, 10)]
    run = make_run({name: np.full(10, value) for name, value in train.items()}, evals=evals)
    assert contested(run) is game
