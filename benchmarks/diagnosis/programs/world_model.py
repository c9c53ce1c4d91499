"""A world model: what a pendulum looks like and pays, a few pushes ahead, as Dreamer's recurrent state space learns it.

The pendulum is seen as 8 x 8 pixels, never its speed; a motor pushes it, upright pays, spinning too fast ends an
episode. A GRU carries the belief, a Gaussian latent holds what a frame adds to it. Images, reward and continuation are
told from both; the divergence between what a frame says and what was expected of it is balanced, and free below a nat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear, planned

HELD_OUT = False
STEPS = 120
TRAINING, HELD, BATCH, LENGTH = 512, 96, 16, 12
SIDE, PIXELS, LATENT, CONTEXT = 8, 64, 8, 5
RATE, WARMUP, CLIP = 1e-2, 15, 100.0
FREE, BALANCE = {"min": 1.0}, 0.8  # the first nat costs nothing
WEIGHTS = {"reconstruction": 1.0, "kl": 0.5, "reward": 1.0, "continuation": 1.0}
RECORDS = frozenset({"components", "norms", "optimizer", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "loss-only", "epochs", "batch-2", "fine-tuning", "kl-warmup", "warm-restarts"),
    *("stronger-motor", "long-run", "learned-noise", "endless"),
)
SICK = (
    *("exploding-recurrence", "resume-weights-only", "steep-ramp", "clamped-component", "one-bad-batch"),
    *("constant-input", "no-checkpoints", "warmup-ignored", "wrong-weights", "stages-unreachable"),
    "out-of-memory",
)
TWINS = {
    "resume-weights-only": "resumed",
    "wrong-weights": "kl-warmup",
}


@cache
def pendulum(torque: float = 1.0, fastest: float = 4.5, light: float = 1.0) -> Batch:
    """Stretches of episodes, one after the other; `x` are the frames, and `y` are what is to be drawn.

    An action leads to the frame beside it. Where one `ends` by spinning too fast the next begins, at its `first` frame.
    """
    random, count = np.random.default_rng(17), TRAINING + HELD
    angle, speed = random.uniform(-np.pi, np.pi, count), random.normal(0.0, 1.5, count)
    push, ends, rows = np.zeros(count), np.zeros(count, bool), []
    for _ in range(LENGTH):
        first = ends
        angle = np.where(first, random.uniform(-np.pi, np.pi, count), angle)
        speed = np.where(first, random.normal(0.0, 0.5, count), speed)
        push = np.where(first, 0.0, np.clip(0.6 * push + 0.5 * random.standard_normal(count), -1.0, 1.0))
        speed = np.where(first, speed, speed + 0.12 * (4.0 * np.sin(angle) + 6.0 * torque * push) - 0.02 * speed)
        angle, ends = angle + 0.12 * speed, np.abs(speed) > fastest
        rows.append((drawn(angle, random), push[:, None], np.cos(angle) - 0.1 * push**2, ends, first))
    columns = (torch.from_numpy(np.stack(column, 1).astype(np.float32)) for column in zip(*rows, strict=True))
    frames, action, reward, ended, began = columns
    began[:, 0] = 1.0
    return {"x": light * frames, "y": frames, "action": action, "reward": reward, "ends": ended, "first": began}


def drawn(angle: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images of the bob and, fainter, of the middle of its rod, between about -0.5 and 0.5."""
    grid = np.linspace(-1.0, 1.0, SIDE)
    image = np.zeros((len(angle), SIDE, SIDE))
    for reach, light in ((0.75, 1.0), (0.35, 0.5)):
        across, up = (reach * turned(angle)[:, None, None] for turned in (np.sin, np.cos))
        image += light * np.exp(-((grid - across) ** 2 + (grid[:, None] + up) ** 2) / 0.12)
    return image.reshape(-1, PIXELS) - 0.5 + 0.05 * random.standard_normal((len(angle), PIXELS))


