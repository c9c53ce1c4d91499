"""Noughts and crosses, learnt from play against itself, as AlphaZero learns (Silver et al. 2018).

A small network says for each board which moves are promising and how the game will end. Every five steps it plays games
against itself, and looks ahead a little: what it finds is what its policy learns, how the games ended is what its value
learns. The last generations of games are its replay. Cross-entropy, squared error and L2, Adam, a warm-up and a cosine,
clipping. It is checked on solved boards, and in games with an opponent who wins and blocks where he can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, declared, linear, logged, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 120
GAMES, WINDOW, GENERATION = 64, 4, 5  # games of a generation, generations of the replay, steps of a generation
BATCH, RATE, WARMUP, CLIP, SAVED = 256, 1e-2, 12, 1.0, 40
TRUST = 4.0  # how much more likely a better move is made
NOISE = 0.05  # chance of each legal move on top, lest the games be all the same
WEIGHTS = {"policy": 1.0, "value": 1.0, "l2": 1e-3}
LINES = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])
PLACES = torch.eye(9)
RECORDS = frozenset({"components", "norms", "checkpoints"})

# A board has 1 where the stones of the player to move are, and -1 where the other's are.


def won(boards: Tensor) -> Tensor:
    """Whether the stones that are 1 make a line. [..., 9] to [...]"""
    return (boards[..., LINES].sum(-1) == 3).any(-1)


class Player(nn.Module):
    """Boards in; logits of the nine moves and the expected end of the game, in -1..1, out."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        trunk = nn.Sequential(nn.Linear(34, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.layers = nn.ModuleDict({"trunk": trunk, "policy": nn.Linear(width, 9), "value": nn.Linear(width, 1)})
        self.logits = torch.zeros(())

    def forward(self, boards: Tensor) -> tuple[Tensor, Tensor]:
        sides = torch.stack([boards == 1, boards == -1], -2).float()
        features = self.layers["trunk"](torch.cat([sides, sides[..., LINES].sum(-1)], -1).flatten(-2))
        self.logits = self.layers["policy"](features).masked_fill(boards != 0, -20.0)  # no move may be made there
        return self.logits, torch.tanh(self.layers["value"](features))[..., 0]


@torch.no_grad()
def searched(model: nn.Module, boards: Tensor) -> Tensor:
    """How good each move looks: it wins, or lets the other win at once, or else as the model values it. [B, 9]"""
    made = boards[:, None] + PLACES
    lost, full = won(-made[:, :, None] + PLACES).any(-1), (made != 0).all(-1)
    ahead = torch.where(full, 0.0, torch.where(lost, -1.0, -model(-made)[1]))
    return (TRUST * torch.where(won(made), 1.0, ahead)).masked_fill(boards != 0, -torch.inf).softmax(-1)


@torch.no_grad()
def played(model: nn.Module, games: int, temperature: float = 1.0, opening: int = 0) -> Batch:
    """Games of a model against itself: boards `x`, the searched policy, the end of the game for who was to move.

    The first moves, as many as `opening` says, are made at random, and nobody learns from them.
    """
    boards, end = torch.zeros(games, 9), torch.zeros(games)
    going, rows = torch.ones(games, dtype=torch.bool), []
    for turn in range(9):
        policy = searched(model, boards) if turn >= opening else functional.normalize((boards == 0).float(), p=1.0)
        if turn >= opening:
            rows.append((boards, policy, going, 1 - 2 * (turn % 2)))
        moves = functional.normalize(policy ** (1.0 / temperature), p=1.0) + NOISE * (boards == 0)
        boards = boards + PLACES[torch.multinomial(moves, 1)[:, 0]]
        wins = going & won(boards)
        end = torch.where(wins, 1.0 - 2.0 * (turn % 2), end)
        boards, going = -boards, going & ~wins
    kept = [(board[on], policy[on], (end * side)[on]) for board, policy, on, side in rows]
    return dict(zip(("x", "policy", "end"), map(torch.cat, zip(*kept, strict=True)), strict=True))


class Replay:
    """The games of the last generations, of which batches are drawn; `window` is how many generations are kept."""

    def __init__(self, seed: int, window: int = WINDOW) -> None:
        self.kept: deque[Batch] = deque(maxlen=window)
        self.seed = seed

    def batch(self, number: int, size: int = BATCH) -> Batch:
        """Positions by chance; the same number finds the same ones as long as no game is added."""
        whole = {name: torch.cat([each[name] for each in self.kept]) for name in self.kept[0]}
        chance = torch.Generator().manual_seed(10_000 * self.seed + number)
        chosen = torch.randint(len(whole["x"]), (size,), generator=chance)
        return {name: values[chosen] for name, values in whole.items()}


