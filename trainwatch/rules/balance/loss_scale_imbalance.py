"""See the rule's docstring: it is the page that `trainwatch rules loss-scale-imbalance` prints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, Stage, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import fall, in_blocks, medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles, small_by_design

Floats = NDArray[np.float64]
Rows = dict[str, Floats]

HYSTERESIS = 0.5  # of an entry threshold: noise of a fifth about the threshold neither ends an episode nor begins one
LASTING = 5  # blocks: what passes sooner is how a run starts, and not worth an info


@dataclass
class Episode:
    """A stretch of blocks in which one component outweighs the others, and the latest of them."""

    component: str
    first_step: int
    before: dict[str, float]
    blocks: int = 0
    others: list[str] = field(default_factory=list)
    here: dict[str, float] = field(default_factory=dict)
    block: Rows = field(default_factory=dict)
    earlier: tuple[float, float] = (np.nan, np.nan)  # share and ratio of the block before

    @property
    def share(self) -> float:
        """Of the gradient, as last probed."""
        return self.here[f"share/{self.component}"]

    @property
    def sizes(self) -> tuple[float, float]:
        """Contribution of the component, and of the others together."""
        return _size(self.component, self.here), sum(_size(name, self.here) for name in self.others)

    @property
    def last_step(self) -> int:
        """A block at the end of a run is filled up with NaN."""
        return int(np.nanmax(self.block["step"]))


@dataclass
class LossScaleImbalance(Rule):
    """One loss component outweighs all others together by its sheer scale.

    What it sees:
        The contribution (weight x raw value) of the largest component against the sum of the others, as medians over
        blocks of rows: 3,256,742 beside 3.75. It is an alarm if that component also owns nearly the whole gradient, in
        two blocks, or in the first of all if it is a thousand times the others; if it has nine tenths of it and fifty
        times the others' sum in two blocks on end, and not all of them improve; if it has four fifths of it, a hundred
        times the others' sum, and none of them improves; or, where no gradients are recorded, if it is a thousand times
        the others while these stand at values of 1 and more and none of them improves, or fifty times in two blocks on
        end while these, all of them declared tasks, have doubled, or thirty times declared tasks (ten times, if it was
        declared to be no task itself) in two blocks on end while the gradient's norm is thirty times what it is clipped
        to. Else it is worth knowing, no more. Not among the others: components of weight 0, of a tiny or negative
        weight, or one that rises, whose schedule is not at its end or that a later stage raises to the large one's
        scale, with both signs (a policy's surrogate), and those that fell from the large one's scale because they are
        solved. What is a regulariser or an auxiliary, by role or name, is one of them only below a thousandth, at a
        value of 1 and more, without a gradient to speak of. A start that passes within a fifth of the run while the
        loss falls is an info. Where neither weights nor gradients are recorded, and the total is not a tenth of what
        the largest would contribute, weights are at work, and nothing is told.

    Why it matters:
        The optimiser follows the sum. What contributes a millionth of it is not trained at all, and after clipping the
        other components' gradients are scaled away: the curve looks busy and the task is not learned.

    What to do:
        Bring the large component to the scale of the others: normalise it by its unit (log1p, Huber, a relative error
        instead of an absolute one), or lower its weight by the ratio that is shown here.

    When it is wrong:
        A small term beside a large one can be meant (a z-loss, a KL term that starts from 0): declare its role as
        `auxiliary` or `regulariser` in `components`. Where the large one contributes 10 at most and the others' values
        are below 1, as normalised errors that are being learned, its gradient is no proof, and it is an info. Without
        recorded weights each counts as 1: less confidence.

    References:
        A hearing-test model whose PeakAmp loss stood at 3,256,742.75 beside Signal at 3.75.
    """

    block: ClassVar[int] = 20  # rows; a median of 20 forgives nine outliers
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = (
        *("weight/<component>", "loss", "grad_norm", "run:max_grad_norm"),
        "grad_share/<component>|param_share/<component>",
        "run:components",
    )
    causes: ClassVar[tuple[str, ...]] = (
        "gradient-dominance",
        "component-ignored",
        "clipping-saturated",
        "gradient-explosion",
        "gradient-spike",
        "amp-scale-collapse",
        "non-finite-gradient",
        "non-finite-loss",
        "loss-stuck",
        "loss-divergence",
        "component-divergence",
        "mode-collapse",
        "length-collapse",
    )

    warning_ratio: float = 10.0  # largest / sum of others; healthy multi-task runs reach 5 to 8 in their first steps
    critical_ratio: float = 100.0  # below 1 % of the sum a component's gradient drowns in the other's noise
    absurd_ratio: float = 1000.0  # proof without gradients, or in the first block; healthy sums reach 10 to 300
    ordinary: float = 1.0  # raw value of a task not learned yet (ln 3, a normalised error); terms meant small are below
    worse: float = 2.0  # x its first level: a task that is trained does not double, beside a louder one or not
    owned_share: float = 0.95  # of the gradient: what the others are left with is less than one batch's noise
    improvement: float = 0.02  # relative; less than that in two blocks is no learning
    solved: float = 0.3  # of its first value: a component this far down is done, and rightly small
    loud_share: float = 0.9  # of the gradient, and so many
    loud_ratio: float = 50.0  # x the others: one by scale and by pull; a healthy main task comes to 30 with as much
    leads_share: float = 0.8  # of the gradient, where the sum says the same: a hundredfold, and no other improves
    clipped_ratio: float = 30.0  # x the others, declared tasks, where the norm that this makes is clipped; health: 6
    aside_ratio: float = 10.0  # x the tasks, there, of what was declared to be none: it is to help them; health: 2
    clipped: float = 30.0  # x the limit on the norm, beside it: the others' part is none of the step; health: 11
    unseen: float = 0.1  # of the largest, for the total: sums and means over micro-batches differ by less
    tiny_weight: float = (
        0.01  # of the largest component's weight, or of 1: whoever sets that means the term to be small
    )
    annealed: float = 1.02  # x, within a block: a weight that still rises is meant to be small for now
    early: float = 0.2  # of the run: learned weights balance the components by then
    fewest: int = 5  # rows that a run must have: a median of 5 forgives two outliers
    modest: float = 10.0  # contribution beside raw values below 1: a loss of ordinary size; health: 4.5, sick: 13

    _stages: tuple[Stage, ...] = field(default=(), init=False)
    _roles: dict[str, str] = field(default_factory=dict, init=False)
    _annealed: dict[str, float] = field(default_factory=dict, init=False)  # step at which a weight is at its end
    _limit: float = field(default=np.inf, init=False)  # on the gradient's norm
    _total: int = field(default=0, init=False)  # steps that are planned
    _rows: int = field(default=0, init=False)
    _from: float = field(default=np.nan, init=False)  # the first step of all
    _final: bool = field(default=False, init=False)
    _start: dict[str, float] = field(default_factory=dict, init=False)  # of the first block
    _begun: dict[str, float] = field(default_factory=dict, init=False)  # of the first three rows
    _episode: Episode | None = field(default=None, init=False)
    _told: dict[str, Finding] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """Which components are small by design."""
        self._roles = Roles.of(header).said
        moving = {name: said for name, said in header.schedules.items() if said.get("kind") != "constant"}
        self._annealed = {
            name.removeprefix("weight/"): (number(said.get("begin")) or 0.0)
            + (number(said.get("over_steps")) or np.inf)
            for name, said in moving.items()
            if name.startswith("weight/")
        }
        curriculum = header.curriculum_running or header.curriculum
        self._stages = curriculum.stages if curriculum else ()
        self._limit = header.max_grad_norm or np.inf
        self._total = header.total_steps or 0
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most blocks are balanced: the ratios are taken for all of them at once."""
        self._from = self._from if self._rows else float(chunk.step[0])
        self._rows += len(chunk)
        yield from self._judge({name: in_blocks(values, self.block) for name, values in _columns(chunk).items()})

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Judge the rows that fill no block yet, on a copy: a short run has no others."""
        trial = deepcopy(self)
        trial._final, trial._rows = True, self._rows + len(rest)
        if len(rest) >= (self.block // 2 if self._rows else self.fewest):
            yield from trial._judge({name: in_blocks(values, self.block) for name, values in _columns(rest).items()})
        elif trial._episode is not None:
            yield from trial._verdict(trial._episode)
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        yield from trial._start_that_passed(whole, max(self._total, run.last_step or 0))

    def _start_that_passed(self, whole: Chunk, last: int) -> Iterator[Finding]:
        """An alarm that began with the run and was soon over, while the loss falls: so learned weights begin."""
        for finding in self._told.values():
            passed = finding.rank > 0 and finding.state == "over" and finding.first_step <= whole.step[0]
            soon = finding.last_step - finding.first_step < self.early * (last - finding.first_step)
            if passed and soon and fall(whole["loss"]) > 0:
                yield replace(finding, severity="info", message=f"{finding.message.rstrip('.')}; it passed.")

    def _judge(self, blocks: Rows) -> Iterator[Finding]:
        """Look only at the blocks in which the largest component stands out."""
        names = [name.removeprefix("raw/") for name in blocks if name.startswith("raw/")]
        if not names:
            return
        rows = {name: medians(values) for name, values in blocks.items() if name != "step"}
        for name in names:
            known = rows[f"raw/{name}"][np.isfinite(rows[f"raw/{name}"])]
            if len(known):
                self._start.setdefault(name, float(known[0]))
                rows_known = blocks[f"raw/{name}"][np.isfinite(blocks[f"raw/{name}"])]
                self._begun.setdefault(name, float(np.median(rows_known[:3])))
        sizes = np.stack([np.nan_to_num(_sizes(rows[f"raw/{name}"], rows[f"weight/{name}"])) for name in names])
        top, awaited = sizes.max(axis=0), 0
        for index in np.flatnonzero(top > HYSTERESIS * self.warning_ratio * (sizes.sum(axis=0) - top)):
            if index != awaited:
                yield from self._ended()
            awaited = int(index) + 1
            here = {name: float(values[index]) for name, values in rows.items()}
            block = {name: values[index] for name, values in blocks.items()}
            yield from self._outweighed(names[int(sizes[:, index].argmax())], names, here, block)
        if awaited != len(top):
            yield from self._ended()

    def _outweighed(self, largest: str, names: list[str], here: dict[str, float], block: Rows) -> Findings:
        """One block in which ``largest`` stands out; do those count that it outweighs?"""
        if self._episode is not None and self._episode.component != largest:
            yield from self._ended()
        if self._episode is not None and np.isnan(here[f"share/{largest}"]):
            here[f"share/{largest}"] = self._episode.here[f"share/{largest}"]  # gradients are probed now and then
        others = [name for name in names if self._counts(name, largest, here, block)]
        part, rest = _size(largest, here), sum(_size(name, here) for name in others)
        limit = self.warning_ratio * (HYSTERESIS if self._episode else 1.0)
        if rest <= 0 or part <= limit * rest or self._weighted_unseen(largest, here):
            yield from self._ended()
            return
        if self._episode is None:
            before = {name: here[f"raw/{name}"] for name in names}
            self._episode = Episode(largest, _onset(largest, others, block, self.warning_ratio), before)
        episode = self._episode
        if episode.blocks:
            was, beside = episode.sizes
            episode.earlier = episode.share, was / beside
        episode.blocks, episode.others, episode.here, episode.block = episode.blocks + 1, others, here, block
        yield from self._verdict(episode)

    def _weighted_unseen(self, largest: str, here: dict[str, float]) -> bool:
        """Whether the total is far less than the largest alone would make it at the weight 1, and neither a weight nor
        the gradient says what it is worth.
        """
        told = np.isfinite(here[f"weight/{largest}"]) or np.isfinite(here[f"share/{largest}"])
        return bool(not told and abs(here["total"]) < self.unseen * _size(largest, here))

    def _counts(self, name: str, largest: str, here: dict[str, float], block: Rows) -> bool:
        """Whether a component is one that should weigh something beside the largest."""
        raw, weight, values = here[f"raw/{name}"], here[f"weight/{name}"], block[f"raw/{name}"]
        if name == largest or not np.isfinite(raw) or weight <= 0:
            return False
        weights = block[f"weight/{name}"][np.isfinite(block[f"weight/{name}"])]
        moves = block["step"][0] < self._annealed.get(name, 0.0)
        if moves or (len(weights) and weights[-1] > self.annealed * weights[0]):
            return False
        if self._size_to_come(name, largest, here, block["step"][0]) * self.warning_ratio >= _size(largest, here):
            return False
        if _weight(weight) <= self.tiny_weight * min(1.0, _weight(here[f"weight/{largest}"])):
            return False
        if min((values > 0).sum(), (values < 0).sum()) > 0.1 * np.isfinite(values).sum():
            return False
        part, first = _size(largest, here), abs(self._start.get(name, raw))
        if abs(raw) <= self.solved * first and part <= self.warning_ratio * first * _weight(weight):
            return False
        owned = here[f"share/{largest}"] > self.owned_share and part > self.absurd_ratio * _size(name, here)
        names = (key.removeprefix("raw/") for key in here if key.startswith("raw/"))
        task = self._roles[name] == "task" if name in self._roles else not small_by_design(name, names)
        return task or (owned and abs(raw) >= self.ordinary)

    def _size_to_come(self, name: str, largest: str, here: dict[str, float], step: float) -> float:
        """A contribution as a later stage weighs it beside the largest, at today's values; 0 if none raises it."""
        begun = [stage for stage in self._stages if stage.start < step]
        at = (begun or list(self._stages))[-1:]
        parts = [stage.weights.get(name, 0.0) / (stage.weights.get(largest) or np.inf) for stage in self._stages]
        ahead = [part for stage, part in zip(self._stages, parts, strict=True) if stage.start >= step]
        now = parts[self._stages.index(at[0])] if at else 0.0
        if now <= 0 or not ahead or max(ahead) <= self.annealed * now:
            return 0.0
        return _size(name, here) * max(ahead) / now

    def _verdict(self, episode: Episode) -> Findings:
        """An alarm with its proof, else an info once it lasts; an alarm without gradients may fall back to an info."""
        (part, rest), told = episode.sizes, self._told.get(episode.component)
        warned = told is not None and told.rank > 0
        alarm = told if told is not None and warned and told.state == "active" else None
        sick = self._sick(episode, part / rest, alarm)
        lasts = episode.blocks >= LASTING or (self._final and self._rows < LASTING * self.block)
        notable = part / rest > (self.critical_ratio if np.isfinite(episode.share) else self.warning_ratio)
        if warned and not sick and (alarm is None or "gradient_share" in alarm.evidence):
            yield from self._closed(episode.component)
        elif sick or warned or (lasts and notable):
            first = told.first_step if told is not None else episode.first_step
            if told is not None and sick and not warned:
                yield from self._closed(episode.component)
                first = episode.first_step if episode.blocks <= 2 else int(episode.block["step"][0])
            if told is not None and alarm is not None and sick and self._milder(episode, part / rest, told):
                yield self._say(replace(told, last_step=max(told.last_step, episode.last_step)))
            else:
                yield self._say(self._said(episode, first, sick))
        elif told is not None and told.state == "active":
            yield self._say(replace(told, last_step=max(told.last_step, episode.last_step)))

    @staticmethod
    def _milder(episode: Episode, ratio: float, told: Finding) -> bool:
        """Whether what was told was worse, by the same proof: its figures are those that its severity is of."""
        alike = ("gradient_share" in told.evidence) == bool(np.isfinite(episode.share))
        return alike and ratio <= float(told.evidence["ratio"])

    def _sick(self, episode: Episode, ratio: float, alarm: Finding | None) -> bool:
        """The gradient proves it; without one: thousands beside values that are not solved and do not improve."""
        ease = HYSTERESIS if alarm else 1.0
        if np.isfinite(episode.share):
            small = all(abs(episode.here[f"raw/{name}"]) < self.ordinary for name in episode.others)
            if small and episode.sizes[0] <= ease * self.modest:
                return False
            owned = 1 - episode.share < (1 - self.owned_share) / ease and ratio > ease * self.warning_ratio
            loud = 1 - episode.share < (1 - self.loud_share) / ease and ratio > ease * self.loud_ratio
            loud &= alarm is not None or episode.blocks < 2 or self._was_loud(episode)
            owned |= loud and not all(self._improves(episode, name, 10) for name in episode.others)
            leads = 1 - episode.share < (1 - self.leads_share) / ease and ratio > ease * self.critical_ratio
            starve = leads and not any(self._improves(episode, name, 10) for name in episode.others)
            at_once = owned and ratio > self.absurd_ratio and episode.first_step <= self._from + self.fewest
            return (owned or starve) and (episode.blocks >= 2 or at_once or self._short())
        unsolved = any(abs(episode.here[f"raw/{name}"]) >= self.ordinary for name in episode.others)
        absurd = unsolved and ratio > ease * self.absurd_ratio and (episode.blocks >= 2 or self._short())
        bar = self.warning_ratio if alarm else self.loud_ratio  # it is over when the others have come back
        if ratio > bar and episode.blocks >= 2 and self._drown(episode):
            return True
        helper = self._roles.get(episode.component, "task") != "task"
        if ratio > ease * (self.aside_ratio if helper else self.clipped_ratio) and self._clipped(episode, ease):
            return True
        return absurd and not any(self._improves(episode, name, 5 if alarm else 1) for name in episode.others)

    def _drown(self, episode: Episode) -> bool:
        """Whether all others are declared tasks that stand at twice their first level, which was no small one."""
        return all(
            self._roles.get(name) == "task"
            and episode.here[f"raw/{name}"] >= self.worse * self._begun[name] >= self.worse * self.ordinary
            for name in episode.others
        )

    def _clipped(self, episode: Episode, ease: float) -> bool:
        """Whether all others are declared tasks, and the whole gradient is cut down to a few hundredths of itself."""
        declared = all(self._roles.get(name) == "task" for name in episode.others)
        cut = episode.here["norm"] > ease * self.clipped * self._limit
        return bool(declared and cut) and (episode.blocks >= 2 or self._short())

    def _was_loud(self, episode: Episode) -> bool:
        """Whether it was as loud in the block before: of a few samples a step, one block's median is no level."""
        share, ratio = episode.earlier
        return share > self.loud_share and ratio > self.loud_ratio

    def _short(self) -> bool:
        """Whether the run has no second block yet: elsewhere one of a few rows shows what single batches are like."""
        return self._final and self._rows < 2 * self.block

    def _improves(self, episode: Episode, name: str, times: int) -> bool:
        """Since the episode began; within its block, if it has but one."""
        was, now = episode.before.get(name, np.nan), episode.here[f"raw/{name}"]
        if episode.blocks == 1:
            known = episode.block[f"raw/{name}"][np.isfinite(episode.block[f"raw/{name}"])]
            half = (len(known) + 1) // 2
            was, now = float(np.median(known[:half])), float(np.median(known[-half:]))
        return now < was - times * self.improvement * abs(was)

    def _said(self, episode: Episode, first: int, sick: bool) -> Finding:
        name, (part, rest), share, told = (
            episode.component,
            episode.sizes,
            episode.share,
            self._told.get(episode.component),
        )
        ratio, known = part / rest, bool(np.isfinite(share))
        tasks = any(
            self._roles.get(other, "task") == "task" for other in episode.others
        )  # a prior that starves is less
        grave = (tasks and ratio > self.critical_ratio) or (told is not None and told.severity == "critical")
        weighted = np.isfinite(episode.here[f"weight/{name}"])
        unweighted = "" if weighted else " (no weights are recorded: each counts as 1)"
        proof = f", and {share:.1%} of the gradient" if known else ", while none of them improves"
        if not known and self._clipped(episode, HYSTERESIS):
            proof = f", and the norm of {episode.here['norm']:,.3g} that this makes is clipped to {self._limit:,.3g}"
        cure = f"Normalise the {name} loss by its unit, or divide its weight by about {ratio:,.0f}."
        return self.finding(
            ("critical" if grave else "warning") if sick else "info",
            f"component:{name}",
            (first, episode.last_step),
            f"The {name} loss contributes {part:,.4g}, {' + '.join(episode.others)} together {rest:,.4g}: "
            f"{ratio:,.3g} times as much{proof if sick else ''}{unweighted}.",
            evidence={"contribution": part, "others": rest, "ratio": ratio}
            | ({"gradient_share": share} if known else {}),
            advice=cure if sick else f"If it is meant, declare a role or a weight for {' and '.join(episode.others)}.",
            confidence=(0.95 if known else 0.7) - (0.1 if unweighted else 0.0),
        )

    def _say(self, finding: Finding) -> Finding:
        self._told[finding.subject.removeprefix("component:")] = finding
        return finding

    def _ended(self) -> Findings:
        """The others weigh something again, or another component is the largest."""
        episode, self._episode = self._episode, None
        if episode is not None:
            yield from self._closed(episode.component)

    def _closed(self, name: str) -> Findings:
        told = self._told.get(name)
        if told is not None and told.state == "active":
            yield self._say(replace(told, state="over"))


def _columns(chunk: Chunk) -> Rows:
    """Raw values, weights and gradient shares of every component, and the steps."""
    columns = {"step": chunk.step.astype(np.float64), "norm": chunk["grad_norm"], "total": chunk["loss"]}
    for name in [name.removeprefix("loss/") for name in chunk.channels if name.startswith("loss/")]:
        raw, weight = chunk[f"loss/{name}"], chunk[f"weight/{name}"]
        near, wide = chunk[f"grad_share/{name}"], chunk[f"param_share/{name}"]
        share = np.where(np.isfinite(near), near, wide)
        columns |= {f"raw/{name}": raw, f"weight/{name}": weight, f"share/{name}": share}
    return columns


def _weight(weight: float) -> float:
    return 1.0 if np.isnan(weight) else abs(weight)


def _sizes(raw: Floats, weight: Floats) -> Floats:
    """Magnitudes of contributions; a weight is 1 where none is recorded."""
    return np.abs(raw * np.where(np.isnan(weight), 1.0, weight))


def _size(name: str, here: dict[str, float]) -> float:
    """Magnitude of a component's contribution."""
    return abs(here[f"raw/{name}"]) * _weight(here[f"weight/{name}"])


def _onset(largest: str, others: list[str], block: Rows, ratio: float) -> int:
    """The first step of the block in which ``largest`` is ``ratio`` times the others."""
    size = {name: _sizes(block[f"raw/{name}"], block[f"weight/{name}"]) for name in (largest, *others)}
    return int(block["step"][int(np.argmax(size[largest] > ratio * sum(size[name] for name in others)))])
