"""See the rule's docstring: it is the page that `trainwatch rules masked-out` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, in_blocks, medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles

Floats = NDArray[np.float64]
PREFIX = "data/masked/"
MOST = 64  # components; more of them is a log to be distrusted


@dataclass
class MaskedOut(Rule):
    """Nearly everything is masked out of a loss.

    What it sees:
        `data/masked/<component>`, the share of positions that do not count, above 90 % for five blocks of 20 rows, or
        in all rows of a run that has fewer and half of its steps behind it; what is left is what the component learns
        from.

    Why it matters:
        The loss is a mean over what the mask leaves: it looks as always while a tenth of the batch, or nothing, trains.
        A confidence mask may even please itself: what is hard is masked, so the loss falls.

    What to do:
        Record the share with `watch.log({"data/masked/sequence": 1 - mask.float().mean()})`. Lower the threshold of a
        confidence mask, or let it rise with the training; sort samples by length, or pack them, where padding is the
        reason; look at the polarity of the mask (1 - mask is the usual slip).

    When it is wrong:
        Fine-tuning on short answers to long prompts masks the prompts by design. A component that halves its loss under
        its mask is therefore an info, unless a tenth of all rows have nothing left at all, as no batch of answers has,
        and its validation loss is no lower than at first, or ten times that in training, of which half as much is
        left: then it learnt a few positions by heart. The total is looked at where the component is not evaluated. One
        that is no task is an info, too; but an auxiliary of which nothing is left for a fifth of the run is a warning
        (confidence masks open early in a run, if ever).

    References:
        ignore_index that collides with a class, attention masks with the wrong polarity: the commonest silent faults of
        fine-tuning scripts (trainproof, TP-OBJ-IGNORE-INDEX-COLLISION).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("data/masked/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("loss/<component>", "eval:loss/<component>|eval:loss")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-zero", "loss-stuck", "component-dead", "component-ignored", "slow-convergence", "mode-collapse"),
        *("non-finite-loss", "dead-module"),
    )

    masked: float = 0.9  # of the positions: masked language models leave 15 %, masked autoencoders 25 %
    everything: float = 0.9999  # of the positions: nothing trains
    open: float = 0.5  # of the positions: a row below it says that tasks take turns, and this one's turn came
    blocks: int = 5  # of 20 rows, in a row: in 100 rows each of some twenty tasks has had its turn
    half: float = 0.5  # of the planned steps: a log of a row in ten has few rows by then
    fewest: int = 5  # rows of such a log
    lasts: float = 0.2  # of the planned run, for an auxiliary that is masked out as a whole
    learnt: float = 0.5  # of the loss is gone since the mask closed: what is left is enough to learn from
    empty: float = 0.1  # of the rows have nothing left; 0.25 where one position in 250 counted, by mistake
    follows: float = 2.0  # x as much of the first loss is left in validation as in training, and
    above: float = 10.0  # x the training loss is what validation costs: 30 to 60 where a pixel in 300 counted
    evaluations: int = 3  # after the first one, before validation can deny what was learnt

    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _roles: Roles = field(default_factory=Roles, init=False)
    _total: int = field(default=0, init=False)  # steps that are planned
    _rows: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """Which components are no task."""
        self._roles, self._total = Roles.of(header), header.total_steps or 0
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Every component that has a mask."""
        self._rows += len(chunk)
        yield from self._judge(chunk, self._streaks, self.blocks)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What is learnt is held against validation; a log of few rows is judged as a whole."""
        for component, streak in self._streaks.items():
            if streak.onset is not None and self._by_heart(run, component):
                yield self._finding(component, streak, by_heart=True)
        rows = self._rows + len(rest)
        late = run.end is not None or (run.last_step or 0) >= self.half * self._total
        if self.fewest <= rows < self.blocks * self.block and late:
            whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
            streaks: dict[str, Streak] = {}
            for finding in self._judge(whole, streaks, -(-rows // self.block)):
                component = finding.subject.removeprefix("component:")
                by_heart = finding.state == "active" and self._by_heart(run, component)
                yield self._finding(component, streaks[component], by_heart=True) if by_heart else finding

    def _by_heart(self, run: Run, component: str) -> bool:
        """Whether batches have nothing left now and then, and validation has gained nothing from the others."""
        masked, name = run.train[f"{PREFIX}{component}"], f"loss/{component}"
        name = name if name in run.eval else "loss"
        trained, losses = run.train[name][masked < self.everything], run.eval.curve(name)[1]
        trained, masked = trained[np.isfinite(trained)], masked[np.isfinite(masked)]
        width = min(self.block, len(trained) // 4)
        if width < self.fewest or len(losses) <= self.evaluations:
            return False
        often = float((masked >= self.everything).mean()) > self.empty
        held = float(np.median(losses[-self.evaluations :]))
        first, now = (float(np.median(rows)) for rows in (trained[:width], trained[-width:]))
        far = held > self.above * now > 0 and held * first >= self.follows * now * losses[0]
        return often and (held >= losses[0] or far)

    def _judge(self, chunk: Chunk, streaks: dict[str, Streak], blocks: int) -> Iterator[Finding]:
        for name in [name for name in chunk.channels if name.startswith(PREFIX)][:MOST]:
            component = name.removeprefix(PREFIX)
            share = in_blocks(chunk[name], self.block)
            steps = in_blocks(chunk.step.astype(np.float64), self.block)
            columns = {"masked": medians(share), "loss": medians(in_blocks(chunk[f"loss/{component}"], self.block))}
            columns |= {"step": steps[:, 0], "last": np.nanmax(steps, axis=1)}
            closed = (columns["masked"] > self.masked) & ~(share < self.open).any(axis=1)
            streak = streaks.setdefault(component, Streak(blocks))
            if streak.push(closed, columns):
                yield self._finding(component, streak)

    def _finding(self, component: str, streak: Streak, *, by_heart: bool = False) -> Finding:
        onset, now = streak.onset or streak.latest, streak.latest
        nothing = now["masked"] >= self.everything
        learns = 0 < now["loss"] < self.learnt * onset["loss"] and not by_heart
        aside = self._roles.aside(component)
        helps = self._roles.said.get(component) == "auxiliary" and nothing
        grave = nothing and not aside
        wasted = helps and now["last"] - onset["step"] >= max(self.blocks * self.block, self.lasts * self._total) - 1
        return self.finding(
            "critical" if grave else "warning" if wasted or not (learns or aside) else "info",
            f"component:{component}",
            (int(onset["step"]), int(now["last"])),
            f"{now['masked']:.1%} of the positions are masked out of the {component} loss"
            + (": nothing trains it." if nothing else f"; it learns from {1 - now['masked']:.1%} of the batch."),
            over=streak.over,
            evidence={"masked": now["masked"], "masked_at_first": onset["masked"]},
            advice=f"Lower the threshold of the {component} mask, check its polarity, or pack the padding away.",
            confidence=0.9,
        )