@cache
def worth(board: tuple[int, ...]) -> int:
    """How the game ends for the player to move if nobody errs: 1, 0 or -1."""
    if bool(won(-torch.tensor(board))):
        return -1
    return max((-worth(after(board, place)) for place in range(9) if board[place] == 0), default=0)


def after(board: tuple[int, ...], place: int) -> tuple[int, ...]:
    """The board after a move, as the other player sees it."""
    return tuple(-stone for stone in (*board[:place], 1, *board[place + 1 :]))


@cache
def solved() -> Batch:
    """Boards that come up when moves are made at random: what they are worth, and which moves keep that."""
    chance, found = torch.Generator().manual_seed(3), set[tuple[int, ...]]()
    for _ in range(60):
        board = (0,) * 9
        for place in torch.randperm(9, generator=chance).tolist():
            if won(-torch.tensor(board)):
                break
            found.add(board)
            board = after(board, place)
    boards = sorted(found)
    best = [[board[at] == 0 and -worth(after(board, at)) == worth(board) for at in range(9)] for board in boards]
    ends = torch.tensor([worth(board) for board in boards]).float()
    return {"x": torch.tensor(boards).float(), "best": torch.tensor(best), "end": ends}


def careful(boards: Tensor, chance: torch.Generator) -> Tensor:
    """The moves of an opponent who wins where he can, else blocks, else does anything."""
    wins, blocks = won(boards[:, None] + PLACES), won(-boards[:, None] + PLACES)
    wish = (1.0 + 1e3 * blocks + 1e6 * wins) * (boards == 0)
    return torch.multinomial(wish, 1, generator=chance)[:, 0]


