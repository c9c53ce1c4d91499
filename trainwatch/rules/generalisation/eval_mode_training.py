"""See the rule's docstring: it is the page that `trainwatch rules eval-mode-training` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event, Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class EvalModeTraining(Rule):
    """The model is trained in eval mode: nobody called `train()` again.

    What it sees:
        The recorder looks at each optimiser step whether the model is in training mode. If it is not, five steps in a
        row, and every dropout and batch norm in it is in eval mode as well, that is told (`resting`). After steps in
        training mode it is a warning while it lasts; an info once it is over, and for a model that was never trained in
        another mode: one that comes in eval mode from a library may be meant to stay in it.

    Why it matters:
        Dropout drops nothing and batch norm no longer follows the data: from the first evaluation on another model is
        trained than was planned, with a training loss that looks better than before.

    What to do:
        Call `model.train()` after each evaluation, or at the top of each epoch.

    When it is wrong:
        A last phase that is trained without dropout and with batch norm's statistics held, by a call of `eval()`.

    References:
        PyTorch's `nn.Module.eval`; Hugging Face's `from_pretrained`, which returns a model in eval mode.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:modules",)
    causes: ClassVar[tuple[str, ...]] = ("overfitting", "generalisation-gap", "overtraining", "suspicious-validation")

    _since: int = field(default=0, init=False)  # the step from which on it rests; 0: it does not
    _until: int = field(default=0, init=False)  # the last step of a rest that is over
    _trained: bool = field(default=False, init=False)  # in training mode before
    _kinds: dict[str, int] = field(default_factory=dict, init=False)

    def event(self, event: Event) -> Findings:
        """What the recorder tells."""
        if event.get("event") == "monitor" and "resting" in event:
            kinds, step = mapping(event["resting"]), int(number(event.get("step")) or 0)
            if kinds:
                self._since, self._until = int(number(event.get("since")) or step), 0
                self._trained = event.get("trained") is True
                self._kinds = {kind: int(number(count) or 0) for kind, count in kinds.items()}
            else:
                self._until = max(step - 1, 0)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """As it was told last."""
        if self._since and run.last_step is not None:
            listed = " and ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(self._kinds.items()))
            yield self.finding(
                "warning" if self._trained and not self._until else "info",
                "run",
                (self._since, self._until or run.last_step),
                f"The model is trained in eval mode from step {self._since:,} on: {listed} modules rest"
                + (", which did not before." if self._trained else "."),
                over=bool(self._until),
                evidence=dict(self._kinds),
                advice="Call model.train() after each evaluation.",
                confidence=0.95,
            )
