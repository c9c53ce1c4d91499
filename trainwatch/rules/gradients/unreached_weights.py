"""See the rule's docstring: it is the page that `trainwatch rules unreached-weights` prints."""

from __future__ import annotations

from typing import ClassVar

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.table import Chunk
from trainwatch.views.unreached import parameters, unreached

NAMED = 4  # modules that are named; the event has more


class UnreachedWeights(Rule):
    """Weights that an optimiser holds have never had a gradient.

    What it sees:
        After twenty steps in which others had one, the recorder tells of modules (`watch.attach(model, optimizer)`)
        that may be trained, that an optimiser holds, and that have no gradient at all: not one of 0, none. It is an
        info: component-dead makes it a warning where a loss component bears the module's name and is not learned.

    Why it matters:
        They stay what they were, cost memory for nothing, and DistributedDataParallel waits for them or stops. Nothing
        in a curve shows it.

    What to do:
        Look whether the forward pass goes through the module, and whether what comes out of it reaches the loss without
        `detach()`, `no_grad`, `argmax` or `item()`. What is meant to rest gets `requires_grad_(False)`.

    When it is wrong:
        A pooler that nobody asks, a head that a later stage trains, experts that are seldom chosen, a body under
        `no_grad` by intent: those are why it is no more than an info.

    References:
        PyTorch's DistributedDataParallel, on `find_unused_parameters`.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:modules",)
    causes: ClassVar[tuple[str, ...]] = ("component-dead",)

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """As it was told last."""
        names, count = unreached(run), parameters(run)
        if names and run.first_step is not None:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            whole = sum(module.trainable for module in run.header.modules if module.depth == 1)
            of = f" of {whole:,.0f}" if whole >= count else ""
            yield self.finding(
                "info",
                f"module:{names[0]}",
                (run.first_step, run.last_step or run.first_step),
                f"No gradient has ever reached {', '.join(names[:NAMED])}{more}: {count:,.0f}{of} parameters that may "
                "be trained.",
                evidence={"parameters": count, "modules": len(names)},
                advice="See whether the forward pass goes through it and the loss depends on it; else freeze it.",
                confidence=0.95,
            )