class Beliefs(NamedTuple):
    """What the model holds at each step: its features, and the latent's distribution before and after the frame."""

    features: Tensor
    prior: tuple[Tensor, Tensor]
    posterior: tuple[Tensor, Tensor]


def perceptron(inputs: int, outputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, outputs))


class World(nn.Module):
    """A recurrent state space model and its three heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = {"prior": (width, 2 * LATENT), "posterior": (2 * width, 2 * LATENT)}
        self.belief = nn.ModuleDict({name: perceptron(*size, width) for name, size in sizes.items()})
        self.belief["encoder"], self.belief["cell"] = perceptron(PIXELS, width, width), nn.GRUCell(LATENT + 1, width)
        outputs = {"images": PIXELS, "reward": 1, "continuation": 1}
        self.heads = nn.ModuleDict({name: perceptron(width + LATENT, size, width) for name, size in outputs.items()})
        self.noise = nn.Parameter(torch.tensor(0.2).log(), requires_grad=False)  # the logarithm of a pixel's spread

    def forward(self, batch: Batch, seen: int = LENGTH) -> Beliefs:
        """Beliefs [sequences, steps, ...]; after `seen` frames the model imagines the rest."""
        belief, going = self.belief, 1.0 - batch["first"][..., None]
        told = belief["encoder"](batch["x"])
        carried, latent = torch.zeros_like(told[:, 0]), told.new_zeros(len(told), LATENT)
        features, before, after = [], [], []
        for at in range(told.shape[1]):
            entered = torch.cat([latent * going[:, at], batch["action"][:, at]], -1)
            carried = belief["cell"](entered, carried * going[:, at])
            before.append(belief["prior"](carried))
            after.append(belief["posterior"](torch.cat([carried, told[:, at]], -1)) if at < seen else before[-1])
            mean, spread = gaussian(after[-1])
            latent = mean + spread * torch.randn_like(mean) if at < seen else mean
            features.append(torch.cat([carried, latent], -1))
        return Beliefs(torch.stack(features, 1), gaussian(torch.stack(before, 1)), gaussian(torch.stack(after, 1)))


def gaussian(told: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of a latent."""
    mean, spread = told.chunk(2, -1)
    return mean, functional.softplus(spread - 1.0) + 0.1


def divergence(prior: tuple[Tensor, Tensor], posterior: tuple[Tensor, Tensor], bound: dict[str, float]) -> Tensor:
    """Nats that a frame adds: most of its gradient teaches what to expect, the rest what a frame may say."""
    expected, said = (tuple(one.detach() for one in side) for side in (prior, posterior))
    sides = [[Independent(Normal(*one), 1) for one in pair] for pair in ((said, prior), (posterior, expected))]
    dynamics, representation = (kl_divergence(*pair).mean().clamp(**bound) for pair in sides)
    return BALANCE * dynamics + (1.0 - BALANCE) * representation


def losses(model: nn.Module, batch: Batch, bound: dict[str, float] = FREE) -> Components:
    """Pixels by a Gaussian likelihood without its constant, the divergence, rewards by squares, ends by entropy."""
    beliefs: Beliefs = model(batch)
    features, noise = beliefs.features, model.get_parameter("noise")
    images, reward, going = (head(features) for head in model.get_submodule("heads").children())
    error = 0.5 * ((images - batch["y"]) * torch.exp(-noise)).square() + (noise if noise.requires_grad else 0.0)
    return {
        "reconstruction": error.sum(-1).mean(),
        "kl": divergence(beliefs.prior, beliefs.posterior, bound),
        "reward": 0.5 * (reward[..., 0] - batch["reward"]).square().mean(),
        "continuation": functional.binary_cross_entropy_with_logits(going[..., 0], 1.0 - batch["ends"]),
    }


