"""The loss components of a run as the rules see them that weigh one against another.

A run is seen as at most 128 bins: rows, or medians of rows. Those of a long run are made of medians of blocks, which
are taken once for all rules that ask for them: a dozen rules look at the same few columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header, mapping, text
from trainwatch.stats import SIGMA, History, carried, fall, median, medians, middle, noise, running_medians
from trainwatch.table import Chunk
from trainwatch.views.games import opponent
from trainwatch.views.regimes import JUMP

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BLOCK = 20  # rows; a median of 20 forgives nine outliers
BINS = 128  # of a run's course, an even number: as many as an eye sees
SHORT = BINS * BLOCK  # rows: up to here the rows themselves are looked at
MOST = 64  # components that are followed: more of them is a log to be distrusted

LEARNED = 0.8  # of its first level: above it a task is not learned; healthy ones that are not solved lose a third
WANDERS = 2.5  # standard deviations of levels a fifth of the run apart; where a descent bends it counts as wandering

SMALL_BY_DESIGN = re.compile(
    r"(^|[_.-])(kld?|z_?loss|(?<!cross[_.-])ent(ropy)?|aux\w*|moe\w*|balanc(e|ing)|reg(ul\w*)?|commit\w*|codebook|vq\w*"
    r"|smooth(ness)?(?=([_.-]loss)?$)|tv|variation|sparsity|ortho\w*|eikonal|weight_decay"
    r"|penalty|wd|log_?var|log_?sigma|policy|actor|pg)($|[_.-])"
)
"""Names that the field gives to regularisers, and to policy losses: their size beside a main loss says nothing.
A cross-entropy is none of them, nor is a smooth L1: they are what most main losses are."""
REGRESSION = re.compile(r"(^|[_.-])reg($|[_.-])")
DETECTION = re.compile(r"(^|[_.-])(cls|box|obj)($|[_.-])")
SPREAD = re.compile(r"(^|[_.-])(var(iance)?|std)($|[_.-])")
DECORRELATION = re.compile(r"(^|[_.-])(cov(ariance)?|decorr\w*)($|[_.-])")


def small_by_design(name: str, beside: Iterable[str]) -> bool:
    """Whether a name is that of a regulariser.

    `reg` beside `cls`, `box` or `obj` is the regression of the boxes; a variance and a covariance, beside each other,
    keep an embedding from collapse: what spreads it also correlates it, so that one pulls against the other.
    """
    low, others = name.lower(), [other.lower() for other in beside]
    spreads, decorrelates = (any(kind.search(one) for one in others) for kind in (SPREAD, DECORRELATION))
    if (SPREAD.search(low) and decorrelates) or (DECORRELATION.search(low) and spreads):
        return True
    boxes = REGRESSION.search(low) and any(DETECTION.search(other) for other in others)
    return bool(SMALL_BY_DESIGN.search(low)) and not boxes


@dataclass(frozen=True)
class Roles:
    """What the components are for, as far as it was said."""

    said: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # of the components, as far as they are known
    units: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, header: Header) -> Roles:
        """Only what was really written: `task` is the default, and says nothing."""
        written = mapping(header.raw.get("components"))
        roles, units = (
            {name: text(mapping(fields).get(key)) for name, fields in written.items()} for key in ("role", "unit")
        )
        said, known = ({name: value for name, value in each.items() if value} for each in (roles, units))
        return cls(said, tuple(written), known)

    def task(self, name: str) -> bool:
        """Whether it was declared as a task."""
        return self.said.get(name) == "task"

    def aside(self, name: str) -> bool:
        """Whether it has its own ways by its role, or by its name where no role was said."""
        named = opponent(name) or small_by_design(name, self.names)
        return self.said[name] != "task" if name in self.said else named

    def regulates(self, name: str) -> bool:
        """Whether it was declared a regulariser, or has the name of one and was not declared a task."""
        said = self.said.get(name)
        return said == "regulariser" or (said != "task" and (opponent(name) or small_by_design(name, self.names)))


_MEDIANS: WeakKeyDictionary[Chunk, dict[tuple[str, int, int], Floats]] = WeakKeyDictionary()


def bin_medians(chunk: Chunk, name: str, rows: int, width: int) -> Floats:
    """The median of each bin of ``width`` rows, of so many rows up to the end of ``chunk``; the last bin may have
    fewer. float64 [bins]
    """
    known = _MEDIANS.setdefault(chunk, {})
    if (name, rows, width) not in known:
        values, whole = chunk.rows.column(name, chunk.stop - rows, chunk.stop), rows - rows % width
        last = [median(values[whole:])] if whole < rows else []
        known[name, rows, width] = np.append(medians(values[:whole].reshape(-1, width)), last) if width > 1 else values
    return known[name, rows, width]


def components(chunk: Chunk) -> list[str]:
    """Names of the components that have a raw value."""
    return [name.removeprefix("loss/") for name in chunk.kind("loss/")[:MOST]]


def gradients(chunk: Chunk) -> dict[str, Floats]:
    """Norm of each component's gradient, or its share in the rows that have no norms. {name: float64 [rows]}"""
    kinds = (chunk.kind(kind)[:MOST] for kind in ("component_grad/", "grad_share/"))
    norms, shares = ({name.partition("/")[2]: chunk[name] for name in names} for names in kinds)
    if not norms or not shares:
        return norms or shares
    known, absent = np.isfinite(list(norms.values())).any(axis=0), np.full(len(chunk), np.nan)
    names = list(dict.fromkeys([*norms, *shares]))[:MOST]
    return {name: np.where(known, norms.get(name, absent), shares.get(name, absent)) for name in names}


