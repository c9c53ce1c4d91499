"""A message-passing network on random graphs, "molecules", that tells their energy, their dipole and their rings.

Atoms and bonds are drawn with numpy, and so are the rules of their world. RMSprop with a rate that falls linearly, a
curriculum of three stages (small molecules and the energy first), and atoms that are shaken less and less, by a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear

HELD_OUT = False
STEPS = 120
FIRST, SECOND = 24, 54
"""Where the second stage and the third begin."""
HEALTHY = (
    *("plain", "one-stage", "silent-rings", "likelihood", "uneven-units", "harder-at-once", "resumed", "batch-2"),
    "loss-only",
)
SICK = (
    *("one-owns-gradient", "opposed-components", "clamped-component", "wrong-formula", "loud-entry", "stage-shock"),
    *("stages-unreachable", "stale-workers", "unmoved-group", "schedules-by-batches"),
)
TWINS = {
    "one-owns-gradient": "one-stage",
    "opposed-components": "one-stage",
    "clamped-component": "one-stage",
    "wrong-formula": "one-stage",
}
MOST, KINDS_OF_ATOM = 12, 4
TRAINING, BATCH = 2400, 32
RATE = 4e-3
TASKS = ("energy", "dipole", "rings", "activity")
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks", "waits"})


@lru_cache(maxsize=1)
def world() -> Batch:
    """3,000 molecules: atoms [molecules, 12, 7] (kind, place, presence), bonds [molecules, 12, 12], and the truth."""
    random = np.random.default_rng(11)
    count = TRAINING + 600
    own, pair = random.normal(size=KINDS_OF_ATOM), random.normal(size=(KINDS_OF_ATOM, KINDS_OF_ATOM)) * 0.5
    charge = np.array([-1.0, -0.3, 0.4, 0.9])
    atoms, bonds = np.zeros((count, MOST, 7), np.float32), np.zeros((count, MOST, MOST), np.float32)
    energy, dipole = np.zeros(count, np.float32), np.zeros((count, 2), np.float32)
    size, rings = random.integers(5, MOST + 1, count), random.integers(0, 3, count)
    for number in range(count):
        n, kind, place = size[number], random.integers(0, KINDS_OF_ATOM, MOST), random.normal(size=(MOST, 2))
        for atom in range(1, n):
            bonds[number, atom, random.integers(0, atom)] = 1
        free = [(a, b) for a in range(n) for b in range(a) if not bonds[number, a, b]]
        for index in random.permutation(len(free))[: 2 * rings[number]]:
            bonds[number][free[index]] = 1
        energy[number] = own[kind[:n]].sum() + (bonds[number] * (pair + pair.T)[kind][:, kind]).sum()
        bonds[number] += bonds[number].T
        atoms[number, np.arange(n), kind[:n]] = 1
        atoms[number, :n, 4:6], atoms[number, :n, 6] = place[:n], 1
        dipole[number] = (charge[kind[:n], None] * place[:n]).sum(0)
    found = {"x": atoms, "bonds": bonds, "energy": (energy - energy.mean()) / energy.std(), "dipole": dipole}
    return {name: torch.from_numpy(values) for name, values in found.items()} | {
        "y": torch.from_numpy(rings),  # half the number of rings
        "size": torch.from_numpy(size),
    }


class Net(nn.Module):
    """Two rounds of messages along the bonds, and three heads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        names = ("self0", "from0", "self1", "from1")
        self.trunk = nn.ModuleDict({"begin": nn.Linear(7, width)} | {name: nn.Linear(width, width) for name in names})
        outputs = {"charge": 1, "energy": 2, "rings": 3}
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
                for name, size in outputs.items()
            }
        )

    def forward(self, x: Tensor, bonds: Tensor) -> Tensor:
        """What is known of each atom."""
        h = functional.relu(self.trunk["begin"](x))
        for turn in "01":
            h = h + functional.relu(self.trunk[f"self{turn}"](h) + self.trunk[f"from{turn}"](bonds @ h))
        known: Tensor = h * x[..., 6:7]
        return known


