"""A courier who learns from recordings alone: a decision transformer on episodes of a small game that is played here.

On a grid of six by six a parcel lies somewhere; who reaches it gets a point, and the next one appears. Couriers of all
skills were recorded. A causal transformer of two blocks reads where the courier stands, the points that are still to
come and what was done; it names the next move, then what that does to the place and to the points to come. AdamW, a
warm-up, a cosine. What counts is the return of episodes that it plays itself, asked for more than most of them got.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.attention import Block
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, logged, planned
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS, SAVED = 120, 20
SIDE, LENGTH, CONTEXT, ASKED = 6, 16, 6, 5.0  # cells, moves of an episode and those that are read, points asked for
EPISODES, HELD, BATCH = 1280, 160, 32
WIDTH, RATE, WARMUP, CLIP = 32, 6e-3, 10, 1.0
MOVES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])
WEIGHTS = {"action": 1.0, "return": 0.5, "state": 0.5}
RECORDS = frozenset({"components", "checkpoints"})
WATCHED = RECORDS | {"norms", "optimizer"}

Array = NDArray[Any]
Policy = Callable[[list[Array], list[Array], list[Array]], Array]
"""Names the next move of each game by the states, moves and points so far."""


def play(policy: Policy, count: int, random: np.random.Generator) -> tuple[Array, Array, Array]:
    """States [game, move + 1, 4], moves and points of games: where the courier is, and the parcel from there."""
    states, moves, points = list[Array](), list[Array](), list[Array]()
    here, parcel = random.integers(0, SIDE, (2, count, 2))
    for _ in range(LENGTH):
        states.append(np.concatenate([here, parcel - here], 1) / SIDE)
        moves.append(policy(states, moves, points))
        here = np.clip(here + MOVES[moves[-1]], 0, SIDE - 1)
        found = (here == parcel).all(1)
        parcel = np.where(found[:, None], random.integers(0, SIDE, (count, 2)), parcel)
        points.append(found.astype(float))
    states.append(np.concatenate([here, parcel - here], 1) / SIDE)
    return np.stack(states, 1), np.stack(moves, 1), np.stack(points, 1)


@cache
def recorded() -> Batch:
    """Windows of recorded episodes, those of each episode together.

    `x` are states, `did` the moves that are read and `y` those to be named, `to_come` the points still to come; `then`
    and `left` are states and points after the move; `skill` is the courier's, `got` what the whole episode brought.
    """
    random, count = np.random.default_rng(59), EPISODES + HELD
    skill = random.uniform(0.0, 1.0, count)

    def courier(states: list[Array], moves: list[Array], points: list[Array]) -> Array:  # noqa: ARG001
        """Towards the parcel as often as the skill says, else anywhere."""
        nearer = states[-1][:, 2:] @ MOVES.T + 1e-3 * random.random((count, 4))
        return np.where(random.random(count) < skill, nearer.argmax(1), random.integers(0, 4, count))

    states, moves, points = play(courier, count, random)
    to_come = np.cumsum(np.pad(points, ((0, 0), (0, 1)))[:, ::-1], 1)[:, ::-1]
    starts = range(0, LENGTH - CONTEXT + 1, 4)

    def windows(values: Array, later: int = 0) -> Tensor:
        cut = [values[:, start + later : start + later + CONTEXT] for start in starts]
        flat = torch.from_numpy(np.stack(cut, 1)).flatten(0, 1)
        return flat.float() if flat.is_floating_point() else flat

    whole = {"skill": skill, "got": points.sum(1)}
    return {
        "x": windows(states),
        "then": windows(states, 1),
        "did": windows(moves),
        "y": windows(moves),
        "to_come": windows(to_come),
        "left": windows(to_come, 1),
        **{name: torch.from_numpy(values).float().repeat_interleave(len(starts)) for name, values in whole.items()},
    }


def part(held: bool = False) -> Batch:
    """The windows to learn from, or those held out; by episodes."""
    border = len(recorded()["x"]) * EPISODES // (EPISODES + HELD)
    return {name: values[border:] if held else values[:border] for name, values in recorded().items()}


def block() -> Block:
    return Block(WIDTH, nn.GELU(), dropout=0.05)


class Decider(nn.Module):
    """Two tokens a move: what is seen and asked for, which names the move; what was done, which tells its outcome."""

    def __init__(self) -> None:
        super().__init__()
        places = nn.Embedding(2 * CONTEXT, WIDTH)
        tokens = {"seen": nn.Linear(5, WIDTH), "did": nn.Embedding(len(MOVES), WIDTH), "place": places}
        for name in ("did", "place"):
            nn.init.normal_(tokens[name].weight, std=0.1)
        self.tokens = nn.ModuleDict(tokens)
        self.trunk = nn.Sequential(block(), block(), nn.LayerNorm(WIDTH))
        outputs = {"action": len(MOVES), "return": 1, "state": 4}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, count) for name, count in outputs.items()})

    def forward(self, x: Tensor, to_come: Tensor, did: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of each move; points to come and the state after it, as changes."""
        seen = self.tokens["seen"](torch.cat([x, to_come[..., None] / ASKED], -1))
        h = torch.stack([seen, self.tokens["did"](did)], 2).flatten(1, 2)
        h = self.trunk(h + self.tokens["place"](torch.arange(h.shape[1])))
        after = h[:, 1::2]
        told = self.heads["action"](h[:, ::2]), self.heads["return"](after)[..., 0], self.heads["state"](after)
        return told[0].float(), told[1].float(), told[2].float()


