"""See the rule's docstring: it is the page that `trainwatch rules weight-growth` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Floats, History, fall
from trainwatch.table import Chunk
from trainwatch.views.evaluations import direction, held_out, scatter
from trainwatch.views.games import plays
from trainwatch.views.harm import CLEAR, EVALUATIONS, TWO
from trainwatch.views.weights import growth


@dataclass
class WeightGrowth(Rule):
    """The norm of the weights grows without end.

    What it sees:
        A group's weight norm at ten times what it was at first, and still growing at least as fast as the steps go:
        from the middle of the run to its end by half and more. Four times are enough where it grows by the same factor
        from each sample to the next, as only what feeds on itself does, and two and a half where by the very same; six
        times where the growth from each sample to the next makes up the best part of all that the updates did
        (`update_ratio`), which are made to turn the weights and not to blow them up, and four and a half where it is
        most of that. It is an alarm where the loss, at one weighting of its components, has not come down since the
        norm had doubled, or the held-out loss stands a quarter above its best and no figure of merit is as good as
        ever, or the norm is a thousand times what it was; else an info. Where the goal itself moves (rewards,
        adversaries) a norm follows what it is to tell: there it takes six times, by the very same factor from sample to
        sample, and as most of what the updates did.

    Why it matters:
        Logits and activations grow with the weights until they saturate or overflow, and the effective learning rate
        shrinks. It is divergence in slow motion.

    What to do:
        Lower the learning rate, add weight decay (decoupled, to matrices alone), normalise what the weights are fed
        with.

    When it is wrong:
        Weights that begin at 0 have no first norm to speak of: such a sample is skipped, and a growth that slows down,
        as of any scale-invariant weight without decay, is not named.

    References:
        van Laarhoven, "L2 regularization versus batch and weight normalization" (2017).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("weight_norm/<group>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "update_ratio/<group>", "weight/<component>", "loss/<component>")
    causes: ClassVar[tuple[str, ...]] = (
        *("overflow-risk", "non-finite-weights", "non-finite-loss", "amp-scale-collapse", "generalisation-gap"),
        *("loss-scale-imbalance", "non-finite-gradient", "dead-module", "component-dead"),
        *("overtraining", "overfitting", "loss-divergence", "gradient-explosion", "gradient-spike"),
        "clipping-saturated",
    )

    growth: float = 10.0  # x the first samples; the healthy weights of the trainer grow by 3 %
    grave: float = 1000.0  # x: whatever the loss does; weights that begin at 0, in a warm-up, come to 700
    hurt: float = 1.25  # x the best held-out loss: a training that goes on so is not worth its growth
    begun: float = 0.1  # of the second sample: a first one below that is of weights that begin at 0
    samples: int = 6  # at the least: growth without end takes a while to show
    itself: float = 4.0  # x, in the four samples and more in which it feeds on itself
    steady: float = 0.7  # of the mean growth in logarithms, from each sample to the next: steps added up come to 0.5
    soon: float = 2.5  # x, in three samples and more, where it is steadier still
    steadier: float = 0.85  # of that mean: a line to 2.5 x comes to 0.78, healthy growth beyond 1.5 x to 0.4
    left: float = 0.25  # of the first loss, at such an early look: a new last layer that is learning grows as evenly
    late: float = 1.15  # x from three quarters of the run to its end; the same growth comes to that
    blown: float = 6.0  # x, where the updates went along the weights; healthy ones come to 5 in few samples
    along: float = 0.4  # of the updates' length, between any two samples: from some sample on healthy ones come to 0.3
    outright: float = 0.6  # of it, where nearly each update blows the weights up; healthy ones so far come to 3.5 x,
    # and in games, where critics grow with their rewards, to 0.43 and 2 x
    blown_outright: float = 4.5  # x, then
    fewest: int = 3  # samples, where the updates tell what the growth is of
    going: float = 1.5  # x from the middle of the run to its end; a growth as the root of the steps comes to 1.41

    _history: History = field(default_factory=History, init=False)
    _rows: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Norms and loss at bounded resolution."""
        self._history.push(_columns(chunk))
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Whether the weights have grown as the run stands."""
        series = self._history.series(_columns(rest))
        for name, all_values in series.items():
            known = np.isfinite(all_values)
            values = all_values[known]
            if not name.startswith("weight_norm/") or len(values) < self.fewest:
                continue
            first = float(values[0] if values[0] > self.begun * values[1] else values[1])
            now = float(values[-1])
            ratio = series.get(name.replace("weight_norm/", "update_ratio/"), np.full(len(known), np.nan))
            game = plays(run.train.channels)
            steady, along = (self.steadier, self.outright) if game else (self.steady, self.along)
            grows, feeds = self._grows(values, first), self._feeds(values, first, series["loss"], steady)
            blown = self._along(values, first, ratio[known], series["step"][known], along)
            if game:
                feeds = blown = feeds and blown and now > self.blown * first
            if first > 0 and (grows or feeds or blown):
                whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
                yield self._finding(run, whole, name, (first, now), series)

    def _grows(self, values: Floats, first: float) -> bool:
        """Whether a norm is far above its first, and grows no slower than it did."""
        middle, now = float(values[len(values) // 2]), float(values[-1])
        late = float(values[3 * len(values) // 4])  # weights that leapt once stand since
        grows = len(values) >= self.samples and now > self.growth * first
        return bool(grows and now > self.going * middle and now > self.late * late)

    def _feeds(self, values: Floats, first: float, loss: Floats, steady: float) -> bool:
        """Whether a norm grows by the same factor all along."""
        if not values[-1] > self.soon * first or values[0] != first or not (values > 0).all():
            return False
        grows = np.diff(np.log(values))
        if len(values) > self.fewest and values[-1] > self.itself * first:
            return bool(grows.min() >= steady * grows.mean())
        known = loss[np.isfinite(loss)]
        learns = len(known) > 0 and 0 < np.median(known[-5:]) < self.left * np.median(known[:5])
        return bool(not learns and grows.min() >= self.steadier * grows.mean())

    def _along(self, values: Floats, first: float, ratio: Floats, step: Floats, along: float) -> bool:
        """Whether the updates between any two samples went along the weights, and not across."""
        if not values[-1] > self.blown_outright * first or values[0] != first or not (values > 0).all():
            return False
        along = along if values[-1] > self.blown * first else self.outright
        grown, went = growth(values, ratio, step)
        return bool((grown > along * went).all() and np.isfinite(went).all() and went.all())

    def _worse(self, run: Run, since: float) -> bool:
        """Whether the held-out loss has gone up from its best, clearly, and still does; and no figure gets better."""
        steps, values = held_out(run)
        values = values[steps >= since]
        figures = [
            (direction(name), held_out(run, name)[1]) for name in run.eval.channels if name.startswith("metric/")
        ]
        costs = [-sign * figure for sign, figure in figures if sign and len(figure) > TWO]
        if len(values) < EVALUATIONS or any(cost[-TWO:].min() <= cost[:-TWO].min() for cost in costs):
            return False
        best, late = float(values.min()), values[-TWO:]
        return bool(late.min() > self.hurt * best > 0 and late.min() > best + CLEAR * scatter(values))

    def _finding(
        self, run: Run, whole: Chunk, name: str, norms: tuple[float, float], series: dict[str, Floats]
    ) -> Finding:
        first, now = norms
        grown = int(np.flatnonzero(series[name] > 2 * first)[0])
        loss = _at_one_weighting(series)[grown:]
        stands = not fall(loss) > 0 and np.isfinite(loss).any()
        worse = self._worse(run, float(whole.step[0]))
        values, group = whole[name], name.removeprefix("weight_norm/")
        small = np.flatnonzero(values <= 1.1 * first)  # samples are far apart: it began after the last one of these
        onset = int(small[small < np.flatnonzero(values > 2 * first)[0]].max(initial=0))
        return self.finding(
            "warning" if stands or worse or now > self.grave * first else "info",
            f"group:{group}",
            (int(whole.step[onset]), int(whole.step[-1])),
            f"The norm of the weights of {group} grew from {first:.3g} to {now:.3g}, {now / first:,.0f} times, and "
            f"still grows{'; the loss has not come down meanwhile' if stands else ''}"
            f"{'; the held-out loss has gone up meanwhile' if worse else ''}.",
            evidence={"first": first, "now": now, "growth": now / first},
            advice="Lower the learning rate, or add decoupled weight decay.",
            confidence=0.75,
        )


def _columns(chunk: Chunk) -> dict[str, Floats]:
    groups = [name.removeprefix("weight_norm/") for name in chunk.channels if name.startswith("weight_norm/")][:MOST]
    names = [f"{kind}/{group}" for group in groups for kind in ("weight_norm", "update_ratio")]
    columns = {"step": chunk.step.astype(np.float64), "loss": chunk["loss"]}
    weighted = [f"{kind}/{name}" for name in _weighted(chunk.channels) for kind in ("weight", "loss")]
    return columns | {name: chunk[name] for name in names + weighted}


def _weighted(names: Iterable[str]) -> list[str]:
    """Components whose loss and weight are both known."""
    known = set(names)
    weighted = (name.removeprefix("weight/") for name in sorted(known) if name.startswith("weight/"))
    return [name for name in weighted if f"loss/{name}" in known][:MOST]


def _at_one_weighting(series: Mapping[str, Floats]) -> Floats:
    """The loss as the latest weights count its components: a component that is weighted up, or comes in late, makes
    the total rise and says nothing about the weights of the model.
    """
    weights = {name: series[f"weight/{name}"] for name in _weighted(series)}
    if not any(np.isfinite(values).all() and np.ptp(values) > 0 for values in weights.values()):
        return series["loss"]
    parts = [values[-1] * series[f"loss/{name}"] for name, values in weights.items() if values[-1]]
    counted = np.sum(parts, axis=0)
    return counted if parts and np.isfinite(counted).all() else series["loss"]