class Molecules(nn.Module):
    """What the network says of molecules; `atoms` is what all heads read, `told` what they said last."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.atoms = torch.zeros(())
        self.told: dict[str, Tensor] = {}

    def forward(self, x: Tensor, bonds: Tensor) -> dict[str, Tensor]:
        self.atoms, heads = self.net(x, bonds), self.net.heads
        whole = self.atoms.sum(1) / 4.0
        energy, charge = heads["energy"](whole), heads["charge"](self.atoms) * x[..., 6:7]
        dipole = (charge * x[..., 4:6]).sum(1)
        rings = heads["rings"](whole)
        self.told = {"energy": energy[:, 0], "spread": energy[:, 1], "dipole": dipole, "rings": rings}
        return self.told


def losses(model: nn.Module, batch: Batch, shake: float = 0.0) -> Components:
    """The four components, each by its own measure."""
    x = batch["x"] + shake * batch["shake"] * batch["x"][..., 6:7] if "shake" in batch else batch["x"]
    out = model(x, batch["bonds"])
    return {
        "energy": functional.mse_loss(out["energy"], batch["energy"]),
        "dipole": functional.mse_loss(out["dipole"], batch["dipole"]),
        "rings": functional.cross_entropy(out["rings"], batch["y"]),
        "activity": model.atoms.square().mean(),
    }


Stages = list[dict[str, Any]]


def stage(start: int, largest: int, smallest: int = 5, **weights: float) -> dict[str, Any]:
    """A stage as the config writes it; a component that is not named has weight 0."""
    known = {task: weights.get(task, 0.0) for task in TASKS} | {"activity": 1e-3}
    return {"start": start, "name": f"to-{largest}", "weights": known, "data": {"atoms": [smallest, largest]}}


def growing() -> Stages:
    return [
        stage(0, 7, energy=1.0),
        stage(FIRST, 10, energy=1.0, rings=0.5),
        stage(SECOND, 12, energy=1.0, dipole=0.3, rings=0.5),
    ]


def all_at_once() -> Stages:
    return [stage(0, 12, energy=1.0, dipole=0.3, rings=0.5)]


def harder_at_once() -> Stages:
    """Small molecules first, then only the large ones, of whose kind none was seen before."""
    tasks = {"energy": 1.0, "dipole": 0.3, "rings": 0.5}
    return [stage(0, 6, **tasks), stage(FIRST, 12, 9, **tasks)]


@dataclass
class Plan:
    """A curriculum: which stage holds after so many applied steps."""

    stages: Stages
    name: str = "GROWING"

    def now(self, applied: int) -> int:
        return sum(one["start"] <= applied for one in self.stages) - 1

    def weights(self, applied: int) -> dict[str, float]:
        return dict(self.stages[self.now(applied)]["weights"])

    def atoms(self, applied: int) -> tuple[int, int]:
        smallest, largest = self.stages[self.now(applied)]["data"]["atoms"]
        return smallest, largest

    def form(self) -> dict[str, Any]:
        return {"name": self.name, "source": f"curricula/{self.name.lower()}.toml", "stages": self.stages}


def drawn(size: int, seed: int, atoms: Callable[[int], tuple[int, int]]) -> Callable[[int], Batch]:
    """Batches by number, drawn with replacement from the molecules that a stage allows; and how each atom is shaken."""
    sizes = world()["size"][:TRAINING]

    @lru_cache(maxsize=8)
    def allowed(smallest: int, largest: int) -> Tensor:
        return torch.nonzero((sizes >= smallest) & (sizes <= largest))[:, 0]

    def batch(number: int) -> Batch:
        random = torch.Generator().manual_seed(100_000 * seed + number)
        pool = allowed(*atoms(number))
        rows = pool[torch.randint(len(pool), (size,), generator=random)]
        shake = torch.zeros(size, MOST, 7)
        shake[..., 4:6] = torch.randn(size, MOST, 2, generator=random)
        return {name: values[rows] for name, values in world().items()} | {"shake": shake}

    return batch


def of_atoms(sizes: Tensor) -> Channels:
    """What the row says of the molecules that were really drawn."""
    sizes = sizes.float()
    return {f"data/atoms/{name}": getattr(sizes, name)().item() for name in ("min", "mean", "max")}


Change = Callable[[dict[str, Tensor], Batch, Components], Components]
"""Components that replace others or come besides, from what the model said, the truth, and the usual components."""


def measured(stages: Stages, change: Change = lambda out, batch, raw: {}) -> Callable[[nn.Module], Channels]:  # noqa: ARG005
    """Components on molecules that were not trained on, and their sum by the last stage's weights."""
    held = {name: values[TRAINING:] for name, values in world().items()}

    def measure(model: nn.Module) -> Channels:
        raw, weights = losses(model, held), stages[-1]["weights"]
        assert isinstance(model, Molecules)
        raw |= change(model.told, held, raw)
        right = (model(held["x"], held["bonds"])["rings"].argmax(-1) == held["y"]).float().mean().item()
        total = sum(weights[name] * value.item() for name, value in raw.items())
        told = {f"loss/{name}": value.item() for name, value in raw.items() if name != "activity"}
        return {"loss": total, **told, "rings_right": right}

    return measure


