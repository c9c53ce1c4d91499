"""How long a run is going to be, from its config alone: the total that is said, or what its parts come to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainwatch.lint.names import ACCUMULATION, BATCH, EPOCHS, PER_DEVICE, PROCESSES, SAMPLES, SECTIONS, TOTAL_STEPS
from trainwatch.lint.tree import Config, Node

LAST = ("train", "training", "trainer")  # sections in which `steps` alone is the total


@dataclass(frozen=True)
class Plan:
    """The settings that say how long a run is; None where none, or where several disagree."""

    total: Node | None
    epochs: Node | None
    samples: Node | None
    batch: Node | None
    accumulation: Node | None
    processes: Node | None
    launched: int = 1  # processes that the launch command starts, where the config says none

    @property
    def parts(self) -> dict[str, float]:
        """The header's ``horizon``; its batch is that of all processes."""
        named = ("epochs", "samples", "batch", "accumulation", "processes")
        said = {name: value for name in named if (value := _positive(getattr(self, name))) is not None}
        if "batch" in said:
            each = self.batch is not None and self.batch.name.lower() in PER_DEVICE
            said["batch_size"] = said.pop("batch") * (said.get("processes", self.launched) if each else 1)
        return said

    @property
    def steps(self) -> int | None:
        """The total, said or computed as most trainers do: ceil of batches, ceil of groups, epoch by epoch."""
        said = _positive(self.total)
        return int(said) if said else self.computed

    @property
    def computed(self) -> int | None:
        """What samples, batch, accumulation and epochs come to."""
        parts = self.parts
        if not {"epochs", "samples", "batch_size"} <= parts.keys():
            return None
        batches = math.ceil(parts["samples"] / parts["batch_size"])
        return math.ceil(parts["epochs"] * math.ceil(batches / parts.get("accumulation", 1)))

    def sentence(self) -> str:
        """The arithmetic, in one sentence."""
        parts = self.parts
        group = parts.get("accumulation", 1)
        by = f" x {group:g} accumulated" if group != 1 else ""
        return (
            f"{parts['epochs']:g} epochs of {parts['samples']:,.0f} samples in batches of {parts['batch_size']:,.0f}"
            f"{by} come to {self.computed:,} steps"
        )


def plan(config: Config, node: Node | None = None) -> Plan:
    """The plan that holds at a setting: of the nearest mapping around it that says anything; else the root's."""
    around = list(config.above(node)) if node is not None else [config.root]
    total = next((found for mapping in around if (found := _said(mapping, TOTAL_STEPS, config))), [])
    total = total or [child for name in ("steps",) for child in _last(config, name)]
    named = {"epochs": EPOCHS, "samples": SAMPLES, "batch": BATCH, "accumulation": ACCUMULATION, "processes": PROCESSES}
    parts = {
        part: _one(next((found for mapping in around if (found := _said(mapping, names, config))), []))
        for part, names in named.items()
    }
    return Plan(total=_one(total), launched=config.processes, **parts)


def _said(mapping: Node, names: frozenset[str], config: Config) -> list[Node]:
    """What a mapping, or its section of the training, says under one of the names."""
    inside = [child for name, child in mapping.children.items() if name.lower() in SECTIONS and child.children]
    two = [c for child in inside for name, c in child.children.items() if name.lower() in SECTIONS and c.children]
    own = list(_named(mapping, names))
    return own or [found for child in (*inside, *two) for found in _named(child, names) if config]


def _named(mapping: Node, names: frozenset[str]) -> Iterator[Node]:
    for name, child in mapping.children.items():
        if name.lower() in names and _positive(child):
            yield child


def _last(config: Config, name: str) -> Iterator[Node]:
    places = [config.root, *(config.root.children[section] for section in LAST if section in config.root.children)]
    for mapping in places:
        child = mapping.children.get(name)
        if child is not None and (_positive(child) or 0) > 1:
            yield child


def _one(found: list[Node]) -> Node | None:
    """The one that was found; None where several say different things."""
    return found[0] if found and len({node.number for node in found}) == 1 else None


def _positive(node: Node | None) -> float | None:
    value = node.number if node is not None else None
    return value if value is not None and value > 0 else None
