"""See the rule's docstring: it is the page that `trainwatch rules non-finite-loss` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.schema import NONFINITE_NAMES, Finding, matches
from trainwatch.table import Chunk, TableName

EARLIER = ("bad/input", "bad/weights", "grad_norm", "grad_norm/<module>")


@dataclass
class NonFiniteLoss(Rule):
    """The loss, or one of its components, became NaN or infinite.

    What it sees:
        The first training step whose loss, or whose component, is no finite number, and which of them it was. A step
        that the gradient scaler skipped does not count. One component is named only if it alone is bad on that step
        and nothing else was bad before; otherwise what went bad earlier (a gradient, the weights, the input) is named.
        An evaluation whose loss is no number is reported too.

    Why it matters:
        One NaN in the loss makes every gradient NaN, and one optimiser step later every weight: nothing that the run
        does afterwards is training. Many trackers draw the hole as a gap, and the run burns on for days.

    What to do:
        Go back to the last checkpoint before the first bad step. Look at the named component: a division by something
        that can be 0, a logarithm or square root of something that can be negative, an exponential in half precision.
        If a gradient or a weight was bad first, lower the learning rate or clip the gradient; if the input was bad,
        look at that batch.

    When it is wrong:
        A component that is NaN by design when it has nothing to measure (an average over no detections) should be left
        out of the record instead; at weight 0 it harms nothing and is a warning only.

    References:
        Trainers that hide it: the `logging_nan_inf_filter` of Hugging Face's Trainer (transformers #13619, trl #6702).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("loss|loss/<component>|eval:loss|eval:loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("loss/<component>", "grad_norm", "weight/<component>")
    causes: ClassVar[tuple[str, ...]] = ("crashed", "loss-zero", "non-finite-gradient", "non-finite-weights")

    recovered_rows: int = (
        20  # finite rows after which it counts as over: an optimiser that is poisoned never comes back
    )

    _earlier: dict[str, int] = field(default_factory=dict, init=False)
    _last_good: dict[str, float] = field(default_factory=dict, init=False)
    _found: Finding | None = field(default=None, init=False)
    _harmless: dict[str, int] = field(default_factory=dict, init=False)
    _evals: dict[str, int] = field(default_factory=dict, init=False)
    _bad_rows: int = field(default=0, init=False)
    _good_since: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Rows with a bad loss are rare: only those are looked at one by one."""
        if chunk.table == "eval":
            yield from self._evaluations(chunk)
            return
        trained = chunk["amp/skipped"] != 1.0
        channels = sorted(name for name in chunk.nonfinite_channels() if _is_loss(name))
        bad = np.zeros(len(chunk), dtype=bool)
        for name in channels:
            here = (chunk.nonfinite(name) > 0) & trained
            weightless = here & (chunk[f"weight/{name.removeprefix('loss/')}"] == 0.0)
            yield from self._harmless_ones(name, chunk.step[weightless])
            bad |= here & ~weightless
        self._remember(chunk, trained, int(np.argmax(bad)) if bad.any() else len(chunk))
        if bad.any() or self._found is not None:
            yield from self._judge(chunk, bad, channels)

    def _judge(self, chunk: Chunk, bad: np.ndarray[tuple[int], np.dtype[np.bool_]], channels: list[str]) -> Findings:
        rows = np.flatnonzero(bad)
        if self._found is None:
            self._found = self._first(chunk, int(rows[0]), channels)
        last = int(chunk.step[rows[-1]]) if len(rows) else self._found.last_step
        self._found = replace(self._found, last_step=last)
        self._bad_rows += len(rows)
        self._good_since = len(chunk) - 1 - int(rows[-1]) if len(rows) else self._good_since + len(chunk)
        over = self._good_since >= self.recovered_rows
        said = f"{self._found.message} {self._bad_rows:,} step{'s' * (self._bad_rows != 1)} so far"
        said += f"; finite again after step {last:,}." if over else "."
        yield self.finding(
            "critical",
            self._found.subject,
            (self._found.first_step, last),
            said,
            over=over,
            evidence={**self._found.evidence, "bad_steps": self._bad_rows},
            advice=self._found.advice,
        )

    def _first(self, chunk: Chunk, row: int, channels: list[str]) -> Finding:
        """What is known about the first bad step, before anything is said of how long it lasted."""
        step = int(chunk.step[row])
        kinds = {
            name: NONFINITE_NAMES[int(chunk.nonfinite(name)[row])] for name in channels if chunk.nonfinite(name)[row]
        }
        components = [name for name in kinds if name != "loss"]
        before = {name: at for name, at in self._earlier.items() if at < step}
        source = min(before, key=before.__getitem__) if before else None
        alone = len(components) == 1 and source is None
        name = components[0].removeprefix("loss/") if alone else ""
        what = f"The {name} loss" if alone else "The loss"
        message = f"{what} became {_spoken(kinds)} at step {step:,}"
        evidence: dict[str, float | int | str] = {**kinds}
        if source is not None:
            message += f"; {_place(source)} was bad first, at step {before[source]:,}"
            evidence["bad_first"] = before[source]
        good = self._last_good.get(components[0] if alone else "loss")
        if good is not None:
            message += f", from {good:.4g} the last time it was finite"
            evidence["last_finite"] = good
        return self.finding(
            "critical",
            f"component:{name}" if alone else "run",
            (step, step),
            f"{message}.",
            evidence=evidence,
            advice=_advice(source, name),
        )

    def _remember(self, chunk: Chunk, trained: np.ndarray[tuple[int], np.dtype[np.bool_]], until: int) -> None:
        """Keep what the first bad step will be explained by: what was bad before it, and the last finite values."""
        if self._found is not None:
            return
        for name in chunk.channels:
            if any(matches(pattern, name) for pattern in EARLIER):
                counted = name.startswith("bad/") and chunk[name] > 0
                rows = np.flatnonzero(((chunk.nonfinite(name) > 0) | counted) & trained)
                if len(rows):
                    self._earlier.setdefault(name, int(chunk.step[rows[0]]))
            elif _is_loss(name):
                finite = chunk[name][:until][np.isfinite(chunk[name][:until])]
                if len(finite):
                    self._last_good[name] = float(finite[-1])

    def _harmless_ones(self, name: str, steps: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Findings:
        if len(steps):
            component = name.removeprefix("loss/")
            first = self._harmless.setdefault(name, int(steps[0]))
            yield self.finding(
                "warning",
                f"component:{component}",
                (first, int(steps[-1])),
                f"The {component} loss is no finite number since step {first:,}; at weight 0 it poisons nothing yet.",
                advice="Mend the component before its weight rises: from then on every gradient is NaN.",
            )

    def _evaluations(self, chunk: Chunk) -> Findings:
        for row in np.flatnonzero(chunk.nonfinite("loss") > 0):
            split = str(chunk.text(int(row), "split") or "evaluation")
            step = int(chunk.step[row])
            first = self._evals.setdefault(split, step)
            kind = NONFINITE_NAMES[int(chunk.nonfinite("loss")[row])]
            yield self.finding(
                "critical",
                f"split:{split}",
                (first, step),
                f"The {split} loss is {kind} since the evaluation at step {first:,}.",
                evidence={"loss": kind},
                advice="If the training loss is finite, look at the evaluation's data and its masks.",
            )


def _is_loss(channel: str) -> bool:
    return channel == "loss" or matches("loss/<component>", channel)


def _spoken(kinds: dict[str, str]) -> str:
    words = {"nan": "NaN", "inf": "infinite", "-inf": "negative infinite"}
    return words[kinds.get("loss", next(iter(kinds.values())))]


def _place(channel: str) -> str:
    words = {"bad/input": "the input", "bad/weights": "a weight", "grad_norm": "the gradient"}
    return words.get(channel, f"the gradient of {channel.removeprefix('grad_norm/')}")


def _advice(source: str | None, component: str) -> str:
    if source == "bad/input":
        return "Look at that batch: find the samples that are not finite, and drop or repair them in the dataset."
    if source is not None:
        return "Resume from a checkpoint before that step with a lower learning rate or a smaller clipping limit."
    if component:
        return (
            f"Look in the {component} loss for a division by 0, a logarithm or root of a value that can reach 0, or an "
            "overflow in half precision; resume from a checkpoint before that step."
        )
    return "Resume from a checkpoint before that step; record the components apart to see which one breaks first."
