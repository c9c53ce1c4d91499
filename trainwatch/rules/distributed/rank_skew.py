"""See the rule's docstring: it is the page that `trainwatch rules rank-skew` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk, TableName
from trainwatch.views.ranks import Abreast, members


@dataclass
class RankSkew(Rule):
    """Ranks that train together did not take the same steps.

    What it sees:
        At one and the same step another count of applied steps (those that the optimiser took, not those that the
        scaler skipped) on some rank, for 5 rows in a row, where all ranks record what their scaler skipped. And, when
        all of them have finished, ranks whose last steps differ by more than 1 % of the run.

    Why it matters:
        A step that one rank skipped and the others took is the beginning of different models, and every schedule that
        the applied step drives is then another one on that rank. Ranks that end early leave the others hanging in their
        next collective, or averaging with nobody.

    What to do:
        Decide on a skip together (reduce `found_inf` over the ranks; FSDP: `ShardedGradScaler`). Give every rank the
        same number of batches: `DistributedSampler` with `drop_last`, or `torch.distributed.algorithms.Join`.

    When it is wrong:
        Local SGD and other asynchronous training may let ranks take different numbers of steps.

    References:
        Uneven inputs: torch.distributed.algorithms.Join; ShardedGradScaler in torch.distributed.fsdp.
    """

    reads: ClassVar[tuple[TableName, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("run:world_size",)
    wants: ClassVar[tuple[str, ...]] = ("applied", "amp/skipped")
    causes: ClassVar[tuple[str, ...]] = ("rank-missing", "rank-divergence")

    rows: int = 5  # in a row: on a GPU a skip may be known to one rank's record a row late
    share: float = 0.01  # of the steps: one batch more or less at the end of an epoch is an uneven division

    _differ: Streak = field(init=False)

    def __post_init__(self) -> None:
        """Nothing was seen yet."""
        self._differ = Streak(self.rows)

    def abreast(self, rows: Abreast) -> Iterator[Finding]:
        """Counts of applied steps, where each rank knows what it skipped."""
        if "applied" not in rows or "amp/skipped" not in rows:
            return
        applied = rows["applied"]
        known = np.isfinite(applied).all(axis=0) & np.isfinite(rows["amp/skipped"]).all(axis=0)
        least, most = applied[:, known].min(axis=0), applied[:, known].max(axis=0)
        late = np.array(rows.ranks, dtype=np.float64)[applied[:, known].argmin(axis=0)]
        columns = {"step": rows.step[known].astype(np.float64), "least": least, "most": most, "rank": late}
        if self._differ.push(least != most, columns):
            yield self._applied()

    def _applied(self) -> Finding:
        onset, now = self._differ.onset or {}, self._differ.latest
        return self.finding(
            "warning",
            "run",
            (int(onset["step"]), int(now["step"])),
            f"Since step {int(onset['step']):,} ranks have applied different numbers of steps: {now['least']:,.0f} on "
            f"rank {now['rank']:.0f} and {now['most']:,.0f} elsewhere at step {now['step']:,.0f}.",
            over=self._differ.over,
            evidence={"least": now["least"], "most": now["most"], "rank": now["rank"]},
            advice="Let the ranks decide on a skipped step together: reduce found_inf over them, or use "
            "ShardedGradScaler with FSDP.",
        )

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Where the ranks ended, if all of them have."""
        runs = members(run)
        ends = {rank: one.last_step or 0 for rank, one in runs.items() if (one.end or {}).get("status") == "finished"}
        if len(ends) < 2 or len(ends) < len(runs):
            return
        first, last = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
        if ends[last] - ends[first] > max(1.0, self.share * ends[last]):
            yield self.finding(
                "warning",
                f"rank:{first}",
                (ends[first], ends[last]),
                f"Rank {first} finished at step {ends[first]:,}, and rank {last} at step {ends[last]:,}.",
                over=True,
                evidence={"first": ends[first], "last": ends[last]},
                advice="Give every rank the same number of batches: DistributedSampler with drop_last, or Join.",
                confidence=0.9,
            )
