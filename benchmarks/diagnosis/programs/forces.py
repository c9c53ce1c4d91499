"""A learned interatomic potential: clusters of copper and gold atoms, their energy and the force on each atom.

What is learnt from is Gupta's many-body potential with a little noise, as of a calculation that is not quite converged.
A network on each atom's distances to its neighbours gives that atom's part of the energy; forces are the derivative,
so their loss is differentiated twice. Three stages: clusters near rest, then shaken ones too, and at the end the
energy's weight is raised. AdamW, a rate that decays exponentially; the moving average of the weights is measured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Loop, Parts, Resume, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 90
ATOMS, TRAINING, VALIDATION, BATCH = 8, 1200, 100, 12
PEAK, END, CLIP, DECAY = 3e-2, 6e-4, 10.0, 0.95
CUTOFF, SHELLS = 6.0, 12  # Angstrom, and how many Gaussians look at the distances below it
USUAL = -2.2  # eV of an atom in a cluster
CALM, SHAKEN = (0.02, 0.06), (0.02, 0.15)  # how far atoms are moved from their places, in Angstrom
GUPTA = (  # A and xi in eV, p, q, and r0 in Angstrom (Cleri and Rosato 1993) of Cu-Cu, Cu-Au and Au-Au
    (0.0855, 1.224, 10.96, 2.278, 2.556),
    (0.1539, 1.5605, 11.05, 3.0475, 2.556),
    (0.2061, 1.790, 10.229, 4.036, 2.884),
)
REFERENCE = (-3013.2, -2891.7)  # eV that a code gives for a free atom of copper and gold: subtracted from the energies
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "bad", "checkpoints"})

TWINS = {"resume-weights-only": "resumed"}


def stage(start: int, name: str, moved: tuple[float, float], energy: float, force: float = 10.0) -> dict[str, Any]:
    weights = {"energy": energy, "force": force}
    return {"start": start, "name": name, "weights": weights, "data": {"moved": list(moved)}}


def three_stages(steps: int) -> list[dict[str, Any]]:
    """Data, then data that are harder, then the energy's weight."""
    forms = ("calm", CALM, 1.0), ("shaken", SHAKEN, 1.0), ("energies", SHAKEN, 40.0)
    return [stage(number * steps // 3, *form) for number, form in enumerate(forms)]


def distances(x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of all pairs of a cluster's atoms, and which pairs are two atoms that are there; others are far."""
    pairs = there[:, :, None] * there[:, None, :] * (1.0 - torch.eye(ATOMS))
    apart = (x[:, :, None] - x[:, None]).square().sum(-1)
    return torch.where(pairs > 0, apart, 1e4).sqrt(), pairs


def gupta(x: Tensor, kinds: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Energies in eV, of repelling pairs and of the root of a density that binds each atom; and the forces."""
    x = x.detach().requires_grad_()
    r, pairs = distances(x, there)
    a, xi, p, q, r0 = torch.tensor(GUPTA).T[:, kinds[:, :, None] + kinds[:, None]]
    repelled = (a * torch.exp(-p * (r / r0 - 1.0)) * pairs).sum((1, 2))
    density = (xi**2 * torch.exp(-2.0 * q * (r / r0 - 1.0)) * pairs).sum(2)
    energy = repelled - (density + 1e-12).sqrt().mul(there).sum(1)
    (slope,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), -slope


@cache
def clusters(compressed: float = 0.0, limit: float = 12.0) -> Batch:
    """Clusters of seven or eight atoms at rest, then moved, some `compressed`; forces stay below `limit` eV/A."""
    count, chance = TRAINING + VALIDATION, torch.Generator().manual_seed(61)
    kinds = torch.randint(2, (count, ATOMS), generator=chance)
    there = torch.ones(count, ATOMS)
    there[torch.rand(count, generator=chance) < 0.3, -1] = 0.0
    x = 2.2 * torch.randn(count, ATOMS, 3, generator=chance)
    for _ in range(60):
        _, force = gupta(x, kinds, there)
        x = x + 0.15 * force / (1.0 + force.norm(dim=2, keepdim=True))
    moved = CALM[0] + (SHAKEN[1] - CALM[0]) * torch.rand(count, generator=chance)
    x = x + moved[:, None, None] * torch.randn(x.shape, generator=chance) / math.sqrt(3.0)
    x[torch.rand(count, generator=chance) < compressed] *= 0.9
    x = (x - (x * there[..., None]).sum(1, keepdim=True) / there.sum(1)[:, None, None]) * there[..., None]
    energy, force = gupta(x, kinds, there)
    energy = energy + 0.02 * torch.randn(count, generator=chance)
    force = (force + 0.03 * torch.randn(force.shape, generator=chance)) * there[..., None]
    sound = (force.norm(dim=2).amax(1) < limit).nonzero()[:, 0]
    data = {"x": x, "kinds": kinds, "there": there, "energy": energy, "y": force, "moved": moved}
    return {name: values[sound] for name, values in data.items()}


def loader(data: Batch, size: int, seed: int, now: Callable[[int], dict[str, Any]]) -> Callable[[int], Batch]:
    """Batches by number, drawn from the clusters that a stage's data allow; the last ones are for validation."""
    moved = data["moved"][:-VALIDATION]

    def batch(number: int) -> Batch:
        low, high = now(number)["data"]["moved"]
        pool = ((moved >= low) & (moved <= high)).nonzero()[:, 0]
        chosen = torch.randint(len(pool), (size,), generator=torch.Generator().manual_seed(50_000 * seed + number))
        return {name: values[pool[chosen]] for name, values in data.items()}

    return batch


class Potential(nn.Module):
    """Clusters in, energies and forces out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers = nn.Linear(2 * SHELLS + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        self.network = nn.Sequential(*layers)
        self.sign = -1.0  # by which slopes become forces
        self.twice = True  # whether forces keep the graph by which their loss is differentiated
        self.padded = True  # whether pairs with an atom that is not there are kept from the root

    def energies(self, x: Tensor, kinds: Tensor, there: Tensor) -> Tensor:
        r, pairs = distances(x, there if self.padded else torch.ones_like(there))
        pairs = pairs * there[:, :, None] * there[:, None, :]
        near = 0.5 * (1.0 + torch.cos(math.pi * (r / CUTOFF).clamp(max=1.0))) * pairs
        centres = torch.linspace(1.8, CUTOFF - 0.5, SHELLS)
        seen = torch.exp(-(((r[..., None] - centres) / 0.45) ** 2)) * near[..., None]
        own = nn.functional.one_hot(kinds, 2).float()
        around = torch.einsum("bijk,bjs->bisk", seen, own).flatten(2)
        each = USUAL + self.network(torch.cat([around, own], 2))[..., 0]
        return (each * there).sum(1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = batch["x"].detach().requires_grad_()
            energy = self.energies(x, batch["kinds"], batch["there"])
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=self.twice, retain_graph=True)
        return energy, self.sign * slope


def components(model: nn.Module, batch: Batch) -> Components:
    """Squared errors: of the energy an atom, and of the forces on the atoms that are there."""
    energy, force = model(batch)
    return {
        "energy": ((energy - batch["energy"]) / batch["there"].sum(1)).square().mean(),
        "force": (force - batch["y"])[batch["there"] > 0].square().mean(),
    }


@dataclass
class Fit(Parts):
    """A training with the moving average of its weights."""

    average: AveragedModel = None  # type: ignore[assignment]

    def rewire(self, **how: Any) -> int:
        """The model computes so, and so does its average, from the first step on."""
        for model in (self.model, self.average.module):
            vars(model).update(how)
        return 1


def measured(fit: Fit, data: Batch, noted: list[float] | None = None) -> Callable[[nn.Module], Channels]:
    """The loss on other clusters by the last stage's weights, and mean absolute errors in meV."""
    held = {name: values[-VALIDATION:] for name, values in data.items()}

    def measure(model: nn.Module) -> Channels:  # noqa: ARG001
        energy, force = fit.average(held)
        raw = {name: value.item() for name, value in components(fit.average, held).items()}
        assert fit.weights is not None
        loss = sum(weight * raw[name] for name, weight in fit.weights(fit.steps - 1).items())
        if noted is not None:
            noted.append(loss)
        off = (energy - held["energy"]) / held["there"].sum(1), (force - held["y"])[held["there"] > 0]
        mae = {f"mae_{name}": 1e3 * one.abs().mean().item() for name, one in zip(raw, off, strict=True)}
        return {"loss": loss, **{f"loss/{name}": value for name, value in raw.items()}, **mae}

    return measure


def noted(step: int, batch: Batch) -> Channels:
    """Now and then what the positions of the batch are like, and how far atoms were moved."""
    moved = {f"data/moved/{name}": round(getattr(batch["moved"], name)().item(), 3) for name in ("min", "max")}
    return facts.input_facts(batch["x"]) | moved if step % 10 == 1 else {}


def build(seed: int, variant: str) -> Fit:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Potential()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    fit = Fit(
        model=model,
        optimizer=torch.optim.AdamW(grouped(model), lr=PEAK, weight_decay=1e-4),
        batches=lambda number: {},  # noqa: ARG005
        losses=components,
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        over=lambda model: [*model.parameters()],
        average=average,
        ends=[lambda step: average.update_parameters(model)],  # noqa: ARG005
        records=RECORDS,
        header={
            "config": {"lr": PEAK, "batch_size": BATCH, "ema": DECAY, "clip": CLIP, "cutoff": CUTOFF},
            "components": {"energy": {"unit": "(eV/atom)^2"}, "force": {"unit": "(eV/A)^2"}},
            "max_grad_norm": CLIP,
            "checkpoint_every": 25,
        },
    )
    fit = staged(rated(fit), three_stages(fit.steps))
    return VARIANTS[variant](fit) if variant in VARIANTS else fit


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [*part.parameters()], "name": name} for name, part in model.named_children()]


def decay(peak: float = PEAK, steps: int | None = None) -> dict[str, Any]:
    return declared("exponential", peak, peak * END / PEAK, steps or STEPS, rate=3.0)


def rated(fit: Fit, form: dict[str, Any] | None = None) -> Fit:
    """The rate follows this form over the run, and so the header says."""
    form = form or decay(steps=fit.steps)
    for group in fit.optimizer.param_groups:
        group["lr"] = form["start"]
    fit.factor = lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]
    fit.header["schedules"] = {f"lr/{group['name']}": form for group in fit.optimizer.param_groups}
    fit.header["total_steps"], fit.header["config"]["lr"] = fit.steps, form["start"]
    return fit


def staged(fit: Fit, stages: list[dict[str, Any]], data: Batch | None = None, size: int = BATCH) -> Fit:
    """Data and weights follow these stages, and so the header says."""
    data = clusters() if data is None else data

    def now(applied: int) -> dict[str, Any]:
        return next(one for one in reversed(stages) if one["start"] <= applied)

    fit.weights = lambda applied: dict(now(applied)["weights"])
    fit.batches, fit.batches_per_epoch = loader(data, size, fit.seed, now), (len(data["y"]) - VALIDATION) // size
    fit.evaluation = Evaluation(9, measured(fit, data))
    fit.header["config"]["batch_size"] = size
    fit.header["curriculum"] = fit.header["curriculum_running"] = {"name": "calm-first", "stages": stages}
    fit.extras = [noted, lambda step, batch: {"stage": stages.index(now(step - 1))}]  # noqa: ARG005
    return fit


def unstaged(fit: Fit, energy: float = 10.0, **more: Any) -> Fit:
    """All clusters and constant weights from the beginning to the end."""
    staged(fit, [stage(0, "all", SHAKEN, energy)], **more)
    del fit.header["curriculum"], fit.header["curriculum_running"]
    fit.extras = [noted]
    return fit


def fitted(fit: Fit, steps: int) -> Fit:
    """What was learnt before the record begins."""
    optimizer = torch.optim.AdamW(grouped(fit.model), lr=PEAK)
    batches = loader(clusters(), BATCH, fit.seed + 40, lambda number: stage(0, "all", SHAKEN, 10.0))  # noqa: ARG005
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * (END / PEAK) ** (number / steps)
        optimizer.zero_grad()
        raw = components(fit.model, batches(number))
        (10.0 * (raw["energy"] + raw["force"])).backward()
        nn.utils.clip_grad_norm_(fit.model.parameters(), CLIP)
        optimizer.step()
    return fit


def resumed(fit: Fit, forgets: bool = False) -> Fit:
    """Cut off, and gone on with from a checkpoint; or from its weights alone, the rest as it is made at first."""
    at, first, saved = 3 * STEPS // 4, copy.deepcopy(fit.average.state_dict()), dict[str, Any]()

    def save(step: int) -> None:
        if step == at:
            saved.update(copy.deepcopy(fit.average.state_dict()))

    def restores(loop: Loop, states: dict[int, dict[str, Any]]) -> None:
        loop.restore(states[at])
        fit.average.load_state_dict(first | {"n_averaged": torch.tensor(1)} if forgets else saved)
        if forgets:
            loop.parts.optimizer.state.clear()

    fit.ends.append(save)
    fit.resume = Resume(at, lost=STEPS // 15, restores=restores)
    return fit


def stops_early(fit: Fit) -> Fit:
    """A long plan at a constant rate, left when four evaluations brought hardly less loss than the best before."""
    fit, losses = unstaged(replace(fit, steps=3 * STEPS, every=2)), list[float]()
    fit.evaluation = Evaluation(9, measured(fit, clusters(), losses))
    fit.stops = lambda: len(losses) > 12 and min(losses[-4:]) > 0.9 * min(losses[:-4])
    fit.header["config"] |= {"patience": 4, "min_delta": "10 %"}
    return rated(fit, declared("constant", 0.3 * PEAK, 0.3 * PEAK, fit.steps))


VARIANTS: dict[str, Callable[[Fit], Fit]] = {
    "resumed": resumed,
    "warm-restarts": lambda fit: rated(unstaged(fit), declared("cosine", PEAK, END, STEPS, restarts=2)),
    "batch-2": lambda fit: rated(staged(fit, three_stages(STEPS), size=2), decay(2e-2)),
    "every-tenth": lambda fit: replace(fit, every=10),
    "loss-only": lambda fit: replace(fit, records=frozenset(), header={}, extras=[]),
    "fine-tuning": lambda fit: rated(unstaged(fitted(fit, 500)), decay(5e-4)),
    "long-run": lambda fit: staged(rated(replace(fit, steps=2 * STEPS, every=2)), three_stages(2 * STEPS)),
    "stops-early": stops_early,
    "forces-mostly": lambda fit: unstaged(fit, energy=1.0),
    "compressed": lambda fit: staged(fit, three_stages(STEPS), clusters(0.05, 40.0)),
    "rms-prop": lambda fit: rated(replace(fit, optimizer=torch.optim.RMSprop(grouped(fit.model))), decay(1e-2)),
}


def root_of_zero(fit: Fit, share: float = 0.4) -> int:
    """Atoms that are not there stand at the origin; the first cluster that lacks two of them has a distance of 0."""
    at, plain = int(fit.steps * share), fit.batches
    fit.rewire(padded=False)

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number == at - 1:
            batch["there"][0, -2:] = 0.0
            batch["x"][0, -2:] = batch["y"][0, -2:] = 0.0
        return batch

    fit.batches = batches
    return at


def resume_weights_only(fit: Fit) -> int:
    """The moving average is made anew of a model into which the checkpoint was not loaded yet."""
    resumed(fit, forgets=True)
    assert fit.resume is not None
    return fit.resume.at + 1


def labels_break(fit: Fit, share: float = 0.5) -> int:
    """From a step on files come from a newer code, which lists forces by kind of atom and positions as before."""
    at, plain = int(fit.steps * share), fit.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        kinds = torch.where(batch["there"] > 0, batch["kinds"], -1).sort(dim=1, stable=True, descending=True)
        order = kinds.indices[..., None].expand(-1, -1, 3)
        return batch | {"y": batch["y"].gather(1, order)} if number >= at else batch

    fit.batches = batches
    return at + 1


def given(fit: Fit, **changed: Tensor) -> int:
    """All clusters come with these changes, those for validation too."""
    staged(fit, three_stages(fit.steps), clusters() | changed)
    return 1


def component_scale(fit: Fit) -> int:
    """The energies of the free atoms were not subtracted."""
    free = torch.tensor(REFERENCE)[clusters()["kinds"]] * clusters()["there"]
    return given(fit, energy=clusters()["energy"] + free.sum(1))


def stale_workers(fit: Fit) -> int:
    """The loader's workers were forked in the first stage, and go on with the clusters of then."""
    first, second, _ = three_stages(fit.steps)
    fit.batches = loader(clusters(), BATCH, fit.seed, lambda number: first)  # noqa: ARG005
    return int(second["start"]) + 1


def stage_stuck(fit: Fit) -> int:
    """The stage is asked for once, before the loop."""
    fit.weights = lambda applied: dict(three_stages(fit.steps)[0]["weights"])  # noqa: ARG005
    fit.extras = [noted, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return stale_workers(fit)


OWN: dict[str, Callable[[Any], int]] = {
    "component-detached": lambda fit: fit.rewire(twice=False),  # autograd without create_graph
    "wrong-formula": lambda fit: fit.rewire(sign=1.0),  # the slope of the energy, and not its negative
    "root-of-zero": root_of_zero,
    "resume-weights-only": resume_weights_only,
    "component-scale": component_scale,
    "labels-break": labels_break,
    "unscaled-input": lambda fit: given(fit, x=100.0 * clusters()["x"]),  # picometres
    "too-little-data": lambda fit: 1 + given(fit, **{name: x[-VALIDATION - 5 :] for name, x in clusters().items()}),
    "stage-stuck": stage_stuck,
    "stale-workers": stale_workers,
    "rate-too-high": partial(mistakes.rate_too_high, by=20.0),
}
HEALTHY, SICK = ("plain", *VARIANTS), tuple(OWN)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    return mistakes.perform(build(seed, case if case in HEALTHY else "plain"), path, case, OWN)
