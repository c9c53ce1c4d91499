"""What is trained when: stages of data and loss weights, as published, as ratios of the run's total steps.

Both tables are pepTRM's at commit db3b8ae (github.com/jasegehring/pepTRM), written for 100,000 steps. DEFAULT brings
the precursor loss in at weight 0.2 after 8 % of the run and takes it to 1.0; EXTENDED never takes it beyond 0.08.
A boundary changes lengths, noise and weights together, as published: an effect there has more than one possible cause.
Who wants to know which one keeps a single factor (configs/ablations); the others stay as they are in the first stage.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.schedules import ramp_share

PUBLISHED_STEPS = 100  # thousands: the unit of the tables' boundaries
RAMPS = ("step", "linear", "cosine")
RAMP_LENGTH = 0.5
"""Share of a stage that a ramp other than `step` takes to bring the stage's weights in."""


@dataclass(frozen=True)
class Corruption:
    """What is drawn from, and how spectra are spoilt.

    `shortest` and `longest` peptide in residues; `noise_peaks` added to each spectrum; `dropout`, the probability that
    a peak is lost; `ppm_error`, the largest relative error of a peak's m/z in parts per million; `intensity_error`, the
    standard deviation of the logarithm of a peak's height.
    """

    shortest: int
    longest: int
    noise_peaks: int = 0
    dropout: float = 0.0
    ppm_error: float = 0.0
    intensity_error: float = 0.0

    def ranges(self) -> dict[str, list[float]]:
        """The realised `data/<name>` that this asks for: {name: [min, max]}."""
        return {
            "length": [self.shortest, self.longest],
            "noise_peaks": [self.noise_peaks, self.noise_peaks],
            "ppm_error": [-self.ppm_error, self.ppm_error],
        }


@dataclass(frozen=True)
class Stage:
    """One stage: holds for start <= applied step < end."""

    name: str
    start: int
    end: int
    data: Corruption
    weights: dict[str, float]


@dataclass(frozen=True)
class Curriculum:
    """The stages of one run, in order, without gaps; `ramp` is how a stage's weights come in."""

    name: str
    source: str
    sha256: str
    stages: tuple[Stage, ...]
    ramp: str = "step"

    def index(self, applied: int) -> int:
        """Index of the stage that holds at an applied step; the last one holds beyond its end too."""
        return max(i for i, stage in enumerate(self.stages) if stage.start <= applied or i == 0)

    def at(self, applied: int) -> Stage:
        """The stage that holds at an applied step."""
        return self.stages[self.index(applied)]

    def weights(self, applied: int) -> dict[str, float]:
        """The loss weights in force at an applied step, ramped from the stage before."""
        index = self.index(applied)
        stage, before = self.stages[index], self.stages[max(index - 1, 0)]
        length = (stage.end - stage.start) * RAMP_LENGTH
        share = ramp_share(self.ramp, (applied - stage.start) / length)
        return {name: before.weights[name] * (1 - share) + new * share for name, new in stage.weights.items()}

    def beside(self, constant: dict[str, float]) -> Curriculum:
        """The same with further components, whose weights stay as they are through all stages."""
        return replace(self, stages=tuple(replace(s, weights=s.weights | constant) for s in self.stages))

    def lengths(self) -> tuple[int, int]:
        """Shortest and longest peptide of all stages."""
        return min(s.data.shortest for s in self.stages), max(s.data.longest for s in self.stages)

    def declaration(self) -> dict[str, Any]:
        """The curriculum as the run's header holds it. Ramped weights differ from the stage's, and are left out."""
        keys = ("name", "source", "sha256", "ramp")
        return {key: getattr(self, key) for key in keys} | {"stages": [self._stage(stage) for stage in self.stages]}

    def _stage(self, stage: Stage) -> dict[str, Any]:
        weights = {"weights": stage.weights} if self.ramp == "step" else {}
        return {"start": stage.start, "end": stage.end, "name": stage.name, "data": stage.data.ranges()} | weights


Row = tuple[int, int, int, int, int, float, float, float, float, float]
FACTORS = ("length", "noise", "weights")
"""What a boundary may change."""
COLUMNS = ("", "", "length", "length", "noise", "noise", "noise", "noise", "weights", "weights")
"""The factor that each column of a table belongs to; the boundaries belong to none."""