def build(seed: int, variant: str, plan: Plan | None = None, running: Plan | None = None) -> Parts:
    """The parts of a healthy variant; `running` is the curriculum of the loop, if that is another one."""
    torch.manual_seed(seed)
    plan = plan or CURRICULA.get(variant, lambda: Plan(growing()))()
    running, model = running or plan, Molecules()
    now = {"shake": 0.2}
    groups = [
        {"params": list(model.net.trunk.parameters()), "name": "trunk"},
        {"params": list(model.net.heads.parameters()), "name": "heads"},
    ]
    falling = declared("linear", RATE, 0.2 * RATE, STEPS)
    parts = Parts(
        model=model,
        optimizer=torch.optim.RMSprop(groups, lr=RATE, alpha=0.95),
        batches=drawn(BATCH, seed, running.atoms),
        losses=lambda model, batch: losses(model, batch, now["shake"]),
        steps=STEPS,
        seed=seed,
        max_norm=5.0,
        weights=running.weights,
        factor=linear(1.0, 0.2, STEPS),
        clocks={"cooling": lambda applied: applied},
        scheduled={"shake": ("cooling", linear(0.2, 0.0, STEPS))},
        now=now,
        at=lambda model: model.atoms,
        evaluation=Evaluation(15, measured(running.stages)),
        header={
            "config": {"lr": RATE, "optimizer": "RMSprop", "batch_size": BATCH, "curriculum": plan.name},
            "total_steps": STEPS,
            "components": {task: {"role": "regulariser" if task == "activity" else "task"} for task in TASKS},
            "curriculum": plan.form(),
            "curriculum_running": running.form(),
            "schedules": {
                "lr/trunk": dict(falling),
                "lr/heads": dict(falling),
                "shake": declared("linear", 0.2, 0.0, STEPS, clock="cooling"),
            },
            "clocks": ["cooling"],
            "max_grad_norm": 5.0,
            "gradient_at": "atoms",
        },
        records=RECORDS,
        extras=[lambda step, batch: {"stage": running.now(step - 1), **of_atoms(batch["size"])}],
    )
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def changed(parts: Parts, change: Change, **weights: float) -> Parts:
    """Components that replace others or come besides, with constant weights that are declared too."""
    plain, known = parts.losses, parts.weights
    assert known is not None

    def more(model: nn.Module, batch: Batch) -> Components:
        assert isinstance(model, Molecules)
        raw = plain(model, batch)
        return raw | change(model.told, batch, raw)

    parts.losses = more
    parts.weights = lambda applied: known(applied) | weights
    parts.evaluation = Evaluation(15, measured(parts.header["curriculum_running"]["stages"], change))
    for form in (parts.header["curriculum"], parts.header["curriculum_running"]):
        for one in form["stages"]:
            one["weights"] |= weights
    return parts


