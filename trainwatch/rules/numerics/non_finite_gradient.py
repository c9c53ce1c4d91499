"""See the rule's docstring: it is the page that `trainwatch rules non-finite-gradient` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES, Finding, matches
from trainwatch.stats import median
from trainwatch.table import Chunk
from trainwatch.views.games import plays

NEVER = -(2**62)


@dataclass
class NonFiniteGradient(Rule):
    """A gradient became NaN or infinite before the loss did, and took the weights with it.

    What it sees:
        The first trained step whose gradient norm is no finite number, while the loss of that step and of the window
        before it is finite, followed within a window by a loss that is not finite, by weights that are not, or by the
        end of the run: by its failure, or by two more such rows, in which the loss is 0 as it never was before (so some
        trainers print what is no number), or whose run tells no loss at all. Three such rows at the end of any other
        log are an info: a scaler may be at work. And a tenth of the last hundred rows, again and again, where no scaler
        is logged: something skips those steps, at random or because their loss is a hundred times that of the others.

        Of several modules the one nearest to the loss is named: a backward pass carries NaN on to everything before it,
        so the last module in the model's order is where it began. Steps that the gradient scaler skipped do not count.
        Where the loss was bad first, or on the same step, non-finite-loss tells the story.

    Why it matters:
        One optimiser step with such a gradient makes every weight it reaches NaN. The loss shows it a step too late,
        and shows it everywhere at once.

    What to do:
        Look in the named module for an operation whose value is finite and whose derivative is not: the root or norm of
        0, a division in a branch that `where` masks out, an overflow of the backward pass in half precision. Run that
        batch under `torch.autograd.detect_anomaly()`. Then resume from a checkpoint before the step.

    When it is wrong:
        A loss that is recorded every tenth row only may have been bad first, unseen.

    References:
        The gradient of `where` and of `norm` at 0: pytorch #4132, #2421; torch.autograd.detect_anomaly.
    """

    needs: ClassVar[tuple[str, ...]] = ("grad_norm|grad_norm/<module>|grad_norm_at_step",)
    wants: ClassVar[tuple[str, ...]] = ("grad_norm/<module>", "loss", "amp/skipped|applied")
    causes: ClassVar[tuple[str, ...]] = ("non-finite-weights", "non-finite-loss", "crashed")

    last_rows: int = 3  # at a log's end, where no loss speaks for them: a scaler skips one step, seldom two in a row
    settled: int = 20  # steps of a process, by when a scaler has found its scale; or, where a log counts from its own,
    started: float = 0.05  # epochs
    before_rows: int = 20  # a window: a bad loss so shortly before is the cause, so shortly after the effect
    recovered_rows: int = 20  # finite rows after which it is over
    late_rows: int = 100  # of which
    share: float = 0.1  # are bad: a scaler that nobody logs comes to 2 %; and
    most: float = 1 / 3  # of them at the most: where more are, none may have been computed there
    gross: float = 100.0  # x the loss of the other rows

    _rows: int = field(default=0, init=False)
    _last_bad: int = field(default=NEVER, init=False)
    _last_ill: int = field(default=NEVER, init=False)
    _pending: Finding | None = field(default=None, init=False)
    _at: int = field(default=NEVER, init=False)
    _found: Finding | None = field(default=None, init=False)
    _bad_rows: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Nothing to do where every gradient is finite."""
        if chunk.nonfinite_channels() or (chunk["bad/weights"] > 0).any():
            trained = chunk.trained()
            bad = np.flatnonzero(chunk.broken(_is_gradient) & trained)
            loss = np.flatnonzero(chunk.loss_broken() & trained)
            weights = np.flatnonzero(chunk.broken(_is_weights) | (chunk["bad/weights"] > 0))
            self._judge(chunk, bad, loss, weights)
        self._rows += len(chunk)
        if self._found is not None and len(chunk):
            yield self._told()

    def _judge(self, chunk: Chunk, bad: NDArray[np.intp], loss: NDArray[np.intp], weights: NDArray[np.intp]) -> None:
        """Only the first row of each episode is looked at; all numbers of rows count from the process's first."""
        apart = np.diff(np.concatenate([[self._last_bad - self._rows], bad])) > self.before_rows
        ill = np.union1d(loss, weights)
        for row in bad[apart].tolist():
            self._confirm(chunk, ill, row)
            reached = np.concatenate([loss[loss <= row], weights[weights < row]]) + self._rows
            last_ill = max(self._last_ill, int(reached.max(initial=NEVER)))
            if self._found is None and self._rows + row - last_ill > self.before_rows:
                self._pending, self._at, self._bad_rows = self._first(chunk, row), self._rows + row, 0
        self._confirm(chunk, ill, len(chunk))
        self._bad_rows += int((bad + self._rows >= self._at).sum())
        if len(bad):
            self._last_bad = self._rows + int(bad[-1])
            for name in ("_pending", "_found"):
                finding = getattr(self, name)
                if finding is not None:
                    setattr(self, name, replace(finding, last_step=max(finding.last_step, int(chunk.step[bad[-1]]))))
        if len(ill):
            self._last_ill = self._rows + int(ill[-1])

    def _confirm(self, chunk: Chunk, ill: NDArray[np.intp], until: int) -> None:
        """A bad gradient that poisoned the weights shows in the rows after it; one that did not, in nothing."""
        if self._pending is None:
            return
        after = ill[(ill + self._rows >= self._at) & (ill < until) & (ill + self._rows <= self._at + self.before_rows)]
        if len(after):
            step = int(chunk.step[after[0]])
            message = f"{self._pending.message}; the loss or the weights followed at step {step:,}"
            self._found = replace(self._pending, message=message)
        if len(after) or self._rows + until > self._at + self.before_rows:
            self._pending = None

    def _first(self, chunk: Chunk, row: int) -> Finding:
        """What is known of the first bad row."""
        named = [name for name in chunk.channels if matches("grad_norm/<module>", name)]
        bad = [name for name in named if chunk.nonfinite(name)[row]]
        alone = bool(bad) and any(np.isfinite(chunk[name][row]) for name in named)
        name = bad[-1] if alone else next(n for n in chunk.channels if _is_gradient(n) and chunk.nonfinite(n)[row])
        module = name.removeprefix("grad_norm/") if alone else ""
        kind = NONFINITE_NAMES[int(chunk.nonfinite(name)[row])]
        step, loss = int(chunk.step[row]), float(chunk["loss"][row])
        where = f"The gradient of {module}" if alone else "The gradient"
        others = f", and with it that of {len(bad) - 1} module{'s' * (len(bad) > 2)} before it" if len(bad) > 1 else ""
        while_ = f" while the loss was still {loss:.4g}" if np.isfinite(loss) and loss != 0 else ""
        return self.finding(
            "critical",
            f"module:{module}" if alone else "run",
            (step, step),
            f"{where} became {'NaN' if kind == 'nan' else 'infinite'} at step {step:,}{while_}"
            f"{others if alone else ''}",
            evidence={name: kind} | ({"loss": loss} if np.isfinite(loss) else {}),
            advice=f"Run that batch under torch.autograd.detect_anomaly() and look "
            f"{f'in {module}' if alone else 'in the backward pass'} for a root or norm of 0, a division that is masked "
            "afterwards, or an overflow in half precision; resume from a checkpoint before that step.",
        )

    def _told(self) -> Finding:
        """The finding as far as it went."""
        assert self._found is not None
        over = self._rows - 1 - self._last_bad >= self.recovered_rows
        plural = "s" * (self._bad_rows != 1)
        return replace(
            self._found,
            message=f"{self._found.message}; {self._bad_rows:,} step{plural} so far.",
            evidence={**self._found.evidence, "bad_steps": self._bad_rows},
            state="over" if over else "active",
        )

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """A run that died of it at once; and a loss that was bad on another rank, whose gradient all ranks share."""
        if self._found is None and self._pending is not None and self._rows - 1 == self._last_bad:
            if (run.end or {}).get("status") == "failed":
                yield replace(self._pending, message=f"{self._pending.message}, and the run failed there.")
            else:
                yield from self._unlit(run, self._pending)
        elif self._found is None:
            yield from self._again(run)
        else:
            told = self._told()
            for rank, other in sorted(run.ranks.items()):
                steps, _ = other.train.nonfinite("loss")
                if len(steps) and steps[0] <= told.first_step:
                    message = (
                        f"{told.message[:-1]}; the loss of rank {rank} was bad by then, and ranks share gradients."
                    )
                    yield replace(told, severity="info", message=message)
                    return

    def _again(self, run: Run) -> Findings:
        """Bad gradients that come again and again, and harm nothing but the steps that are skipped for them.

        NaN at each n-th row, whose loss is as ever, is one that was not computed there; so where a policy waits.
        """
        size = run.train.size
        rows = Chunk("train", run.train, min(size, max(self.settled, size - self.late_rows)), size)
        norms = [name for name in rows.channels if _is_gradient(name)]
        finite = np.any([np.isfinite(rows[name]) for name in norms], axis=0)
        bad = np.flatnonzero(rows.broken(_is_gradient) & ~finite & ~rows.loss_broken())
        scaled = any(name.startswith("amp/") for name in rows.channels)
        if scaled or len(bad) < max(self.share * len(rows), self.last_rows + 2):
            return
        loss = np.abs(rows["loss"])
        gross = median(loss[bad]) > self.gross * median(np.delete(loss, bad))
        at_random = len(np.unique(np.diff(bad))) > 2 and len(bad) < self.most * len(rows)
        if gross or (at_random and not plays(rows.channels)):
            first, last = (int(rows.step[row]) for row in bad[[0, -1]])
            yield self.finding(
                "warning",
                "run",
                (first, last),
                f"The gradient is no finite number in {len(bad)} of the last {len(rows)} rows, again and again, and "
                f"what guards the weights skips those steps{'; their loss is far above the others' if gross else ''}.",
                evidence={"bad_steps": len(bad), "rows": len(rows)},
                advice="Look at the samples of those steps; clip or filter what overflows.",
                confidence=0.9,
            )

    def _unlit(self, run: Run, pending: Finding) -> Findings:
        """The gradient of each of the last rows is bad, and no loss says that the weights are well."""
        last = Chunk("train", run.train, max(0, run.train.size - self.last_rows), run.train.size)
        bad, began = last.broken(_is_gradient) & last.trained(), run.header.resumed_from
        late = last.step[0] > (began or 0) + self.settled
        late |= began is None and np.nanmax(last["epoch"], initial=0.0) > self.started
        loss = run.train["loss"][: run.train.size - self._rows + self._at]  # of the rows before
        fell = bool((last["loss"][1:] == 0.0).all() and np.isfinite(loss).any() and not (loss == 0.0).any())
        mute = self._at > 0 and not np.isfinite(run.train["loss"]).any()
        if len(last) == self.last_rows and bad.all():
            message = f"{pending.message}, and has been so to the last row."
            grave = late and (fell or (mute and run.end is not None))
            yield replace(pending, message=message, severity="critical" if grave else "info")


def _is_gradient(channel: str) -> bool:
    return channel.startswith("grad_norm")


def _is_weights(channel: str) -> bool:
    return channel.startswith("weight_norm/")
