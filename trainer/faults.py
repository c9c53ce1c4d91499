"""The mistakes that a run can be told to make: the ground truth that trainwatch is judged on.

A fault is a handful of settings beneath those that the user writes, so the patch that cures it can be written as any
other setting. Nothing in the loop knows of faults; the one thing that is put into the data is a blank scan, which a
loader without its filter lets through. What each of them does to a run is measured: docs/faults.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer.curriculum import Curriculum, curriculum

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config import Config

BLANK_SCAN_AT = 0.3
"""When the blank scan of `poisoned-batch` comes, as a share of the total steps."""
LOCAL_COUNTER_STRIDE = 4
"""Steps between two ticks of the counter of `local-counter`: as a target network that is updated every fourth step."""
PUBLISHED_ANNEAL = 80_000
"""Steps that the smoothing is annealed over where 100,000 are trained; `absolute-anneal` keeps it in any run."""


@dataclass(frozen=True)
class Fault:
    """One mistake, number `number` of the catalogue F1 to F17.

    `base` is what the run is besides, so that the mistake can show: its healthy twin is it too. `settings` make the
    mistake, `cure` undoes it ({dotted config path: value}). `named_by` are trainwatch's rules that may rightly name it.
    """

    name: str
    number: int
    about: str
    settings: dict[str, Any]
    cure: dict[str, Any]
    named_by: tuple[str, ...]
    first: Callable[[Config], int] | None = field(repr=False)  # None: the first step after a resume
    base: dict[str, Any] = field(default_factory=dict)

    def begins(self, config: Config, resumed: int = 0) -> int:
        """First step that goes otherwise than the healthy twin's, 0 if none does.

        `resumed` is the step that the run went on from, if it did.
        """
        if self.first is None:
            return resumed + 1 if resumed else 0
        return self.first(config)


def running(config: Config) -> Curriculum:
    """The curriculum that the loop takes."""
    return _of(config, config.curriculum_entry or config.curriculum)


def declared(config: Config) -> Curriculum:
    """The curriculum that the config is named for."""
    return _of(config, config.curriculum)


def served(config: Config, step: int) -> Curriculum:
    """The curriculum that a loader draws from which was made for `step`; one with `stale_stages` never hears of another
    stage's data.
    """
    plan = running(config)
    if not config.mistakes.stale_stages:
        return plan
    return replace(plan, stages=tuple(replace(stage, data=plan.at(step).data) for stage in plan.stages))


def _of(config: Config, name: str) -> Curriculum:
    steps = config.curriculum_steps or config.horizon().total_steps
    return curriculum(name, steps, config.curriculum_ramp, config.curriculum_factors)


def _parted(config: Config) -> int:
    """First step at which the running curriculum asks for something else than the declared one."""
    meant, real = declared(config), running(config)
    return _first(config, lambda s: (meant.at(s).data, meant.weights(s)) != (real.at(s).data, real.weights(s)))


def _stale(config: Config) -> int:
    """First step at which the loader of an uninterrupted run draws from another stage's data."""
    plan, loader = running(config), served(config, 1)
    return _first(config, lambda step: plan.at(step).data != loader.at(step).data)


def _weighted(component: str) -> Callable[[Config], int]:
    """First step at which the component has a weight: before, nothing that is trained depends on it."""

    def begins(config: Config) -> int:
        plan = running(config)
        return _first(config, lambda step: plan.weights(step)[component] > 0)

    return begins


def _first(config: Config, differs: Callable[[int], bool]) -> int:
    return next((step for step in range(1, config.horizon().total_steps + 1) if differs(step)), 0)


def _at_once(_config: Config) -> int:
    return 1


def _warmup_missed(config: Config) -> int:
    return int(round(config.optimizer.warmup * config.horizon().total_steps) > 0)


def _batches_are_not_steps(config: Config) -> int:
    return int(config.horizon().micros != config.horizon().total_steps)


def blank_scan_step(config: Config) -> int:
    """The step at which `poisoned-batch` strikes."""
    return max(1, round(BLANK_SCAN_AT * config.horizon().total_steps))


