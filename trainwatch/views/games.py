"""Games: runs in which two players train against each other, or the data follow the policy that is trained.

There a loss that rises, swings or stands still says nothing of the health of either player. Only names tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainwatch.run import Run

EDGES = r"(^|[/_.-])({})($|[/_.-])"
PLAYERS = (
    r"d|disc(riminator)?|critic\d*|actor|policy|pg|ppo|grpo|a2c|sac|d?dqn|ddpg|td3?|adv(ersar(y|ial))?|(w|ls|cycle)?gan"
)
PLAYER = re.compile(EDGES.format(PLAYERS))
OPPONENT = re.compile(
    EDGES.format(
        rf"{PLAYERS}|g|gen(erator)?|real|fake|dom(ain)?|mi|values?|vf|qf?\d*|rewards?|returns?|advantages?|episodes?"
    )
)
"""Losses that follow an opponent or a reward: they may rise, and pull against the others, in health."""
SCORE = re.compile(EDGES.format(r"(ep_)?rew(ard)?s?|(ep_)?returns?|episod(es?|ic)|success(_rate)?"))
"""Figures of merit that only a game has; `metric/real_time` is none."""
CHANCE = re.compile(r"(?!loss/|weight/|lr/|grad)([\w.]+/)*(exploration(_rate)?|epsilon|eps_greedy)")
"""How often a policy acts at random: a whole name, for optimisers and privacy have an epsilon of theirs as well."""
IMPLICIT = re.compile(r"rewards?[/_](chosen|rejected|margins?|accurac(y|ies))$")
"""What preference optimisation (DPO and its kin) calls rewards: its own log-ratios on pairs that are given. It is
supervised, and its policy plays with nobody."""

PAID = re.compile(
    r"((metric|rollout|train|env|rewards?)/)?((mean|avg)_)?(ep(isode)?_)?(rew(ard)?s?|returns?)([_/]mean)?"
)
"""What a policy is paid: higher is better, whatever its loss says."""


EVALUATIONS = 6  # tell whether it is paid any better
FORETOLD = re.compile(EDGES.format(r"rewards?|returns?|advantages?|episodes?"))
"""Components that may be predictions of what others were paid, where the data are given."""


def opponent(name: str) -> bool:
    """Whether a component's name is that of a player, or of what a player is paid."""
    return bool(OPPONENT.search(name.lower()))


def plays(channels: Iterable[str]) -> bool:
    """Whether a run is a game by the names of its losses, of its modules and groups, or of its scores."""
    return _named_so(tuple(channels))


@lru_cache(maxsize=64)
def _named_so(channels: tuple[str, ...]) -> bool:
    """Half a dozen rules ask at every look, of names that stay the same."""
    names = [name.lower() for name in channels]
    if any(IMPLICIT.search(name) for name in names):
        names = [name.replace("policy", "") for name in names if not IMPLICIT.search(name)]
    return any(CHANCE.fullmatch(name) or _plays(*name.partition("/")[::2]) for name in names)


def contested(run: Run) -> bool:
    """Whether a run is a game, by all it records. One that holds out a loss, and is neither a player nor paid while it
    trains, learns from what is given: it foretells rewards, or counts them in the end. That is only said of one that is
    not paid for it: a world model that goes on exploring looks alike, and its losses rise as it does well.
    """
    pays = [name for name in run.eval.channels if PAID.fullmatch(name.lower())]
    if "loss" not in run.eval or not pays or not all(_unpaid(run.eval.curve(name)[1]) for name in pays):
        return plays([*run.train.channels, *run.eval.channels])
    told = {name for name in run.components() if FORETOLD.search(name.lower()) and not PLAYER.search(name.lower())}
    parts = ("loss/", "weight/", "grad_", "param_")  # what else bears the name is what it is paid
    ours = [name for name in run.train.channels if name.startswith(parts) and told.intersection(re.split("[/~]", name))]
    return plays(name for name in run.train.channels if name not in ours)


def _unpaid(values: NDArray[np.float64]) -> bool:
    """Whether what was paid in evaluations never rose, or half of the rise is gone."""
    gained = values.max() - values[0] if len(values) >= EVALUATIONS else -1.0
    return bool(gained >= 0 and np.median(values[-3:]) - values[0] <= gained / 2)


def paid(channels: Iterable[str]) -> str | None:
    """The channel of what the policy is paid, if one is recorded."""
    return next((name for name in channels if PAID.fullmatch(name.lower())), None)


def _plays(kind: str, name: str) -> bool:
    if kind == "loss":
        return bool(OPPONENT.search(name))
    if kind in ("lr", "grad_norm"):  # a generator may be a head, and a value a part of attention
        return bool(PLAYER.search(name.partition(".")[0]))
    return bool(SCORE.search(f"{kind}/{name}"))