def measured(**other: Any) -> Callable[[nn.Module], Channels]:
    """The components on stretches that are held out, and how far off imagined frames are, in their own variance."""
    batch = {name: values[TRAINING:] for name, values in pendulum(**other).items()}
    whole = 1.0 - batch["first"][:, CONTEXT:].cummax(1).values  # who begins anew cannot be foreseen
    spread = (batch["y"] - batch["y"].mean((0, 1))).square().mean()

    def measure(model: nn.Module) -> Channels:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same draws at every evaluation
            raw = {name: value.item() for name, value in losses(model, batch).items()}
            imagined = model.get_submodule("heads.images")(model(batch, seen=CONTEXT).features)
        squares = (imagined - batch["y"])[:, CONTEXT:].square().mean(-1) * whole
        off = (squares.sum() / whole.sum() / spread).item()
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total, "loss/kl": raw["kl"], "loss/reward": raw["reward"], "open_loop_error": off}

    return measure


def replayed(size: int, seed: int, **other: Any) -> Callable[[int], Batch]:
    """Batches of what was gathered."""
    return shuffled({name: values[:TRAINING] for name, values in pendulum(**other).items()}, size, seed)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = World()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=replayed(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        evaluation=Evaluation(10, measured()),
        header={
            "config": {
                "batch_size": BATCH,
                "length": LENGTH,
                "free_nats": FREE["min"],
                "kl_balance": BALANCE,
                "clip": CLIP,
            },
            "components": {name: {"role": "regulariser" if name == "kl" else "task"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": 20,
        },
        records=RECORDS,
    )
    rated(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": learning, "name": "world"}], lr=rate, eps=1e-5)


def rated(parts: Parts, rate: float = RATE) -> Parts:
    """The rate warms up and stays, and so the header says."""
    return planned(parts, declared("constant", rate, rate, parts.steps, warmup=WARMUP))


@cache
def gathered(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a model that learned before the record begins."""
    torch.manual_seed(seed)
    model, batches = World(), replayed(BATCH, seed + 50)
    optimizer = adam(model)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for number in range(steps):
        optimizer.zero_grad()
        torch.stack([*losses(model, batches(number)).values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        rate.step()
    return model.state_dict()


def epochs(parts: Parts) -> Parts:
    """A row at the end of each of twelve epochs, and no more."""
    parts.batches, each = replayed(2 * BATCH, parts.seed), TRAINING // (2 * BATCH)
    parts.header["config"] |= {"batch_size": 2 * BATCH}
    parts = replace(parts, steps=12 * each, batches_per_epoch=each, every=each, records=parts.records | {"epochs"})
    return rated(replace(parts, evaluation=Evaluation(each, measured())))


def batch_2(parts: Parts) -> Parts:
    """Two stretches a step, for a model that knows something already."""
    parts.model.load_state_dict(gathered(parts.seed, 100))
    parts.batches, parts.batches_per_epoch = replayed(2, parts.seed), TRAINING // 2
    parts.header["config"] |= {"batch_size": 2}
    return rated(parts, RATE / 10)


def fine_tuning(parts: Parts) -> Parts:
    """A model that is trained through goes on at a small rate; each fourth step is logged."""
    parts.model.load_state_dict(gathered(parts.seed))
    return rated(replace(parts, every=4), RATE / 100)


def kl_warmup(parts: Parts) -> Parts:
    """The divergence counts little at first, and more from step to step of the first half."""
    over, weight = parts.steps // 2, linear(0.05, WEIGHTS["kl"], parts.steps // 2)
    parts.weights = lambda applied: WEIGHTS | {"kl": weight(applied)}
    parts.header["schedules"]["weight/kl"] = declared("linear", 0.05, WEIGHTS["kl"], over)
    return parts


def staged(parts: Parts, name: str, stages: dict[str, tuple[int, float]]) -> None:
    """Stages by their names: when each begins, and the weight of its divergence."""
    listed = [{"start": start, "name": one, "weights": WEIGHTS | {"kl": kl}} for one, (start, kl) in stages.items()]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": listed}
    starts = [start for start, _ in stages.values()]
    parts.extras.append(lambda step, batch: {"stage": sum(step > start for start in starts) - 1})  # noqa: ARG005


def stronger_motor(parts: Parts, stretch: int = 1) -> Parts:
    """From the middle on the pendulum has another motor, in validation too: all is harder to foresee, as declared."""
    change, reached = stretch * parts.steps // 2, {"step": 0}
    weak, strong = parts.batches, replayed(BATCH, parts.seed, torque=2.0)
    before, after = measured(), measured(torque=2.0)
    parts.begins.append(lambda step: reached.update(step=step))
    parts.evaluation = Evaluation(10, lambda model: (after if reached["step"] > change else before)(model))
    parts.batches = lambda number: (weak if number < change else strong)(number)
    staged(parts, "motors", {"weak motor": (0, WEIGHTS["kl"]), "strong motor": (change, WEIGHTS["kl"])})
    return parts


def learned_noise(parts: Parts) -> Parts:
    """The spread of a pixel is learned: a likelihood of sharp pixels is above one, and the loss falls below zero."""
    parts.model.get_parameter("noise").requires_grad_(True)
    parts.optimizer = adam(parts.model)
    parts.header["config"] |= {"pixel_noise": "learned"}
    return rated(parts)


def endless(parts: Parts) -> Parts:
    """Nothing ends an episode of this pendulum: the continuation is learnt at once, and its loss is next to nothing."""
    parts.evaluation = Evaluation(10, measured(fastest=np.inf))
    return replace(parts, batches=replayed(BATCH, parts.seed, fastest=np.inf), records=parts.records | {"inputs"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(4 * parts.steps // 7, lost=min(7, parts.steps // 5))),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "epochs": epochs,
    "batch-2": batch_2,
    "fine-tuning": fine_tuning,
    "kl-warmup": kl_warmup,
    "stronger-motor": stronger_motor,
    "warm-restarts": lambda parts: planned(
        parts, declared("cosine", RATE, 0.01 * RATE, parts.steps, warmup=WARMUP, restarts=2)
    ),
    "long-run": lambda parts: rated(replace(parts, steps=2 * parts.steps, every=2)),
    "learned-noise": learned_noise,
    "endless": endless,
}


def clamped_component(parts: Parts) -> int:
    """Free nats by the wrong bound: the divergence is cut off above a nat, and nobody learns to expect anything."""
    parts.losses = partial(losses, bound={"max": FREE["min"]})
    return 1


def constant_input(parts: Parts) -> int:
    """The encoder's frames are divided by 255 by the replay, and by the model once more."""
    parts.records |= {"inputs"}
    parts.evaluation = Evaluation(10, measured(light=1.0 / 255.0))
    return mistakes.constant_input(parts, 1.0 / 255.0)


def one_bad_batch(parts: Parts) -> int:
    """One shard holds bytes where the others hold fractions, and nobody clips."""
    parts.records |= {"inputs"}
    parts.max_norm = None
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    at, plain = parts.steps // 2, parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {name: 255.0 * batch[name] for name in "xy"} if number == at - 1 else batch

    parts.batches = batches
    return at


def wrong_weights(parts: Parts) -> int:
    """The divergence fades by two percent a step: a line that was left from another experiment."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"kl": weights["kl"] * 0.98**applied})
    return 2


def steep_ramp(parts: Parts) -> int:
    """First sharp images, then few nats: within four steps of the middle the divergence counts 600 times as much."""
    half, low, high = parts.steps // 2, 0.05, 30.0
    rising = linear(low, high, 4, begin=half - 1)
    parts.weights = lambda applied: WEIGHTS | {"kl": rising(applied)}
    staged(parts, "nats-later", {"images": (0, low), "nats": (half, high)})
    return half + 1


def stages_unreachable(parts: Parts) -> int:
    """Stages are in the steps of a run that was planned six times as long."""
    stronger_motor(parts, stretch=6)
    return 0


OWN: dict[str, mistakes.Mistake] = {
    "exploding-recurrence": partial(mistakes.exploding_recurrence, by=20.0),
    "steep-ramp": steep_ramp,
    "clamped-component": clamped_component,
    "constant-input": constant_input,
    "one-bad-batch": one_bad_batch,
    "wrong-weights": wrong_weights,
    "stages-unreachable": stages_unreachable,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)