# start and end (thousand steps), lengths, noise peaks, dropout, ppm, log-intensity error, weights: spectrum, precursor
DEFAULT: tuple[Row, ...] = (
    (0, 8, 7, 10, 0, 0.00, 0.0, 0.0, 0.0, 0.0),
    (8, 16, 7, 10, 0, 0.00, 0.0, 0.0, 0.2, 0.2),
    (16, 22, 7, 12, 1, 0.02, 2.0, 0.0, 0.3, 0.5),
    (22, 28, 7, 15, 2, 0.05, 5.0, 0.0, 0.4, 0.7),
    (28, 38, 7, 18, 5, 0.10, 10.0, 0.0, 0.5, 0.9),
    (38, 50, 7, 22, 8, 0.15, 15.0, 0.2, 0.6, 1.0),
    (50, 62, 10, 26, 8, 0.15, 15.0, 0.2, 0.6, 1.0),
    (62, 76, 12, 30, 8, 0.15, 15.0, 0.2, 0.6, 1.0),
    (76, 100, 7, 30, 8, 0.15, 15.0, 0.2, 0.6, 1.0),
)
EXTENDED: tuple[Row, ...] = (
    (0, 10, 7, 10, 0, 0.00, 0.0, 0.0, 0.00, 0.0),
    (10, 20, 7, 10, 0, 0.00, 0.0, 0.0, 0.05, 0.0),
    (20, 30, 7, 11, 1, 0.02, 2.0, 0.0, 0.08, 0.01),
    (30, 40, 7, 12, 2, 0.05, 5.0, 0.0, 0.10, 0.02),
    (40, 50, 7, 13, 3, 0.08, 7.5, 0.0, 0.12, 0.025),
    (50, 60, 7, 14, 5, 0.10, 10.0, 0.0, 0.13, 0.03),
    (60, 70, 7, 15, 6, 0.12, 12.0, 0.0, 0.14, 0.04),
    (70, 80, 7, 16, 7, 0.13, 13.0, 0.0, 0.14, 0.05),
    (80, 90, 7, 17, 8, 0.14, 14.0, 0.0, 0.15, 0.06),
    (90, 100, 7, 18, 10, 0.15, 15.0, 0.0, 0.15, 0.08),
)
TABLES: dict[str, tuple[Row, ...]] = {"DEFAULT": DEFAULT, "EXTENDED": EXTENDED}


def curriculum(name: str, steps: int, ramp: str = "step", factors: Sequence[str] = FACTORS) -> Curriculum:
    """The published curriculum `name`, its 100,000 steps stretched or shrunk to `steps`.

    A factor that is not among `factors` stays as it is in the first stage. Raises ValueError, naming what exists, for
    an unknown name, ramp or factor.
    """
    if name not in TABLES:
        raise ValueError(f"curriculum '{name}' does not exist; choose one of {', '.join(TABLES)}")
    if ramp not in RAMPS:
        raise ValueError(f"curriculum_ramp '{ramp}' does not exist; choose one of {', '.join(RAMPS)}")
    rows = [_kept(row, TABLES[name][0], _known(factors)) for row in TABLES[name]]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    stages = [_stage(number, row, steps) for number, row in enumerate(rows, 1)]
    lasting = tuple(stage for stage in stages if stage.start < stage.end)  # a run of few steps skips some
    return Curriculum(name, f"trainer/curriculum.py:{name}", digest, lasting, ramp)


def _known(factors: Sequence[str]) -> Sequence[str]:
    for factor in factors:
        if factor not in FACTORS:
            known, nearest = ", ".join(FACTORS), difflib.get_close_matches(factor, FACTORS, n=1, cutoff=0.0)[0]
            hint = f"choose one of {known} (nearest: {nearest})"
            raise ValueError(f"curriculum_factors '{factor}' does not exist; {hint}")
    return factors


def _kept(row: Row, first: Row, factors: Sequence[str]) -> Row:
    """The row with every column of another factor as in the first row."""
    columns = zip(COLUMNS, row, first, strict=True)
    return tuple(own if factor in ("", *factors) else held for factor, own, held in columns)  # type: ignore[return-value]


def _stage(number: int, row: Row, steps: int) -> Stage:
    begin, end, shortest, longest, noise, dropout, ppm, heights, spectrum, precursor = row
    data = Corruption(shortest, longest, noise, dropout, ppm, heights)
    kind = f"{noise} noise peaks" if noise else "clean"
    weights = {"sequence": 1.0, "spectrum": spectrum, "precursor": precursor}
    name = f"{number}: length {shortest}-{longest}, {kind}"
    return Stage(name, round(begin * steps / PUBLISHED_STEPS), round(end * steps / PUBLISHED_STEPS), data, weights)
