"""See the rule's docstring: it is the page that `trainwatch rules loss-scale-imbalance` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.copying import copied
from trainwatch.header import Header, Stage, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import fall, medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles, small_by_design
from trainwatch.views.outweighing import Block, Episode, Floats, Rows, columns, sizes

HYSTERESIS = 0.5  # of an entry threshold: noise of a fifth about the threshold neither ends an episode nor begins one
LASTING = 5  # blocks: what passes sooner is how a run starts, and not worth an info


@dataclass
class LossScaleImbalance(Rule):
    """One loss component outweighs all others together by its sheer scale.

    What it sees:
        The contribution (weight x raw value) of the largest component against the sum of the others, as medians over
        blocks of rows: 3,256,742 beside 3.75. Scale alone is worth knowing, no more; an alarm needs a proof, in two
        blocks, that the others are not trained.

        By the gradient: the component owns nearly all of it (and one block will do at the very start, or by half of a
        run that has few rows, if it is a thousand times the others, or was declared to be no task and is a hundred
        times declared ones); or nine tenths of it at fifty times the others' sum, and not all of them improve; or four
        fifths of it at a hundred times, and none of them improves.

        Where no gradients are recorded: it is a thousand times the others, while these stand at values of 1 and more
        and none of them improves; or thirty times declared tasks (ten times, if it was declared to be no task itself),
        while the gradient's norm is thirty times what it is clipped to.

        Not among the others: components of weight 0, of a tiny or negative weight, or one that rises, whose schedule is
        not at its end or that a later stage raises to the large one's scale, with both signs (a policy's surrogate),
        and those that fell from the large one's scale because they are solved. What is a regulariser or an auxiliary,
        by role or name, is one of them only below a thousandth, at a value of 1 and more and a weight above 0.1,
        without a gradient to speak of. A start that passes within a fifth of the run while the loss falls is an info,
        unless a declared task ends above where it began. Where neither weights nor gradients are recorded, and the
        total is not a tenth of what the largest would contribute, weights are at work, and nothing is told.

    Why it matters:
        The optimiser follows the sum. What contributes a millionth of it is not trained at all, and after clipping the
        other components' gradients are scaled away: the curve looks busy and the task is not learned.

    What to do:
        Bring the large component to the scale of the others: normalise it by its unit (log1p, Huber, a relative error
        instead of an absolute one), or lower its weight by the ratio that is shown here.

    When it is wrong:
        A small term beside a large one can be meant (a z-loss, a KL term that starts from 0): declare its role as
        `auxiliary` or `regulariser` in `components`. Where the large one contributes 10 at most and the others' values
        are below 1, as normalised errors that are being learned, or their weights a tenth and less, as somebody chose
        them, its gradient is no proof, and it is an info. Without recorded weights each counts as 1: less confidence.

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
    owned_share: float = 0.95  # of the gradient: what the others are left with is less than one batch's noise
    improvement: float = 0.02  # relative; less than that in two blocks is no learning
    recovery: float = 0.1  # relative, of one of the others: an alarm without gradients is over
    learning: float = 0.2  # relative; beside a gradient that goes elsewhere noise comes to less
    solved: float = 0.3  # of its first value: a component this far down is done, and rightly small
    trained: float = 0.05  # of it: nobody learns so much on what is left of a gradient
    loud_share: float = 0.9  # of the gradient, and so many
    loud_ratio: float = 50.0  # x the others: one by scale and by pull; a healthy main task comes to 30 with as much
    leads_share: float = 0.8  # of the gradient, where the sum says the same: a hundredfold, and no other improves
    clipped_ratio: float = 30.0  # x the others, declared tasks, where the norm that this makes is clipped; health: 6
    aside_ratio: float = 10.0  # x the tasks, there, of what was declared to be none: it is to help them; health: 2
    clipped: float = 30.0  # x the limit on the norm, beside it: the others' part is none of the step; health: 11
    unseen: float = 0.1  # of the largest, for the total: sums and means over micro-batches differ by less
    tiny_weight: float = 0.01  # of the largest one's, or of 1: whoever sets that means the term to be small
    small_weight: float = 0.1  # likewise, of a regulariser (it decides where data do not) and beside a modest loss
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
    _episode: Episode | None = field(default=None, init=False)
    _told: dict[str, Finding] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """Which components are small by design."""
        self._roles = Roles.of(header).said
        for name, said in header.schedules.items():
            if name.startswith("weight/") and said.get("kind") != "constant":
                over = number(said.get("over_steps")) or np.inf
                self._annealed[name.removeprefix("weight/")] = (number(said.get("begin")) or 0.0) + over
        self._stages = header.plan.stages if header.plan else ()
        self._limit = header.max_grad_norm or np.inf
        self._total = header.total_steps or 0
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most blocks are balanced: the ratios are taken for all of them at once."""
        self._from = self._from if self._rows else float(chunk.step[0])
        self._rows += len(chunk)
        yield from self._judge(chunk)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Judge the rows that fill no block yet, on a copy: a short run has no others."""
        trial = copied(self)
        trial._final, trial._rows = True, self._rows + len(rest)
        if len(rest) >= (self.block // 2 if self._rows else self.fewest):
            yield from trial._judge(rest)
        elif trial._episode is not None:
            yield from trial._verdict(trial._episode)
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        yield from trial._start_that_passed(whole, max(self._total, run.last_step or 0))

    def _start_that_passed(self, whole: Chunk, last: int) -> Iterator[Finding]:
        """An alarm that began with the run and was soon over, while the loss falls: so learned weights begin."""
        for finding in self._told.values():
            passed = finding.rank > 0 and finding.state == "over" and finding.first_step <= whole.step[0]
            soon = finding.last_step - finding.first_step < self.early * (last - finding.first_step)
            if passed and soon and fall(whole["loss"]) > 0 and not self._lost(finding, whole):
                yield replace(finding, severity="info", message=f"{finding.message.rstrip('.')}; it passed.")

    def _lost(self, finding: Finding, whole: Chunk) -> bool:
        """Whether a declared task stands above where it began: the loss fell by what outweighed it, and not by it."""
        stages = whole["stage"][np.isfinite(whole["stage"])]
        tasks = [name for name in self._roles if self._roles[name] == "task" and f"component:{name}" != finding.subject]
        lost = any(fall(-whole[f"loss/{name}"]) > self.learning / 2 for name in tasks)
        return lost and not (len(stages) and np.ptp(stages) > 0)  # a later one may ask for more

    def _judge(self, chunk: Chunk) -> Iterator[Finding]:
        """Look only at the blocks in which the largest component stands out."""
        names, rows = columns(chunk, self.block)
        if not names:
            return
        together = medians(np.concatenate(list(rows.values())))  # numpy takes as long for one as for all
        levels = dict(zip(rows, np.split(together, len(rows)), strict=True))
        self._note_starts(names, levels)
        parts = np.stack([np.nan_to_num(sizes(levels, name)) for name in names])
        top, awaited = parts.max(axis=0), 0
        for index in np.flatnonzero(top > HYSTERESIS * self.warning_ratio * (parts.sum(axis=0) - top)).tolist():
            if index != awaited:
                yield from self._ended()
            awaited = index + 1
            block = Block(
                names,
                {key: values[index] for key, values in rows.items()},
                {key: float(values[index]) for key, values in levels.items()},
            )
            yield from self._outweighed(names[int(parts[:, index].argmax())], block)
        if awaited != len(top):
            yield from self._ended()

    def _note_starts(self, names: list[str], levels: Rows) -> None:
        """The first level of each component."""
        for name in names:
            level = levels[f"raw/{name}"]
            if name not in self._start and np.isfinite(level).any():
                self._start[name] = float(level[np.isfinite(level)][0])

    def _outweighed(self, largest: str, block: Block) -> Findings:
        """One block in which ``largest`` stands out; do those count that it outweighs?"""
        if self._episode is not None and self._episode.component != largest:
            yield from self._ended()
        if self._episode is not None and np.isnan(block.share(largest)):
            block.level[f"share/{largest}"] = self._episode.share  # gradients are probed now and then
        others = [name for name in block.names if self._counts(name, largest, block)]
        rest = sum(block.size(name) for name in others)
        limit = self.warning_ratio * (HYSTERESIS if self._episode else 1.0)
        if rest <= 0 or block.size(largest) <= limit * rest or self._weighted_unseen(largest, block):
            yield from self._ended()
            return
        if self._episode is None:
            self._episode = Episode(largest, block.onset(largest, others, self.warning_ratio), block, block, others)
        else:
            self._episode.add(block, others)
        yield from self._verdict(self._episode)

    def _weighted_unseen(self, largest: str, block: Block) -> bool:
        """Whether the total is far less than the largest alone would make it at the weight 1, and neither a weight nor
        the gradient says what it is worth.
        """
        told = block.weighted(largest) or np.isfinite(block.share(largest))
        return bool(not told and abs(block.level["total"]) < self.unseen * block.size(largest))

    def _counts(self, name: str, largest: str, block: Block) -> bool:
        """Whether a component is one that should weigh something beside the largest."""
        if name == largest or not np.isfinite(block.raw(name)) or block.weight(name) <= 0:
            return False
        meant_small = (
            self._rises(name, block)
            or self._raised_later(name, largest, block)
            or abs(block.weight(name)) <= self.tiny_weight * min(1.0, abs(block.weight(largest)))
            or _of_both_signs(block.rows[f"raw/{name}"])
            or self._solved(name, largest, block)
        )
        return not meant_small and (self._task(name, block) or self._drowned(name, largest, block))

    def _rises(self, name: str, block: Block) -> bool:
        """Whether a component's weight is on its way up, as declared or as recorded."""
        weights = block.rows[f"weight/{name}"][np.isfinite(block.rows[f"weight/{name}"])]
        moves = block.first_step < self._annealed.get(name, 0.0)
        return bool(moves or (len(weights) and weights[-1] > self.annealed * weights[0]))

    def _raised_later(self, name: str, largest: str, block: Block) -> bool:
        """Whether a later stage brings a component to the largest one's scale, at today's values."""
        parts = [stage.weights.get(name, 0.0) / (stage.weights.get(largest) or np.inf) for stage in self._stages]
        begun = sum(stage.start < block.first_step for stage in self._stages)
        now, ahead = parts[max(begun - 1, 0) :][:1], parts[begun:]
        if not ahead or now[0] <= 0 or max(ahead) <= self.annealed * now[0]:
            return False
        return block.size(name) * max(ahead) / now[0] * self.warning_ratio >= block.size(largest)

    def _solved(self, name: str, largest: str, block: Block) -> bool:
        """Whether a component came down far from its first value, at which the largest would not outweigh it, or by
        nearly all of it: it is trained, whatever stands beside it.
        """
        raw, first = abs(block.raw(name)), abs(self._start.get(name, block.raw(name)))
        bar = self.warning_ratio * first * abs(block.weight(name))
        return raw <= self.trained * first or (raw <= self.solved * first and block.size(largest) <= bar)

    def _task(self, name: str, block: Block) -> bool:
        """As declared, else by its name."""
        return self._roles[name] == "task" if name in self._roles else not small_by_design(name, block.names)

    def _drowned(self, name: str, largest: str, block: Block) -> bool:
        """Whether even what is meant to be small is next to nothing, at a value that is not."""
        owned = block.share(largest) > self.owned_share
        nothing = block.size(largest) > self.absurd_ratio * block.size(name)
        return (
            owned and nothing and abs(block.raw(name)) >= self.ordinary and not self._meant_small(name, largest, block)
        )

    def _meant_small(self, name: str, largest: str, block: Block) -> bool:
        """Whether somebody gave it a small weight."""
        return abs(block.weight(name)) <= self.small_weight * min(1.0, abs(block.weight(largest)))

    def _verdict(self, episode: Episode) -> Findings:
        """An alarm with its proof, else an info once it lasts; an alarm without gradients may fall back to an info."""
        told = self._told.get(episode.component)
        warned = told is not None and told.rank > 0
        alarm = told if told is not None and warned and told.state == "active" else None
        sick = self._sick(episode, alarm)
        lasts = episode.blocks >= LASTING or (self._final and self._rows < LASTING * self.block)
        notable = episode.ratio > (self.critical_ratio if episode.probed else self.warning_ratio)
        if warned and not sick and (alarm is None or "gradient_share" in alarm.evidence):
            yield from self._closed(episode.component)
        elif sick or warned or (lasts and notable):
            first = told.first_step if told is not None else episode.first_step
            if told is not None and sick and not warned:
                yield from self._closed(episode.component)
                proof = episode.earlier.first_step if episode.probed else episode.block.first_step
                first = episode.first_step if episode.blocks <= 2 else proof
            if alarm is not None and sick and self._milder(episode, alarm):
                yield self._say(replace(alarm, last_step=max(alarm.last_step, episode.block.last_step)))
            else:
                yield self._say(self._said(episode, first, sick))
        elif told is not None and told.state == "active":
            yield self._say(replace(told, last_step=max(told.last_step, episode.block.last_step)))

    @staticmethod
    def _milder(episode: Episode, told: Finding) -> bool:
        """Whether what was told was worse, by the same proof: its figures are those that its severity is of."""
        alike = ("gradient_share" in told.evidence) == episode.probed
        return alike and episode.ratio <= float(told.evidence["ratio"])

    def _sick(self, episode: Episode, alarm: Finding | None) -> bool:
        """The proof that the others are not trained: by the gradient, or by themselves where none is recorded.

        An alarm that stands is held by half of what raised it.
        """
        ease = HYSTERESIS if alarm else 1.0
        if episode.probed:
            return self._owns(episode, ease)
        return self._clipped(episode, ease) or self._stand(episode, ease)

    def _owns(self, episode: Episode, ease: float) -> bool:
        """Three proofs by the gradient: the less of it, the more of the sum, and the less the others learn."""
        if episode.part <= ease * self.modest and not self._drowns_one(episode):
            return False

        before, improved = episode.earlier, episode.improved(self.learning)

        def beyond(share: float, ratio: float) -> bool:
            now = 1 - episode.share < (1 - share) / ease and episode.ratio > ease * ratio
            if ease == 1.0 and episode.blocks > 1:  # of a few samples a step, one block's median is no level
                return now and before.share > share and before.ratio > ratio
            return now

        loud = beyond(self.loud_share, self.loud_ratio) and not all(improved)
        leads = beyond(self.leads_share, self.critical_ratio) and not any(improved)
        owned = beyond(self.owned_share, self.warning_ratio) or loud
        soon = episode.first_step <= self._from + 1 or self._few(episode.block)  # later it blew up, and was balanced
        absurd = self.critical_ratio if self._aside(episode) and self._tasks(episode) else self.absurd_ratio
        at_once = owned and episode.ratio > absurd and soon
        return at_once or ((owned or leads) and self._twice(episode))

    def _few(self, block: Block) -> bool:
        """Whether the run is half done, and has not the rows for its second block to come soon."""
        return self._final and self._rows < LASTING * self.block and 2 * block.last_step >= self._total > 0

    def _drowns_one(self, episode: Episode) -> bool:
        """Whether a value that is not learned yet stands beside it, which nobody gave a small weight."""
        largest, block = episode.component, episode.block
        free = [name for name in episode.others if not self._meant_small(name, largest, block)]
        return any(abs(block.raw(name)) >= self.ordinary for name in free)

    def _clipped(self, episode: Episode, ease: float) -> bool:
        """Whether all others are declared tasks, and the whole gradient is cut down to a few hundredths of itself."""
        bar = self.aside_ratio if self._aside(episode) else self.clipped_ratio
        cut = episode.block.level["norm"] > ease * self.clipped * self._limit
        return episode.ratio > ease * bar and cut and self._tasks(episode) and self._twice(episode)

    def _stand(self, episode: Episode, ease: float) -> bool:
        """Whether the others are a thousandth, at values of a task that is not learned, and none of them improves."""
        absurd = episode.unsolved(self.ordinary) and episode.ratio > ease * self.absurd_ratio
        improved = episode.improved(self.improvement if ease == 1.0 else self.recovery)
        return absurd and self._twice(episode) and not any(improved)

    def _aside(self, episode: Episode) -> bool:
        """Whether what outweighs the others was declared to be no task: it is there to help them."""
        return self._roles.get(episode.component, "task") != "task"

    def _tasks(self, episode: Episode) -> bool:
        """Whether all others are declared tasks."""
        return all(self._roles.get(name) == "task" for name in episode.others)

    def _twice(self, episode: Episode) -> bool:
        """Whether it is so in two blocks, or the run has no second one yet: elsewhere one of a few rows shows what
        single batches are like.
        """
        return episode.blocks > 1 or (self._final and self._rows < 2 * self.block)

    def _said(self, episode: Episode, first: int, sick: bool) -> Finding:
        name, part, rest, ratio = episode.component, episode.part, episode.rest, episode.ratio
        others, weighted = episode.others, episode.block.weighted(name)
        unweighted = "" if weighted else " (no weights are recorded: each counts as 1)"
        cure = f"Normalise the {name} loss by its unit, or divide its weight by about {ratio:,.0f}."
        return self.finding(
            ("critical" if self._grave(episode) else "warning") if sick else "info",
            f"component:{name}",
            (first, episode.block.last_step),
            f"The {name} loss contributes {part:,.4g}, {' + '.join(others)} together {rest:,.4g}: "
            f"{ratio:,.3g} times as much{self._proof(episode) if sick else ''}{unweighted}.",
            evidence={"contribution": part, "others": rest, "ratio": ratio}
            | ({"gradient_share": episode.share} if episode.probed else {}),
            advice=cure if sick else f"If it is meant, declare a role or a weight for {' and '.join(others)}.",
            confidence=(0.95 if episode.probed else 0.7) - (0.1 if unweighted else 0.0),
        )

    def _grave(self, episode: Episode) -> bool:
        """Whether a task drowns, now or when it was told: a prior that starves is less."""
        told = self._told.get(episode.component)
        tasks = any(self._roles.get(name, "task") == "task" for name in episode.others)
        return (tasks and episode.ratio > self.critical_ratio) or (told is not None and told.severity == "critical")

    def _proof(self, episode: Episode) -> str:
        if episode.probed:
            return f", and {episode.share:.1%} of the gradient"
        norm = episode.block.level["norm"]
        if self._clipped(episode, HYSTERESIS):
            return f", and the norm of {norm:,.3g} that this makes is clipped to {self._limit:,.3g}"
        return ", while none of them improves"

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


def _of_both_signs(values: Floats) -> bool:
    """Whether a value is now above 0 and now below: a policy's surrogate, whose size says nothing."""
    return bool(min((values > 0).sum(), (values < 0).sum()) > 0.1 * np.isfinite(values).sum())