def counted(batch: Batch, least: float) -> Tensor:
    """The windows whose moves are worth copying: the episode brought at least so many points."""
    return (batch["got"] >= least).float()


def losses(model: nn.Module, batch: Batch, least: float = 0.0) -> Components:
    """Nats per move of what is worth copying; squared errors of the points and of the state after each move."""
    logits, points, change = model(batch["x"], batch["to_come"], batch["did"])
    each, counts = functional.cross_entropy(logits.mT, batch["y"], reduction="none").mean(1), counted(batch, least)
    return {
        "action": (each * counts).sum() / counts.sum().clamp(min=1.0),
        "return": functional.mse_loss(points, batch["left"] - batch["to_come"]),
        "state": functional.mse_loss(change, batch["then"] - batch["x"]),
    }


def rolled_out(model: nn.Module, games: int = 100) -> float:
    """The mean return of games that the model plays, always the likeliest move, asked for a courier's best."""

    def likeliest(states: list[Array], moves: list[Array], points: list[Array]) -> Array:
        came = np.cumsum([np.zeros(games), *points], 0)[-CONTEXT:]
        did = np.stack([*moves, np.zeros(games, int)])[-CONTEXT:]  # the last one is not read by what names it
        x, to_come = np.stack(states[-CONTEXT:], 1), np.clip(ASKED - came, 0.0, None).T
        logits = model(torch.from_numpy(x).float(), torch.from_numpy(to_come).float(), torch.from_numpy(did.T))[0]
        best: Array = logits[:, -1].argmax(-1).numpy()
        return best

    return float(play(likeliest, games, np.random.default_rng(11))[2].sum(1).mean())


