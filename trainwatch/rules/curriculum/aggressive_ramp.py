"""See the rule's docstring: it is the page that `trainwatch rules aggressive-ramp` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Blocks, medians
from trainwatch.table import Chunk
from trainwatch.views.components import Roles
from trainwatch.views.games import plays

Floats = NDArray[np.float64]
Rows = dict[str, Floats]

WINDOW = 4  # blocks
LONGEST = 500  # rows of a block: 2,000 rows tell a boundary's effect, and a total in frames (1e9) would never fill one


@dataclass
class AggressiveRamp(Rule):
    """A loss weight enters or rises too fast for what its component weighs.

    What it sees:
        A component's weight rose above all it had before, and within 2 % of the run (20 to 2,000 rows) its contribution
        (weight x raw value) grew by more than the whole loss had ever been, and its share of the gradient went from
        less than half to more than nine tenths. Where no gradients are recorded, by more than three times the loss. A
        declared regulariser is held to less: three times the loss as it stood just before, and four fifths of the
        gradient; or, in a game, whose loss may have any height, a weight ten times as large and most of the gradient,
        where it had less than a tenth; or, where none is recorded, all other losses together, under the weights that
        they had, are still worse by half at the window's end; once they have found back, that is an info. Medians over
        blocks of rows, before against after. It is over when the component no longer leads.

    Why it matters:
        The optimiser's state (momentum, second moments, learning rate) fits the loss that it was following. A term that
        outweighs it overnight throws the weights away from what was learned, and may end in NaN.

    What to do:
        Enter the component at a smaller weight and let it rise over a longer stretch (`ramp: linear` or `cosine`), or
        bound its value first: a raw error in ppm needs a weight a million times smaller than a cross-entropy.

    When it is wrong:
        A component whose weight is no larger than another's, and that outweighs the loss a hundred times all the same,
        is of another scale: no ramp mends that, and loss-scale-imbalance says so; here it is an info. Where a run was
        resumed, its largest loss is not known, and any new task may outweigh what was small by then: without
        recorded gradient shares only a growth of a hundred times is named there.

    References:
        Curriculum of a published peptide sequencer: mass weight 0.2, 0.5, 0.7 within a fifth of the run, on raw ppm.
    """

    block: ClassVar[int] = 5
    needs: ClassVar[tuple[str, ...]] = ("weight/<component>", "loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("grad_share/<component>", "run:curriculum")
    causes: ClassVar[tuple[str, ...]] = (
        "loss-scale-imbalance",
        "gradient-dominance",
        "gradient-explosion",
        "gradient-spike",
        "clipping-saturated",
        "curriculum-shock",
        "loss-spike",
        "loss-divergence",
        "non-finite-loss",
        "non-finite-gradient",
    )

    growth: float = 1.0  # x the largest loss so far, beside a takeover: more than everything that the run had learned
    lone_growth: float = 3.0  # x, without shares: a new task starts at about what the old one did (healthy: up to 1.7)
    grave_growth: float = 100.0  # x the loss just before: the old loss is left with a hundredth of the sum
    share_before: float = 0.5  # of the gradient: it did not lead
    share_after: float = 0.9  # of the gradient: nine times what all others have left
    role_growth: float = 3.0  # x the loss just before, for a declared regulariser: healthy ones come to 0.7
    role_share: float = 0.8  # of the gradient, four times what it is to regulate: healthy ones come to 0.6
    times: float = 10.0  # x the weight, in a game: exploring is annealed, and raised by less
    little: float = 0.1  # of the gradient, there

    worse: float = 1.5  # x, of all other losses, at the window's end: what a healthy entry costs them is a fifth

    _span: int = field(default=20, init=False)  # steps of the window
    _blocks: Blocks | None = field(default=None, init=False)
    _window: Rows = field(default_factory=dict, init=False)
    _highest: dict[str, float] = field(default_factory=dict, init=False)
    _open: dict[str, Finding] = field(default_factory=dict, init=False)
    _resumed: bool = field(default=False, init=False)  # then the run's largest loss is not known
    _roles: Roles = field(default_factory=Roles, init=False)
    _game: bool = field(default=False, init=False)

    def start(self, header: Header) -> Findings:
        """How long the window is, and what is meant to be small."""
        self._span, self._resumed = header.window(), header.resumed_from is not None
        self._roles = Roles.of(header)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Compare every block within a window after a rise with the block before that window."""
        self._game = self._game or plays(chunk.channels)
        columns = {"step": chunk.step.astype(np.float64)}
        weighted = [name.removeprefix("weight/") for name in chunk.channels if name.startswith("weight/")]
        for name in weighted:
            columns |= self._columns(name, chunk)
        for name in [name.removeprefix("loss/") for name in chunk.channels if name.startswith("loss/")]:
            if name not in weighted:  # it counts as it is
                columns[f"size/{name}"] = np.abs(chunk[f"loss/{name}"])
        self._blocks = self._blocks or Blocks(self._width(columns["step"][: self.block]))
        blocks = self._blocks.push(columns)
        if not blocks:
            return
        rows = self._joined({name: _summary(name, values) for name, values in blocks.items()})
        for name in [name.removeprefix("rise/") for name in rows if name.startswith("rise/")]:
            yield from self._followed(name, rows, len(rows["step"]) - len(blocks["step"]))
        self._window = {name: values[-WINDOW:] for name, values in rows.items()}

    def _width(self, steps: Floats) -> int:
        """Rows of a block, a quarter of the window: at least 5, the fewest whose median forgives two outliers."""
        stride = max(1.0, float(np.median(np.diff(steps)))) if len(steps) > 1 else 1.0  # a log may have a row in fifty
        return int(min(max(5, self._span / stride // WINDOW), LONGEST))

    def _columns(self, name: str, chunk: Chunk) -> Rows:
        """A weight rises where it passes its highest so far: to return to an earlier one is no ramp."""
        weight = chunk[f"weight/{name}"]
        highest = np.fmax.accumulate(np.concatenate([[self._highest.get(name, np.nan)], weight]))
        self._highest[name] = float(highest[-1])
        return {
            f"rise/{name}": np.where(weight > highest[:-1], chunk.step, np.nan),
            f"size/{name}": np.abs(weight * chunk[f"loss/{name}"]),
            f"weight/{name}": weight,
            f"share/{name}": chunk[f"grad_share/{name}"],
        }

    def _joined(self, fresh: Rows) -> Rows:
        """The last window's summaries and the fresh ones, one after the other; the whole loss, and its largest."""
        held, new = len(self._window.get("step", ())), len(fresh["step"])
        fresh["total"] = np.nansum(
            [np.zeros(new), *(fresh[name] for name in fresh if name.startswith("size/"))], axis=0
        )
        fresh["peak"] = np.maximum.accumulate([*self._window.get("peak", ())[-1:], *fresh["total"]])[-new:]
        return {
            name: np.concatenate(
                [self._window.get(name, np.full(held, np.nan)), fresh.get(name, np.full(new, np.nan))],
            )
            for name in dict.fromkeys([*self._window, *fresh])
        }

    def _followed(self, name: str, rows: Rows, fresh: int) -> Findings:
        """One component through the fresh blocks: those near a rise, and while it is in charge, all."""
        risen = np.flatnonzero(np.isfinite(rows[f"rise/{name}"]))
        if not len(risen) and name not in self._open:
            return
        for now in range(fresh, len(rows["step"])):
            before, begun = max(now - WINDOW, 0), risen[(risen <= now) & (risen > now - WINDOW)]
            found = self._compare(name, rows, before, now, int(begun[0])) if len(begun) and before < begun[0] else None
            if found is not None:
                self._open[name] = found
                yield found
            elif name in self._open and self._recovered(name, rows, now):
                told = self._open.pop(name)
                mild = "others_before" in told.evidence
                yield replace(told, state="over", severity="info" if mild else told.severity)

    def _compare(self, name: str, rows: Rows, before: int, now: int, rise: int) -> Finding | None:
        old, new, total = rows[f"size/{name}"][before], rows[f"size/{name}"][now], rows["total"][before]
        share, shared = rows[f"share/{name}"][now], rows[f"share/{name}"][before]
        shared = shared if np.isfinite(shared) else np.nan_to_num(old / total)  # probed now and then: of the loss
        known = bool(np.isfinite(share))
        regulates = known and self._roles.said.get(name) == "regulariser"  # it was never meant to lead
        led = self.role_share if regulates else self.share_after
        taken = regulates and self._game and self._taken(name, rows, before, now)
        if not total > 0 or (known and not taken and not (share > led and shared < self.share_before)):
            return None
        grown = new - np.nan_to_num(old)
        growth, limit = grown / total, self.growth if known else self.lone_growth
        beyond = grown > limit * rows["peak"][before] and (known or not self._resumed)
        drowns = not known and self._drowns(name, rows, before, now)
        if not (beyond or taken or growth > (self.role_growth if regulates or drowns else self.grave_growth)):
            return None
        told = self._open.get(name)
        first = told.first_step if told else int(rows[f"rise/{name}"][rise])
        evidence = {"contribution": new, "total_before": total, "growth": growth}
        if drowns and not beyond and growth <= self.grave_growth:  # held for nothing but what it costs
            evidence["others_before"] = total - np.nan_to_num(old)
        message = f"The {name} weight rose at step {first:,}: its contribution is now {new:,.4g}"
        message += f", where the whole loss was {total:,.4g} before"
        if known:
            evidence |= {"gradient_share": share, "gradient_share_before": shared}
            message += f"; its share of the gradient went from {shared:.0%} to {share:.0%}"
        grave = growth > self.grave_growth or (told is not None and told.severity == "critical")
        severity: Severity = "critical" if grave else "warning"
        if known and growth > self.grave_growth and self._ordinary(name, rows, now):
            severity = "info"  # no ramp would mend that: the component itself is of another scale
        return self.finding(
            severity,
            f"component:{name}",
            (first, int(rows["step"][now])),
            f"{message}.",
            evidence=evidence,
            advice=f"Let the {name} weight rise over a longer stretch, from a smaller value, or bound the loss first.",
            confidence=0.9 if known else 0.7,
        )

    def _taken(self, name: str, rows: Rows, before: int, now: int) -> bool:
        """Whether a weight ten times as large made next to none of the gradient into most of it: the height of a
        game's loss says nothing of what it had learned.
        """
        weight, share = rows[f"weight/{name}"], rows[f"share/{name}"]
        steep = weight[now] > self.times * weight[before] > 0  # what enters has no weight to be compared with
        return bool(steep and share[now] > self.share_before and share[before] < self.little)

    def _drowns(self, name: str, rows: Rows, before: int, now: int) -> bool:
        """Whether it is a declared regulariser, and at the window's end all else, under the weights that it had, is
        still worse by half: what had been learned gives way to it.
        """
        if now - before < WINDOW or self._roles.said.get(name) != "regulariser":
            return False
        weights = [rows[channel] for channel in rows if channel.startswith("weight/") and channel[7:] != name]
        rest = rows["total"] - np.nan_to_num(rows[f"size/{name}"])
        same = all(weight[before] == weight[now] for weight in weights)
        return bool(same and rest[now] > self.worse * rest[before] > 0)

    @staticmethod
    def _ordinary(name: str, rows: Rows, now: int) -> bool:
        """Whether another component's weight is as large."""
        others = [rows[channel][now] for channel in rows if channel.startswith("weight/") and channel[7:] != name]
        return bool(rows[f"weight/{name}"][now] <= max(np.nan_to_num(others), default=0.0))

    def _recovered(self, name: str, rows: Rows, now: int) -> bool:
        """It no longer leads the gradient; or, where none is recorded, weighs less than the loss before it entered, and
        what it had drowned is back.
        """
        share, told = rows[f"share/{name}"][now], self._open[name]
        rest = rows["total"][now] - np.nan_to_num(rows[f"size/{name}"][now])
        if rest > self.worse * float(told.evidence.get("others_before", np.inf)):
            return False
        if np.isfinite(share) or "gradient_share" in told.evidence:
            return bool(share < self.share_before)
        return bool(rows[f"size/{name}"][now] < float(told.evidence["total_before"]))


def _summary(name: str, blocks: Floats) -> Floats:
    """One number a block: the first rise, the last step, else the median."""
    if name == "step":
        return blocks[:, -1]
    if name.startswith("rise/"):
        return np.fmin.reduce(blocks, axis=1)  # type: ignore[no-any-return]
    return medians(blocks)
