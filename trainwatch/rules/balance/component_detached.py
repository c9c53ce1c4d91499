"""See the rule's docstring: it is the page that `trainwatch rules component-detached` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.header import Header, mapping, number, text
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event, Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class ComponentDetached(Rule):
    """A loss component is in the sum, and no gradient flows from it.

    What it sees:
        `watch.losses` looks at each tensor that it sums: one that requires no gradient, sum after sum, while others
        do, is told (`no_gradient`). It is a warning where the component has a value other than 0 and a weight; an info
        where a part of the model is frozen, which may be all that it depends on. What has a value only since a gradient
        flows (a loss that enters late) is left alone.

    Why it matters:
        It stands in the total and in the plots, and teaches nothing: the total falls for other reasons, or does not.

    What to do:
        Look between the model's output and this loss for `detach()`, `no_grad`, `argmax`, `item()`, a cast to integers,
        or a copy that was made by `torch.tensor`. What is only to be seen has the weight 0.

    When it is wrong:
        A loss over parameters that are frozen on purpose, in a model that the recorder was not given.

    References:
        PyTorch's autograd mechanics: what is computed without a graph has none.
    """

    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("weight/<component>", "run:modules")
    causes: ClassVar[tuple[str, ...]] = ("component-dead", "loss-stuck", "loss-plateau")

    _frozen: bool = field(default=False, init=False)  # a part of the model, at first or when it was told
    _since: dict[str, int] = field(default_factory=dict, init=False)  # of the components at hand
    _over: dict[str, int] = field(default_factory=dict, init=False)
    _valued: dict[str, int] = field(default_factory=dict, init=False)  # the first step with a value

    def start(self, header: Header) -> Findings:
        """What is frozen."""
        rows = header.raw.get("modules")
        self._frozen = any(mapping(row).get("trainable") == 0 for row in (rows if isinstance(rows, list) else []))
        return ()

    def event(self, event: Event) -> Findings:
        """What the recorder tells."""
        if event.get("event") == "monitor":
            step = int(number(event.get("since")) or number(event.get("step")) or 0)
            if name := text(event.get("no_gradient")):
                self._frozen |= event.get("frozen") is True
                self._since.setdefault(name, step)
                self._over.pop(name, None)
            if name := text(event.get("gradient_again")):
                self._over[name] = step
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Whether there is anything in it."""
        for channel in chunk.channels:
            name = channel.removeprefix("loss/")
            if name != channel and name not in self._valued:
                weight = chunk[f"weight/{name}"]
                there = np.nan_to_num(chunk[channel]) * np.where(np.isfinite(weight), weight, 1.0) != 0
                if there.any():
                    self._valued[name] = int(chunk.step[there.argmax()])
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a component."""
        last = run.last_step or 0
        for name, since in self._since.items():
            if self._valued.get(name, last + 1) <= self._over.get(name, last):
                yield self.finding(
                    "info" if self._frozen else "warning",
                    f"component:{name}",
                    (since, self._over.get(name, last)),
                    f"The {name} loss is in the sum, and no gradient flows from it.",
                    over=name in self._over,
                    advice="Look for detach(), no_grad, argmax or item() before it; give it the weight 0 if it is only "
                    "to be seen.",
                )