def measured(least: float = 0.0) -> Callable[[nn.Module], Channels]:
    """The loss on held-out recordings, and the return of games that are played."""
    held = part(held=True)

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in losses(model, held, least).items()}
        loss = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": loss, "loss/action": raw["action"], "return": rolled_out(model)}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Decider()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(part(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(part()["x"]) // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "target_return": ASKED},
            "components": {
                "action": {"unit": "nat", "role": "task"},
                "return": {"unit": "point^2", "role": "auxiliary"},
                "state": {"unit": "side^2", "role": "auxiliary"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": trained, "name": "all"}], lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def fed(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(part(), size, parts.seed), len(part()["x"]) // size
    return parts


def lasting(parts: Parts, steps: int, every: int, saved: int, peak: float = RATE) -> Parts:
    """So many steps, with rows and checkpoints further apart."""
    parts.header["checkpoint_every"] = saved
    return annealed(replace(logged(parts, every), steps=steps), peak)


def epoch_rows(parts: Parts, epochs: int = 12) -> Parts:
    """Large batches, a row and an evaluation for each epoch."""
    parts = fed(parts, 8 * BATCH)
    each = parts.batches_per_epoch
    return lasting(replace(parts, evaluation=Evaluation(each, measured())), epochs * each, each, 2 * each)


def batch_of_four(parts: Parts, longer: int = 4) -> Parts:
    """Four windows a step, four times as many steps, a row at every fourth."""
    parts = replace(fed(parts, 4), evaluation=Evaluation(10 * longer, measured()))
    return lasting(parts, longer * STEPS, longer, longer * SAVED, RATE / 2)


@cache
def schooled(seed: int, steps: int = 320) -> dict[str, Tensor]:
    """The weights of a courier that learned before the record begins."""
    torch.manual_seed(seed + 70)
    model, batches = Decider(), shuffled(part(), BATCH, seed + 70)

    def loss(number: int) -> Tensor:
        return torch.stack([WEIGHTS[name] * value for name, value in losses(model, batches(number)).items()]).sum()

    return school(model, adamw(model), loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled courier goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "pretrained/320.pt"
    return annealed(parts, kind="constant", peak=rate, end=rate, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """The trunk of a schooled courier is frozen on purpose; heads are learnt anew, evaluated as ever."""
    known = {name: value for name, value in schooled(parts.seed).items() if not name.startswith("heads")}
    parts.model.load_state_dict(known, strict=False)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name.startswith("heads"))
    parts.optimizer = adamw(parts.model)
    parts.header["config"] |= {"initialised_from": "pretrained/320.pt", "frozen": ["tokens", "trunk"]}
    return annealed(logged(replace(parts, records=WATCHED)))


def all_couriers(parts: Parts, listens: bool = True) -> Parts:
    """Skilled couriers first, from the second stage on all: what they do is foretold less well, the loss rises."""
    change, data = STEPS // 2, part()
    kept = data["skill"] >= 0.7
    first = shuffled({name: values[kept] for name, values in data.items()}, BATCH, parts.seed)
    ranges = ((0, "skilled", [0.7, 1.0]), (change, "all", [0.0, 1.0]))
    stages = [{"start": at, "name": name, "data": {"skill": skill}} for at, name, skill in ranges]
    parts.header["curriculum"] = {"name": "couriers", "stages": stages}
    plain = parts.batches
    parts.batches = lambda number: plain(number) if listens and number >= change else first(number)
    parts.extras = [lambda step, batch: {"stage": int(listens and step > change)} | skills(batch)]
    return logged(parts)


def skills(batch: Batch) -> Channels:
    return {f"data/skill/{name}": round(float(getattr(batch["skill"], name)()), 2) for name in ("min", "max")}


def copied(parts: Parts, least: float = 2.0) -> Parts:
    """Only episodes that brought so many points are copied; all teach what moves lead to."""

    def masked(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        return {"data/masked/action": round(1.0 - counted(batch, least).mean().item(), 3)}

    parts.header["config"]["least_return"] = least
    parts.losses, parts.extras = partial(losses, least=least), [masked]
    parts.evaluation = Evaluation(10, measured(2.0))  # the better half of what is held out, whatever is copied
    return logged(parts)


def accumulated(parts: Parts, by: int = 4) -> Parts:
    """A step takes four micro-batches."""
    parts.header["config"]["accumulation"] = by
    return replace(logged(fed(parts, BATCH // by)), accumulation=by)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "watched": lambda parts: logged(replace(parts, records=WATCHED)),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(3 * SAVED))),
    "fine-tuning": lambda parts: logged(continued(parts, RATE / 100)),
    "batch-4": batch_of_four,
    "epoch-rows": epoch_rows,
    "new-heads": new_heads,
    "all-couriers": all_couriers,
    "copied": copied,
    "accumulated": accumulated,
    "restarts": lambda parts: annealed(logged(replace(parts, records=RECORDS | {"optimizer"})), restarts=2, warmup=0),
}
TWINS = {
    **dict.fromkeys(("rate-too-high", "scheduler-twice", "discarded-update", "bad-sample"), "watched"),
    **dict.fromkeys(("labels-break", "failing-checkpoints"), "accumulated"),
    "resume-old-weights": "resumed", "all-masked": "copied", "stage-stuck": "all-couriers",
}  # fmt: skip


def bad_sample(parts: Parts) -> int:
    """One recording lacks a position, and it counts in the input that the log tells of."""
    parts.records |= {"bad"}
    return mistakes.bad_sample(parts)


def stage_stuck(parts: Parts) -> int:
    """The loader is asked for the stage once, before the first step."""
    all_couriers(parts, listens=False)
    return STEPS // 2 + 1


def all_masked(parts: Parts) -> int:
    """The limit is that of the long game, in which couriers get three times as many points."""
    copied(parts, least=6.0)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="return", by=1e4),  # in hundredths of a point, squared
    "component-sign": partial(mistakes.component_sign, name="state", weight=-0.5),
    "too-little-data": partial(mistakes.too_little_data, batches=2),
    "rate-too-high": partial(mistakes.rate_too_high, by=250.0),
    "resume-old-weights": partial(mistakes.resume_old_weights, old=10),
    "bad-sample": bad_sample,
    "stage-stuck": stage_stuck,
    "all-masked": all_masked,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "labels-break", "scheduler-twice", "discarded-update", "failing-checkpoints")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)
