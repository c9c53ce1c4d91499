"""See the rule's docstring: it is the page that `trainwatch rules non-finite-input` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk

NEVER = -(2**62)
Rows = NDArray[np.intp]


@dataclass
class NonFiniteInput(Rule):
    """A batch with values that are not finite was fed to the model, and the loss broke on it.

    What it sees:
        A row that counts inputs which are not finite (`bad/input`), or whose `data/input_...` statistics are none, in
        the step on which the loss or the gradient breaks after a window without a fault. Such inputs that break nothing
        (a model that masks what is missing, a scaler that skips the step) are reported once, as info.

    Why it matters:
        One blank scan, one division by a spread of 0, one corrupt file in a million is enough: NaN goes through every
        layer into the loss, and by one optimiser step into every weight. It comes back with every epoch.

    What to do:
        Find the samples (`data/index` and `data/fingerprint` of that row lead to them), repair or drop them, and let
        the dataset refuse what is not finite. Resume from a checkpoint before that step. To have it recorded:
        `watch.log({"bad/input": (~torch.isfinite(batch)).sum()})`.

    When it is wrong:
        Where NaN stands for "missing" and the model knows it, count only what the model cannot take.

    References:
        Input checks of others: umlaut NaNInInput, traintools BatchInspector.
    """

    needs: ClassVar[tuple[str, ...]] = ("bad/input|data/input_mean|data/input_std|data/input_absmax",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "grad_norm", "data/index", "data/fingerprint")
    causes: ClassVar[tuple[str, ...]] = (
        "non-finite-loss",
        "non-finite-gradient",
        "non-finite-weights",
        "hidden-nan",
        "amp-scale-collapse",
        "loss-zero",
        "crashed",
    )

    before_rows: int = 20  # a window: a loss that broke so shortly before was not broken by this batch
    recovered_rows: int = 20  # rows without such a batch after which it is over

    _rows: int = field(default=0, init=False)
    _last_ill: int = field(default=NEVER, init=False)
    _last_bad: int = field(default=NEVER, init=False)
    _waiting: tuple[int, float] | None = field(default=None, init=False)
    _batches: int = field(default=0, init=False)
    _found: Finding | None = field(default=None, init=False)
    _seen: tuple[int, int] | None = field(default=None, init=False)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Bad batches are rare, or every one is by design: neither is looked at one by one."""
        counts = chunk["bad/input"]
        if self._found is None and not chunk.nonfinite_channels() and not (counts > 0).any():
            self._waiting = None if np.isfinite(chunk["loss"]).any() else self._waiting
            self._rows += len(chunk)
            return
        bad = np.flatnonzero((counts > 0) | chunk.broken(lambda name: name.startswith("data/input_")))
        broken = chunk.loss_broken() | chunk.broken(lambda name: name.startswith("grad_norm"))
        ill = np.flatnonzero(broken & chunk.trained()) if broken.any() else np.zeros(0, dtype=np.intp)
        if len(bad):
            self._last_bad, self._batches = self._rows + int(bad[-1]), self._batches + len(bad)
        if len(bad) or len(ill) or self._waiting:
            self._judge(chunk, bad, ill, np.flatnonzero(np.isfinite(chunk["loss"]) & ~broken))
        if len(ill):
            self._last_ill = self._rows + int(ill[-1])
        self._rows += len(chunk)
        if self._found is not None and len(chunk):
            over = self._rows - 1 - self._last_bad >= self.recovered_rows
            steps = chunk.step[bad[-1:]].tolist()
            last = max(self._found.last_step, *steps, self._found.first_step)
            self._found = replace(self._found, last_step=last, state="over" if over else "active")
            yield self._found

    def _judge(self, chunk: Chunk, bad: Rows, ill: Rows, well: Rows) -> None:
        """A broken loss is this batch's doing if none was well since the batch came, and none was broken before."""
        apart = np.diff(np.concatenate([[self._last_ill - self._rows], ill])) > self.before_rows
        for row in ill[apart].tolist():
            since = int(well[well < row].max(initial=-1))
            came = bad[(bad > since) & (bad <= row)]
            count = float(chunk["bad/input"][came[0]]) if len(came) else 0.0
            first = self._waiting if self._waiting and since < 0 else None
            if self._found is None and (first or len(came)):
                self._found = self._first(chunk, first or (int(chunk.step[came[0]]), count), row, came)
        after = bad[bad > well.max(initial=-1)]
        if len(well):
            self._waiting = None
        if self._waiting is None and len(after):
            self._waiting = (int(chunk.step[after[0]]), float(chunk["bad/input"][after[0]]))
        if len(bad):
            earliest, latest = int(chunk.step[bad[0]]), int(chunk.step[bad[-1]])
            self._seen = (self._seen[0] if self._seen else earliest, latest)

    def _first(self, chunk: Chunk, came: tuple[int, float], row: int, rows: Rows) -> Finding:
        step, count = came
        what = f"{count:,.0f} value{'s' * (count != 1)}" if count > 0 else "Values"
        were = "was" if count == 1 else "were"
        evidence: dict[str, float | int | str] = {"bad_inputs": count} if count > 0 else {}
        place = ""
        if len(rows) and np.isfinite(chunk["data/index"][rows[0]]):
            evidence["index"] = float(chunk["data/index"][rows[0]])
            place = f" (from sample {evidence['index']:,.0f} on)"
        at = "there" if step == chunk.step[row] else f"at step {int(chunk.step[row]):,}"
        return self.finding(
            "critical",
            "run",
            (step, step),
            f"{what} of the batch of step {step:,}{place} {were} not finite, and the loss broke {at}.",
            evidence=evidence,
            advice="Find those samples, repair or drop them, and let the dataset refuse what is not finite; resume "
            "from a checkpoint before that step.",
        )

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """Bad batches that broke nothing; where no loss is recorded at all nobody can say so."""
        if self._seen is None or self._found is not None:
            return
        blind = not any(name == "loss" or name.startswith(("loss/", "grad_norm")) for name in run.train.channels)
        came = "no loss is recorded that could show what came of it" if blind else "the loss did not break on any"
        yield self.finding(
            "warning" if blind else "info",
            "run",
            self._seen,
            f"{self._batches:,} batch{'es' * (self._batches != 1)} held values that are not finite, the first at step "
            f"{self._seen[0]:,}; {came}.",
            evidence={"batches": self._batches},
            advice="If they stand for what is missing, nothing is to be done; else drop them before they reach a loss.",
            confidence=0.8,
        )