DEFAULT_WEIGHTS = {"curriculum": "DEFAULT"}
LOUD = ("loss-scale-imbalance", "gradient-dominance", "aggressive-ramp", "curriculum-shock", "clipping-saturated")
"""Rules that see one component drown the others, or how it came in."""

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "raw-ppm",
            1,
            "the precursor loss in ppm as it is: tens of thousands beside a cross-entropy of 3, at DEFAULT's weights",
            {"loss": {"precursor_unit": "raw_ppm"}},
            {"loss.precursor_unit": "huber_residue"},
            (*LOUD, "gradient-explosion", "loss-divergence"),
            _weighted("precursor"),
            DEFAULT_WEIGHTS,
        ),
        Fault(
            "clamp-ppm",
            2,
            "the precursor loss clamped at 100 ppm: a constant without a gradient, until an answer comes that close",
            {"loss": {"precursor_unit": "clamp_ppm"}},
            {"loss.precursor_unit": "huber_residue"},
            ("component-dead", "late-activation", "component-ignored", "gradient-spike", *LOUD),
            _weighted("precursor"),
            DEFAULT_WEIGHTS,
        ),
        Fault(
            "narrow-sigma",
            3,
            "the spectrum loss with peaks 0.2 Da wide: a gradient many times the cross-entropy's, at a right angle",
            {"loss": {"spectrum_sigma": 0.2}},
            {"loss.spectrum_sigma": 2.0},
            (*LOUD, "gradient-conflict"),
            _weighted("spectrum"),
            DEFAULT_WEIGHTS,
        ),
        Fault(
            "stale-stages",
            4,
            "the loader's workers hold a copy of the first stage; labels and weights go on without them",
            {"mistakes": {"stale_stages": True}},
            {"mistakes.stale_stages": False},
            ("stale-data",),
            _stale,
        ),
        Fault(
            "local-counter",
            5,
            "the loss anneals its smoothing by a counter of its own, which moves at every fourth step",
            {"schedules": {"label_smoothing": {"clock": "local"}}},
            {"schedules.label_smoothing.clock": "applied"},
            ("clock-desync", "schedule-desync", "schedule-unfinished"),
            _at_once,
        ),
        Fault(
            "absolute-anneal",
            6,
            "the smoothing is annealed over the 80,000 steps of the published run, in a run that has far fewer",
            {"schedules": {"label_smoothing": {"steps": PUBLISHED_ANNEAL}}},
            {"schedules.label_smoothing.steps": 0},
            ("schedule-unfinished", "absolute-horizon"),
            _at_once,
        ),
        Fault(
            "norm-after-clipping",
            7,
            "the gradient's norm is read after clipping: it never exceeds the limit and proves nothing",
            {"mistakes": {"norm_after_clipping": True}},
            {"mistakes.norm_after_clipping": False},
            ("post-clip-norm",),
            _at_once,
        ),
        Fault(
            "scale-collapse",
            8,
            "fp16 and a loss whose scaled gradient overflows: the scaler halves until nothing else is left above zero",
            {"loss": {"precursor_unit": "raw_ppm"}},
            {"loss.precursor_unit": "huber_residue"},
            ("amp-scale-collapse", "overflow-risk", "loss-scale-imbalance", "gradient-dominance"),
            _weighted("precursor"),
            {**DEFAULT_WEIGHTS, "precision": "fp16"},
        ),
        Fault(
            "half-precision-masses",
            9,
            "masses in bfloat16, whose grid at 1,000 Da is 4 Da: residues cannot be told apart",
            {"mistakes": {"half_precision_masses": True}},
            {"mistakes.half_precision_masses": False},
            ("precision-mismatch", "slow-convergence", "loss-plateau", "loss-stuck"),
            _at_once,
        ),
        Fault(
            "component-scale",
            10,
            "the spectrum loss comes a million times too large",
            {"loss": {"spectrum_scale": 1e6}},
            {"loss.spectrum_scale": 1.0},
            (*LOUD, "gradient-explosion", "loss-divergence"),
            _weighted("spectrum"),
        ),
        Fault(
            "mass-after-end",
            11,
            "what the answer says after its end counts to its mass",
            {"mistakes": {"mass_after_end": True}},
            {"mistakes.mass_after_end": False},
            ("gradient-conflict", "length-collapse", "mode-collapse", *LOUD),
            _weighted("precursor"),
            DEFAULT_WEIGHTS,
        ),
        Fault(
            "first-residue-dropped",
            12,
            "the spectrum loss leaves out the first residue, so the truth itself explains a part of the peaks only",
            {"mistakes": {"first_residue_dropped": True}},
            {"mistakes.first_residue_dropped": False},
            ("gradient-conflict", "loss-plateau", "component-divergence"),
            _weighted("spectrum"),
            DEFAULT_WEIGHTS,
        ),
        Fault(
            "wrong-curriculum",
            13,
            "the config is named for EXTENDED, the loop takes DEFAULT",
            {"curriculum": "EXTENDED", "curriculum_entry": "DEFAULT"},
            {"curriculum_entry": ""},
            ("curriculum-mismatch", "curriculum-weight-drift", "curriculum-choice"),
            _parted,
            {"data": {"max_length": 30}},  # room for DEFAULT's longest answer: else every batch has another shape
        ),
        Fault(
            "warmup-ignored",
            14,
            "a warm-up of the learning rate is declared, and never read",
            {"mistakes": {"warmup_ignored": True}},
            {"mistakes.warmup_ignored": False},
            ("warmup-ignored", "lr-desync", "schedule-desync"),
            _warmup_missed,
        ),
        Fault(
            "poisoned-batch",
            15,
            "the loader's filter is off and a blank scan gets through: no peak, no mass, 0/0 in its heights",
            {"data": {"min_peaks": 0}},
            {"data.min_peaks": 4},
            ("non-finite-input", "non-finite-loss", "non-finite-gradient", "non-finite-weights"),
            blank_scan_step,
        ),
        Fault(
            "weights-only-resume",
            16,
            "a resume takes the weights alone: moments, scaler and moving average begin anew",
            {"mistakes": {"weights_only_resume": True}},
            {"mistakes.weights_only_resume": False},
            ("resume-discontinuity",),
            None,
        ),
        Fault(
            "batches-counted",
            17,
            "schedules take the number of micro-batches for the number of steps, and end far from where they should",
            {"mistakes": {"batches_counted": True}},
            {"mistakes.batches_counted": False},
            ("total-steps-mismatch", "total-steps-formula", "lr-desync", "schedule-desync", "schedule-unfinished"),
            _batches_are_not_steps,
            {"accumulation": 2},
        ),
    )
}


def named(text: str) -> list[Fault]:
    """The faults of a comma-separated list. Raises ValueError, naming what exists, for one that is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"fault '{name}' does not exist; choose from {', '.join(FAULTS)}")
    return [FAULTS[name] for name in names]


def layers(text: str) -> list[tuple[str, dict[str, Any]]]:
    """What the faults of a list set, each with its name: what their runs are besides lies beneath every mistake."""
    chosen = named(text)
    pairs = [(fault, fault.base) for fault in chosen] + [(fault, fault.settings) for fault in chosen]
    return [(f"fault {fault.name}", settings) for fault, settings in pairs]
