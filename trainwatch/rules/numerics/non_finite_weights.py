"""See the rule's docstring: it is the page that `trainwatch rules non-finite-weights` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName

ADVICE = (
    "Look at what writes weights besides the gradient: the optimiser's epsilon and state, an infinite learning rate, "
    "weight averaging, a checkpoint loaded in parts; resume from one that is finite."
)


@dataclass
class NonFiniteWeights(Rule):
    """Weights became NaN or infinite though no loss and no gradient had been bad before.

    What it sees:
        A row that counts weights which are not finite (`bad/weights`), or whose weight norm is none, and since the last
        row that saw them whole no trained step with a bad loss or gradient. Where all are bad in one row, the weights
        were first if few of them were bad then and ten times as many in the next row. The recorder looks at weight
        norms every 50 steps by itself. Or a validation loss that is none for the first time, after a step whose loss
        and gradient were finite and ordinary, if all components are none in the three next ones. Where a loss or a
        gradient was bad first, that finding has the story, and this rule is silent.

    Why it matters:
        The forward pass of every later step is NaN, and every checkpoint written from here on is poisoned.

    What to do:
        Look at what writes weights besides the gradient: the optimiser's state (an epsilon of 0, a second moment that
        underflowed in half precision), a learning rate that is infinite, weight averaging, a checkpoint that was loaded
        in parts, initialisation. Resume from a checkpoint whose weights are finite. To see every step, count them after
        it: `watch.log({"bad/weights": sum((~w.isfinite()).sum() for w in model.parameters())})`.

    When it is wrong:
        Weights that are infinite by design (a mask kept as a parameter) should be buffers.

    References:
        Adam's epsilon in float16: pytorch #26218.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("bad/weights|weight_norm/<group>|eval:loss|eval:loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "grad_norm")
    causes: ClassVar[tuple[str, ...]] = (
        *("non-finite-loss", "loss-zero", "crashed"),
        *("mode-collapse", "repetitive-outputs", "length-collapse", "invalid-outputs"),  # of logits that are NaN
    )

    blown: float = 10.0  # x the first loss: it is diverging, and what is none in the next step overflowed
    after: int = 3  # steps in which all components are none: one may be a bad batch
    few: float = 0.1  # of the weights that are bad a row later: a gradient that is NaN reaches as many at once

    _few: tuple[float, Finding] | None = field(default=None, init=False)  # bad as soon as the loss was
    _rows: int = field(default=0, init=False)
    _whole: int = field(default=-1, init=False)
    _ill: int = field(default=-1, init=False)
    _found: Finding | None = field(default=None, init=False)
    _first_loss: float = field(default=np.nan, init=False)
    _fine: int | None = field(default=None, init=False)  # the newest step, if its loss and its gradient were finite
    _held: bool = field(default=False, init=False)  # an evaluation was all numbers
    _after: int = field(default=0, init=False)  # such steps so far
    _suspect: int | None = field(default=None, init=False)  # a step after which validation was none

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Weights are looked at now and then; what validation says of them tells with the step that comes next."""
        if chunk.table == "eval":
            if not chunk.broken(_is_loss).any():
                self._held = True
            elif self._held and self._found is None and self._suspect is None:  # it was a number before
                self._suspect, self._after = self._fine, 0
            return
        yield from self._confirmed(chunk)
        yield from self._counted(chunk)
        self._keep(chunk)

    def _confirmed(self, chunk: Chunk) -> Iterator[Finding]:
        """The steps after an evaluation that was none: one bad batch, or one that a scaler skips, is soon over."""
        if self._suspect is None:
            return
        parts = [name for name in chunk.channels if name.startswith("loss/")]
        names = [name for name in parts if chunk[name.replace("loss/", "weight/", 1)][0] != 0]
        trained = chunk.trained()
        for row in range(len(chunk)):
            broken = len(names) > 1 and all(chunk.nonfinite(name)[row] for name in names)
            if not (broken and trained[row]):
                self._suspect = None
                return
            self._after += 1
            if self._after == self.after:
                self._found, self._suspect = self._by_validation(self._suspect, int(chunk.step[row])), None
                yield self._found
                return

    def _by_validation(self, step: int, last: int) -> Finding:
        return self.finding(
            "critical",
            "run",
            (step, last),
            f"The weights are not finite after step {step:,}: its loss and its gradient were, validation after it "
            "was not, nor is any component since.",
            advice=ADVICE,
        )

    def _keep(self, chunk: Chunk) -> None:
        """Whether the last row leaves the weights no reason to be anything but whole."""
        if not len(chunk):
            return
        loss, norm = chunk["loss"], chunk["grad_norm"]
        if np.isnan(self._first_loss) and np.isfinite(loss).any():
            self._first_loss = float(loss[np.isfinite(loss)][0])
        usual = abs(loss[-1]) <= self.blown * abs(self._first_loss)
        self._fine = int(chunk.step[-1]) if usual and np.isfinite(norm[-1]) else None

    def _counted(self, chunk: Chunk) -> Iterator[Finding]:
        """A bad look is explained by what went bad since the last good one."""
        counts = chunk["bad/weights"]
        if self._found is None and not chunk.nonfinite_channels() and not (counts > 0).any():
            self._few = None if np.isfinite(counts).any() else self._few
            if self._ill >= 0 and len(looked := np.flatnonzero(_looked(chunk))):
                self._whole = self._rows + int(looked[-1])  # what was bad before no longer explains what will be
            self._rows += len(chunk)
            return
        bad = (counts > 0) | chunk.broken(_is_norm)
        whole = _looked(chunk) & ~bad
        trained = chunk.trained()
        ill = (chunk.loss_broken() | chunk.broken(lambda name: name.startswith("grad_norm"))) & trained
        row = np.arange(self._rows, self._rows + len(chunk))
        last_whole = np.maximum.accumulate(np.concatenate([[self._whole], np.where(whole, row, -1)]))
        last_ill = np.maximum.accumulate(np.concatenate([[self._ill], np.where(ill, row, -1)]))
        before = np.where(counts > 0, last_ill[1:], last_ill[:-1])  # they are counted after the step, its loss before
        unexplained = np.flatnonzero(bad & ((before < 0) | (before < last_whole[:-1])))
        at_once = bad & (before == row) & ((last_ill[:-1] < 0) | (last_ill[:-1] < last_whole[:-1]))
        self._spreads(chunk, np.flatnonzero(at_once & (counts > 0)))
        if self._found is None and len(unexplained):
            self._found = self._first(chunk, int(unexplained[0]))
        self._rows, self._whole, self._ill = self._rows + len(chunk), int(last_whole[-1]), int(last_ill[-1])
        if self._found is not None and (bad | whole).any():
            last = int(np.flatnonzero(bad | whole)[-1])
            steps = chunk.step[bad]
            step = int(steps.max()) if len(steps) else 0
            self._found = replace(
                self._found,
                last_step=max(self._found.last_step, step),
                state="active" if bad[last] else "over",
            )
            yield self._found

    def _spreads(self, chunk: Chunk, at_once: NDArray[np.intp]) -> None:
        """Weights and loss that are bad in one row: which was first, the next count tells.

        A bad loss spoils at once all that its gradient reaches. Few weights, and nearly all of them a row later, had
        been counted before the step, and it is their own NaN that came through the loss.
        """
        counted = np.flatnonzero(np.isfinite(chunk["bad/weights"]))
        if self._few is None and len(at_once) and self._found is None:
            row = int(at_once[0])
            self._few, counted = (float(chunk["bad/weights"][row]), self._first(chunk, row)), counted[counted > row]
        if self._few is not None and len(counted):
            count, finding = self._few
            if self._found is None and count < self.few * chunk["bad/weights"][counted[0]]:
                self._found = finding
            self._few = None

    def _first(self, chunk: Chunk, row: int) -> Finding:
        step, count = int(chunk.step[row]), float(chunk["bad/weights"][row])
        groups = [
            name.removeprefix("weight_norm/")
            for name in chunk.channels
            if name.startswith("weight_norm/") and chunk.nonfinite(name)[row]
        ]
        what = f"{count:,.0f} weight{'s are' if count != 1 else ' is'}" if count > 0 else "The weights are"
        whose = f" in {', '.join(groups[:8])}" if groups else ""
        evidence: dict[str, float | int | str] = {"bad": count} if count > 0 else {}
        return self.finding(
            "critical",
            f"group:{groups[0]}" if len(groups) == 1 else "run",
            (step, step),
            f"{what} not finite{whose} at step {step:,}, and no loss or gradient was bad before.",
            evidence=evidence,
            advice=ADVICE,
        )


def _looked(chunk: Chunk) -> NDArray[np.bool_]:
    """Rows whose weights were counted, or have a norm."""
    looked: NDArray[np.bool_] = chunk["bad/weights"] == 0
    for name in filter(_is_norm, chunk.channels):
        looked = looked | np.isfinite(chunk[name])
    return looked


def _is_loss(channel: str) -> bool:
    return channel == "loss" or channel.startswith("loss/")


def _is_norm(channel: str) -> bool:
    return channel.startswith("weight_norm/")