def silent_rings(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Rings are asked of molecules of eight atoms and more: by design there is nothing to ask in the first stage."""

    def large(out: dict[str, Tensor], batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        kept = (batch["size"] >= 8).float()
        each = functional.cross_entropy(out["rings"], batch["y"], reduction="none")
        return {"rings": (each * kept).sum() / kept.sum().clamp(min=1.0)}

    return changed(parts, large, rings=0.5)


def likelihood(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """The energy (in a unit as large as its range) by minus the log of a density whose width is learnt: below 0."""

    def density(out: dict[str, Tensor], batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        spread = out["spread"].clamp(-6.0, 3.0)
        return {"energy": 0.5 * (spread + (out["energy"] - 0.2 * batch["energy"]).square() * torch.exp(-spread)).mean()}

    parts.header["components"]["energy"] = {"unit": "nat", "role": "task"}
    return changed(parts, density)


def uneven_units(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """The energy in a hundredth of its unit; its weight makes up for it."""
    parts.header["components"]["energy"] = {"unit": "c2", "role": "task"}
    return changed(parts, lambda out, batch, raw: {"energy": 1e4 * raw["energy"]}, energy=1e-4)  # noqa: ARG005


def batch_of_two(parts: Parts, seed: int) -> Parts:
    """After some training with larger batches, before the record."""
    plan, adam = Plan(all_at_once()), torch.optim.Adam(parts.model.parameters(), lr=RATE)
    weights, batches = plan.weights(0), drawn(BATCH, seed + 50, plan.atoms)
    for number in range(80):
        adam.zero_grad()
        raw = losses(parts.model, batches(number))
        torch.stack([weights[name] * value for name, value in raw.items()]).sum().backward()
        adam.step()
    parts.header["config"]["batch_size"] = 2
    _rate(parts, 3e-4)
    return replace(parts, batches=drawn(2, seed, plan.atoms))


def _rate(parts: Parts, rate: float) -> None:
    parts.header["config"]["lr"] = rate
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
        parts.header["schedules"][f"lr/{group['name']}"] = declared("linear", rate, 0.2 * rate, STEPS)


def loss_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, header={"total_steps": STEPS}, records=frozenset(), extras=[])


CURRICULA: dict[str, Callable[[], Plan]] = {
    "one-stage": lambda: Plan(all_at_once(), "ALL"),
    "uneven-units": lambda: Plan(all_at_once(), "ALL"),
    "likelihood": lambda: Plan(all_at_once(), "ALL"),
    "batch-2": lambda: Plan(all_at_once(), "ALL"),
    "harder-at-once": lambda: Plan(harder_at_once(), "HARDER"),
}
VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "silent-rings": silent_rings,
    "likelihood": likelihood,
    "uneven-units": uneven_units,
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "batch-2": batch_of_two,
    "loss-only": loss_only,
}


def opposed_components(parts: Parts) -> int:
    """A second dipole is asked for whose sign was lost in a file format."""

    def mirror(out: dict[str, Tensor], batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        return {"mirror": functional.mse_loss(out["dipole"], -batch["dipole"])}

    parts.header["components"]["mirror"] = {"role": "task"}
    changed(parts, mirror, dipole=1.0, mirror=1.0)
    return 1


def clamped_component(parts: Parts) -> int:
    """The dipole's error is cut at a limit that it never falls below."""
    changed(parts, lambda out, batch, raw: {"dipole": raw["dipole"].clamp(max=0.02)})  # noqa: ARG005
    return 1


def wrong_formula(parts: Parts) -> int:
    """A law that binds energy and dipole was written down wrongly: at the truth itself it is far from 0."""

    def law(out: dict[str, Tensor], batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        return {"law": (out["energy"] + batch["dipole"].norm(dim=1)).square().mean()}

    parts.header["components"]["law"] = {"role": "auxiliary"}
    changed(parts, law, law=1.0)
    return 1


def loud_entry(parts: Parts) -> int:
    """The dipole, which enters with the last stage, is in a thousandth of its unit, and squared."""
    mistakes.component_scale(parts, "dipole", 1e6)
    return SECOND + 1


def stale_workers(parts: Parts) -> int:
    """Weights go on to the next stage, the loader's copy of the curriculum does not."""
    first = Plan(growing())
    parts.batches = drawn(BATCH, parts.seed, lambda applied: first.atoms(0))  # noqa: ARG005
    return FIRST + 1


def schedules_by_batches(parts: Parts) -> int:
    """Two micro-batches a step, and everything is planned in batches: the run is over at half of every plan."""
    stages = growing()
    for one in stages:
        one["start"] *= 2
    plan = Plan(stages)
    parts.accumulation = 2
    parts.batches = drawn(BATCH // 2, parts.seed, lambda number: plan.atoms(number // 2))
    parts.weights = plan.weights
    parts.extras = [lambda step, batch: {"stage": plan.now(step - 1), **of_atoms(batch["size"])}]
    parts.factor, parts.scheduled = linear(1.0, 0.2, 2 * STEPS), {"shake": ("cooling", linear(0.2, 0.0, 2 * STEPS))}
    parts.header["config"]["batch_size"], parts.header["total_steps"] = BATCH // 2, 2 * STEPS
    parts.header["curriculum"] = parts.header["curriculum_running"] = plan.form()
    for name, form in parts.header["schedules"].items():
        parts.header["schedules"][name] = form | {"over_steps": 2 * STEPS}
    parts.header["horizon"] = {"epochs": 2, "samples": TRAINING, "batch_size": BATCH // 2, "accumulation": 2}
    return 0


def stage_shock(seed: int) -> tuple[Parts, int]:
    """The second stage asks for everything at once, of molecules of which nearly every atom is hidden."""
    half = STEPS // 2
    stages = [stage(0, 7, energy=1.0), stage(half, 12, 10, energy=4.0, dipole=4.0, rings=4.0)]
    stages[1]["data"]["hidden"] = [0.9, 0.9]
    parts = build(seed, "plain", Plan(stages, "SHOCK"))
    plain = parts.batches

    def hidden(number: int) -> Batch:
        batch = plain(number)
        random = torch.Generator().manual_seed(number)
        shown = torch.rand(BATCH, MOST, 1, generator=random) > (0.9 if number >= half else 0.0)
        return batch | {"x": batch["x"] * shown}

    parts.batches = hidden
    return parts, half + 1


def stages_unreachable(seed: int) -> tuple[Parts, int]:
    """Boundaries are those of a run six times as long."""
    stages = growing()
    for one in stages:
        one["start"] *= 6
    return build(seed, "plain", Plan(stages, "LONG")), 0


CURRICULAR: dict[str, Callable[[int], tuple[Parts, int]]] = {
    "stage-shock": stage_shock,
    "stages-unreachable": stages_unreachable,
}
"""Mistakes of the curriculum itself: the run is built around them."""
OWN: dict[str, mistakes.Mistake] = {
    "one-owns-gradient": partial(mistakes.component_scale, name="rings", by=300.0),
    "opposed-components": opposed_components,
    "clamped-component": clamped_component,
    "wrong-formula": wrong_formula,
    "loud-entry": loud_entry,
    "stale-workers": stale_workers,
    "schedules-by-batches": schedules_by_batches,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    if case in CURRICULAR:
        parts, onset = CURRICULAR[case](seed)
        return mistakes.perform(parts, path, case, {case: lambda parts: onset})  # noqa: ARG005
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)