def together(rows: Chunk, norms: dict[str, Floats]) -> Floats:
    """The norm of the sum of the components' gradients over the parameters, by norms and cosines. float64 [rows]"""
    names = list(norms)
    square = np.sum([norm**2 for norm in norms.values()], axis=0)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            square = square + 2 * norms[name] * norms[other] * rows[f"param_cosine/{name}~{other}"]
    total: Floats = np.sqrt(np.maximum(square, 0.0))
    return total


@dataclass(frozen=True)
class Course:
    """How the components of a run went: columns of one length, whose bins are rows or medians of many rows."""

    columns: dict[str, Floats]
    roles: Roles
    rows: int  # of the run, in all
    _weights: dict[str, Floats] = field(default_factory=dict, compare=False, repr=False)  # those that were asked for

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, channel: str) -> Floats:
        """A column, NaN where it was not recorded; what is probed now and then is not carried. float64 [bins]"""
        found = self.columns.get(channel)
        return np.full(len(self), np.nan) if found is None else found

    @property
    def names(self) -> list[str]:
        """Components with a raw value."""
        return [name.removeprefix("loss/") for name in self.columns if name.startswith("loss/")]

    def weight(self, name: str) -> Floats:
        """As recorded, from the row before where a row lacks it; 1 in a run that records no weights. float64 [bins]"""
        if name not in self._weights:
            weighted = any(channel.startswith("weight/") for channel in self.columns)
            self._weights[name] = _filled(self[f"weight/{name}"]) if weighted else np.ones(len(self))
        return self._weights[name]

    def part(self, name: str) -> Floats:
        """Magnitude of its contribution, weight x raw value. float64 [bins]"""
        return np.abs(self.weight(name) * self[f"loss/{name}"])

    def share(self, name: str) -> Floats:
        """Of the gradient; as last probed, where it is probed now and then. float64 [bins]"""
        near, wide = self[f"grad_share/{name}"], self[f"param_share/{name}"]
        return _filled(near if np.isfinite(near).any() else wide)

    def learned(self, name: str) -> bool:
        """Whether its raw value has come down by a fifth from where it began, which its noise alone does not do."""
        known = self[f"loss/{name}"][np.isfinite(self[f"loss/{name}"])]
        first, now = median(known[:5]), median(known[-max(5, len(known) // 10) :])
        at_once = now < min(LEARNED * first, first - 3 * noise(known))
        return at_once or fall(known) > 1 - LEARNED

    def steps(self, first: int, last: int) -> tuple[int, int]:
        """The steps of two bins."""
        step = self.columns["step"]
        return int(step[first]), int(step[min(last, len(step) - 1)])

    def lasting(self, fraction: float) -> int:
        """Bins that are a `fraction` of the run, and at least five bins and twenty rows, or all of a shorter run."""
        rows_a_bin = max(1, self.rows // max(len(self), 1))
        return max(5, round(fraction * len(self)), min(BLOCK // rows_a_bin, len(self)))

    def regime_begin(self, before: int) -> int:
        """First bin of the stage, and of the cycle of the learning rate, that hold in the bin `before` - 1."""
        stage = _filled(self["stage"])[:before]
        changed = np.isfinite(stage[:-1]) & (stage[1:] != stage[:-1])
        for name in self.columns:
            if name.startswith("lr/"):
                rate = _filled(self[name])[:before]
                changed = changed | (rate[1:] > JUMP * rate[:-1])
        begins = np.flatnonzero(changed)
        return int(begins[-1]) + 1 if len(begins) else 0


@dataclass
class Courses:
    """Keeps the course of a run's components, in constant memory; ``kinds`` are beginnings of channels' names."""

    kinds: tuple[str, ...]
    _history: History = field(default_factory=lambda: History(BINS))
    _rows: int = 0
    _roles: Roles = field(default_factory=Roles)
    _curriculum: Curriculum | None = None

    def start(self, header: Header) -> None:
        """Roles, and the stages of a run that does not record its stage."""
        self._roles, self._curriculum = Roles.of(header), header.plan

    def push(self, chunk: Chunk) -> None:
        """Add whole blocks of rows."""
        self._rows += len(chunk)
        self._history.push(self._blocks(chunk))

    def course(self, rest: Chunk) -> Course:
        """The run from the first row of this process to the end of ``rest``."""
        rows = self._rows + len(rest)
        whole = Chunk("train", rest.rows, rest.stop - rows, rest.stop)
        if rows <= SHORT:
            width = max(1, -(-rows // BINS))
            columns = {"step": whole.step[::width].astype(np.float64)}
            columns |= {name: bin_medians(rest, name, rows, width) for name in self._wanted(whole)}
        else:
            columns = self._history.series(self._blocks(rest) if len(rest) else None)
        if self._curriculum is not None and self._curriculum.stages:
            columns["stage"] = self._stage(columns, self._curriculum)
        names = (name.removeprefix("loss/") for name in columns if name.startswith("loss/"))
        return Course(columns, replace(self._roles, names=tuple(names)), rows)

    def _wanted(self, chunk: Chunk) -> Iterator[str]:
        """The channels in the order in which they appeared; of each kind not more than can be believed."""
        yield from (name for name in ("loss", "stage", "applied") if name in chunk.rows)
        for kind in (*self.kinds, "lr/"):
            yield from chunk.kind(kind)[:MOST]

    def _blocks(self, chunk: Chunk) -> dict[str, Floats]:
        first = {"step": chunk.step[::BLOCK].astype(np.float64)}
        return first | {name: bin_medians(chunk, name, len(chunk), BLOCK) for name in self._wanted(chunk)}

    @staticmethod
    def _stage(columns: dict[str, Floats], curriculum: Curriculum) -> Floats:
        recorded = columns.get("stage", np.full(len(columns["step"]), np.nan))
        applied = columns.get("applied", np.full(len(columns["step"]), np.nan))
        begins = np.array([stage.start for stage in curriculum.stages])
        at = np.where(np.isnan(applied), columns["step"], applied)
        return np.where(np.isnan(recorded), np.searchsorted(begins, at, side="right") - 1.0, recorded)


@dataclass(frozen=True)
class Relapse:
    """A value that fell, and rose again: from where, how low, in which bin, and where it is now."""

    start: float
    best: float
    at: int
    now: float
    scatter: float  # of one bin


def relapse(values: Floats, begin: int, end: int, fraction: float, sigmas: float) -> Relapse | None:
    """Whether what fell within ``begin`` to ``end`` is back up at its end, by a ``fraction`` of the best level.

    Levels are running medians over five bins. Fall and rise must be more than so many ``sigmas`` of the noise, and more
    than levels wander; the rise stays beyond half of itself throughout the last fifth: a wave is none.
    """
    level = running_medians(values[begin:end], 5)
    tail = max(5, len(level) // 5)
    if np.isfinite(level).sum() < 4 * 5 or not np.isfinite(level[:-tail]).any() or not np.isfinite(level[-tail:]).any():
        return None
    at = int(np.nanargmin(level[:-tail]))
    start, best, now = (float(value) for value in (np.nanmax(level[: at + 1]), level[at], median(level[-tail:])))
    relapsed = min(start, now) - best
    if not relapsed > fraction * abs(best) or np.nanmin(level[-tail:]) < (best + now) / 2:
        return None
    scatter = noise(values[begin:end])
    if not relapsed > max(sigmas * scatter, WANDERS * _wander(level, tail)):
        return None
    return Relapse(start, best, begin + at, now, scatter)


def _wander(level: Floats, apart: int) -> float:
    """Standard deviation of levels so far apart, in which a steady descent or rise is nothing."""
    bends = level[: -2 * apart] - 2 * level[apart:-apart] + level[2 * apart :]
    known = bends[np.isfinite(bends)]
    return SIGMA * middle(np.abs(known)) / 6**0.5 if len(known) else 0.0


def longest(holds: Bools) -> tuple[int, int]:
    """The longest stretch of bins in which a condition holds: its first bin, and the bin after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    begins, ends = edges[::2], edges[1::2]
    longest_one = int((ends - begins).argmax())
    return int(begins[longest_one]), int(ends[longest_one])


def _filled(values: Floats) -> Floats:
    """Each value, or the last one before it where it is NaN."""
    known = np.isfinite(values)
    return values if known.all() else np.where(known, values, carried(np.nan, values))
