"""The mistakes that a run can be told to make: the ground truth that trainwatch is judged on.

A fault is a handful of settings beneath those that the user writes, so the patch that cures it can be written as any
other setting. Nothing in the loop knows of faults; the one thing that is put into the data is a blank scan, which a
loader without its filter lets through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.curriculum import Curriculum, curriculum

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config import Config

BLANK_SCAN_AT = 0.3
"""When the blank scan of `poisoned-batch` comes, as a share of the total steps."""


@dataclass(frozen=True)
class Fault:
    """One mistake: `settings` make it, `cure` undoes it ({dotted config path: value}), `begins` is its first step."""

    name: str
    about: str
    settings: dict[str, Any]
    cure: dict[str, Any]
    begins: Callable[[Config], int] = field(repr=False)


def running(config: Config) -> Curriculum:
    """The curriculum that the loop takes."""
    return _of(config, config.curriculum_entry or config.curriculum)


def declared(config: Config) -> Curriculum:
    """The curriculum that the config is named for."""
    return _of(config, config.curriculum)


def _of(config: Config, name: str) -> Curriculum:
    return curriculum(name, config.curriculum_steps or config.horizon().total_steps, config.curriculum_ramp)


def _parted(config: Config) -> int:
    """First step at which the running curriculum asks for something else than the declared one."""
    meant, real = declared(config), running(config)
    steps = range(1, config.horizon().total_steps + 1)
    differs = (s for s in steps if (meant.at(s).data, meant.weights(s)) != (real.at(s).data, real.weights(s)))
    return next(differs, 0)


def _weighted(component: str) -> Callable[[Config], int]:
    """First step at which a component has a weight."""

    def begins(config: Config) -> int:
        plan, steps = running(config), range(1, config.horizon().total_steps + 1)
        return next((step for step in steps if plan.weights(step)[component]), 0)

    return begins


def blank_scan_step(config: Config) -> int:
    """The step at which `poisoned-batch` strikes."""
    return max(1, round(BLANK_SCAN_AT * config.horizon().total_steps))


def _second_step(config: Config) -> int:
    return min(2, config.horizon().total_steps)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "wrong-curriculum",
            "the config is named for EXTENDED, the loop takes DEFAULT",
            {"curriculum": "EXTENDED", "curriculum_entry": "DEFAULT"},
            {"curriculum_entry": "EXTENDED"},
            _parted,
        ),
        Fault(
            "raw-ppm",
            "the precursor loss in ppm as it is: tens of thousands beside a cross-entropy of 3",
            {"loss": {"precursor_unit": "raw_ppm"}},
            {"loss.precursor_unit": "huber_residue"},
            _weighted("precursor"),
        ),
        Fault(
            "component-scale",
            "the spectrum loss comes a million times too large",
            {"loss": {"spectrum_scale": 1e6}},
            {"loss.spectrum_scale": 1.0},
            _weighted("spectrum"),
        ),
        Fault(
            "local-counter",
            "the loss anneals its smoothing by a counter of its own, which moves at every fourth step",
            {"schedules": {"label_smoothing": {"clock": "local"}}},
            {"schedules.label_smoothing.clock": "applied"},
            _second_step,
        ),
        Fault(
            "poisoned-batch",
            "the loader's filter is off and a blank scan gets through: no peak, no mass, 0/0 in its heights",
            {"data": {"min_peaks": 0}},
            {"data.min_peaks": 4},
            blank_scan_step,
        ),
    )
}
LOCAL_COUNTER_STRIDE = 4
"""Steps between two ticks of the counter of `local-counter`: as a target network that is updated every fourth step."""


def named(text: str) -> list[Fault]:
    """The faults of a comma-separated list. Raises ValueError, naming what exists, for one that is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"fault '{name}' does not exist; choose from {', '.join(FAULTS)}")
    return [FAULTS[name] for name in names]