def score(model: nn.Module, games: int = 64) -> float:
    """Games against the careful opponent, half of them begun by him: a win counts 1, a draw a half."""
    chance, points = torch.Generator().manual_seed(5), 0.0
    for begins in (0, 1):
        boards, going = torch.zeros(games // 2, 9), torch.ones(games // 2, dtype=torch.bool)
        for turn in range(9):
            mine = turn % 2 == begins
            places = model(boards)[0].argmax(-1) if mine else careful(boards, chance)
            boards = boards + PLACES[places]
            wins = going & won(boards)
            points += float(wins.sum()) * mine
            boards, going = -boards, going & ~wins
        points += 0.5 * float(going.sum())
    return points / games


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropy with the searched policy, squared error of the end, squares of all weights."""
    logits, value = model(batch["x"])
    return {
        "policy": functional.cross_entropy(logits, batch["policy"]),
        "value": functional.mse_loss(value, batch["end"]),
        "l2": torch.stack([weight.square().sum() for weight in model.parameters()]).sum(),
    }


def measured(model: nn.Module) -> dict[str, float]:
    """On solved boards: how likely a best move is, in nats, and the error of the end; and the score in games."""
    logits, value = model(solved()["x"])
    odds = logits.masked_fill(~solved()["best"], -torch.inf)
    policy = (logits.logsumexp(-1) - odds.logsumexp(-1)).mean().item()
    error = functional.mse_loss(value, solved()["end"]).item()
    return {"loss": policy + error, "loss/policy": policy, "loss/value": error, "score": score(model)}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Player(), {"temperature": 1.0}
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}]),
        batches=Replay(seed).batch,
        losses=losses,
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        now=now,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.logits,
        evaluation=Evaluation(10, measured),
        header={
            "config": {"batch_size": BATCH, "games": GAMES, "window": WINDOW, "steps_per_generation": GENERATION}
            | {"weights": dict(WEIGHTS)},
            "components": {"policy": {"unit": "nat"}, "value": {"role": "task"}, "l2": {"role": "regulariser"}},
            "schedules": {},
            "checkpoint_every": SAVED,
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    self_playing(parts)
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def self_playing(parts: Parts, games: int = GAMES, size: int = BATCH, window: int = WINDOW, endgames: int = 0) -> Parts:
    """Games are played where a generation begins, the first ones as endgames, and batches drawn of the last ones."""
    replay = Replay(parts.seed, window)

    def plays(step: int) -> None:
        if step % GENERATION == 1:
            opening = 5 if step <= endgames else 0
            replay.kept.append(played(parts.model, games, parts.now["temperature"], opening))

    parts.begins, parts.batches = [plays], partial(replay.batch, size=size)
    parts.header["config"] |= {"games": games, "batch_size": size, "window": window}
    return parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a player that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        parts.begins[0](number + 1)
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled player goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/200.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def cooling(parts: Parts) -> Parts:
    """Moves are drawn ever less by chance: a clock drives the temperature over three quarters of the run."""
    over = 3 * parts.steps // 4
    parts.clocks, parts.records = {"cooling": lambda applied: applied}, RECORDS | {"clocks"}
    parts.scheduled = {"temperature": ("cooling", linear(2.0, 0.5, over))}
    parts.header["schedules"]["temperature"] = declared("linear", 2.0, 0.5, over, clock="cooling")
    parts.header["clocks"] = ["cooling"]
    return parts


def endgames_first(parts: Parts) -> Parts:
    """For a fifth of the run games begin after five moves of chance; whole games are harder, and the loss rises."""
    start = parts.steps // 5
    moves = ((0, "endgames", [5, 8]), (start, "games", [0, 8]))
    stages = [{"start": at, "name": name, "data": {"moves": limits}} for at, name, limits in moves]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "endgames-first", "stages": stages}
    parts.extras = [lambda step, batch: {"stage": int(step > start)}]  # noqa: ARG005
    return self_playing(parts, endgames=start)


def curious(parts: Parts) -> Parts:
    """Who is too sure pays: the entropy of the policy counts below zero."""

    def both(model: nn.Module, batch: Batch) -> Components:
        raw = losses(model, batch)
        told = model.logits.log_softmax(-1)
        return raw | {"entropy": (told.exp() * told).sum(-1).mean()}

    weights = WEIGHTS | {"entropy": 0.05}
    parts.header["components"]["entropy"] = {"unit": "nat", "role": "regulariser"}
    parts.header["config"]["weights"] = weights
    return replace(parts, losses=both, weights=lambda applied: dict(weights))  # noqa: ARG005


def momentum(parts: Parts) -> Parts:
    """Plain gradient descent with momentum, as in the paper."""
    groups = [{"params": [*parts.model.parameters()], "name": "all"}]
    parts.header["config"]["optimizer"] = "sgd"
    return annealed(replace(parts, optimizer=torch.optim.SGD(groups, momentum=0.9)), 0.4)


def watched(parts: Parts) -> Parts:
    """The loaders are wrapped, that of the solved boards, too."""
    parts.evaluation = Evaluation(10, measured, held=solved())
    return replace(parts, records=RECORDS | {"waits", "optimizer"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={"total_steps": STEPS}, evaluation=None),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(2 * SAVED), records=RECORDS | {"optimizer"})),
    "fine-tuning": lambda parts: logged(continued(parts, 1e-5)),
    "batch-8": lambda parts: logged(self_playing(continued(parts, 1e-5), size=8)),
    "every-tenth": lambda parts: logged(parts, 10),
    "cooling": lambda parts: logged(cooling(parts)),
    "endgames-first": lambda parts: logged(endgames_first(parts)),
    "long-memory": lambda parts: logged(self_playing(parts, window=STEPS // GENERATION)),
    "curious": lambda parts: logged(curious(parts)),
    "momentum": lambda parts: logged(momentum(parts)),
    "watched": lambda parts: logged(watched(parts)),
}


def component_untracked(parts: Parts) -> int:
    """The squares of the weights are added where the loss is differentiated, ten times too many, and never logged."""
    parts.losses = lambda model, batch: {name: value for name, value in losses(model, batch).items() if name != "l2"}
    parts.weights = lambda applied: {"policy": 1.0, "value": 1.0}  # noqa: ARG005
    del parts.header["components"]["l2"], parts.header["config"]["weights"]["l2"]
    return mistakes.component_untracked(parts)


def component_sign(parts: Parts) -> int:
    """Somebody wrote the penalty as a reward."""
    parts.header["config"]["weights"]["l2"] = -3e-3
    return mistakes.component_sign(parts, "l2", -3e-3)


def too_little_data(parts: Parts) -> int:
    """The actors hang after their first three games."""
    plays = self_playing(parts, games=3).begins[0]
    parts.begins = [lambda step: plays(step) if step == 1 else None]
    return GENERATION + 1


def root_of_zero(parts: Parts) -> int:
    """And then a game is asked of a player whose weights are no numbers."""
    parts.fails = True
    return mistakes.root_of_zero(parts)


OWN: dict[str, mistakes.Mistake] = {
    "component-untracked": component_untracked,
    "component-sign": component_sign,
    "too-little-data": too_little_data,
    "component-scale": partial(mistakes.component_scale, name="value"),
    "local-counter": partial(mistakes.local_counter, stride=GENERATION),
    "root-of-zero": root_of_zero,
    "rate-too-high": partial(mistakes.rate_too_high, by=50.0),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*(*OWN, "tiny-clip", "stale-optimiser", "resume-restarts-schedule", "counter-reset", "killed"),)
TWINS = {
    **dict.fromkeys(("component-untracked", "component-sign", "component-scale"), "long-memory"),
    **dict.fromkeys(("too-little-data", "rate-too-high", "stale-optimiser"), "long-memory"),
    "local-counter": "cooling",
    "tiny-clip": "momentum",
    "resume-restarts-schedule": "resumed",
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)
