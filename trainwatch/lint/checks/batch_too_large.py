"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.horizon import plan
from trainwatch.lint.memory import card_of, shape
from trainwatch.lint.names import words
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

CARD = words("gpu gpu_type gpu_name card accelerator_type device_name gpu_model")
SPREAD = re.compile(
    r"lora|adapter|load_in_[48]bit|quantization|peft|finetuning_type|fsdp|zero_|offload|shard|parallel[_-]size",
    re.IGNORECASE,
)
"""What keeps less than the whole of a model and its optimiser on one card."""


class BatchTooLarge(Check):
    """The batch does not fit the card.

    What it sees:
        A transformer's width, depth, sequence length and batch, its precision, optimiser and recomputation, against the
        card that `--card` or the config names. It says between what and what it expects, and warns if the lower end is
        more than the card has.

    Why it matters:
        The run ends in its first backward pass, after it waited for its card.

    What to do:
        Take the batch that fits, and accumulate gradients to the size that was meant.

    When it is wrong:
        Models that are no plain transformers; adapters, quantised weights and sharded optimisers, which are left alone.

    References:
        Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models (arXiv:2205.05198).
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """The estimate against the card."""
        if material.config is None or any(SPREAD.search(node.name) and _on(node) for node in material.nodes):
            return
        named = next((n for n in material.nodes if n.name.lower() in CARD and isinstance(n.value, str)), None)
        card = material.card or (card_of(named.value) if named else None)
        made, batch = shape(material.config), plan(material.config).batch
        if card is None or made is None or batch is None or made.high <= card:
            return
        fits, sure = min(made.fits(card), int(made.batch) - 1), made.low > card
        yield self.finding(
            "warning" if sure else "info",
            batch.dotted,
            batch.place,
            f"A batch of {made.batch:g} needs {made.low:.0f} to {made.high:.0f} GiB, and the card has {card:g}: "
            f"{made.parameters / 1e6:,.0f} M parameters, {made.layers:g} layers of {made.hidden:g}, "
            f"{made.length:,.0f} tokens.",
            _advice(batch.name, fits if sure else None, recomputed=made.recomputed),
            patch={batch.dotted: fits} if fits and sure and made.batch == batch.number else {},
            evidence={"low": made.low, "high": made.high, "card": card, "parameters": made.parameters},
            confidence=0.8 if sure else 0.5,
        )


def _advice(name: str, fits: int | None, *, recomputed: bool) -> str:
    """What to write; ``fits`` is the batch that does, None where this one may."""
    if fits == 0:
        return "Not even a batch of one fits: take a smaller model, or shard it."
    less = f"Write {name}: {fits}" if fits else f"If it runs out of memory, halve {name}"
    return f"{less} and accumulate{'' if recomputed else ', or recompute activations'}."


def _on(node: Node) -> bool:
    """A size of 1, false and null spread nothing."""
    return node.value is True or node.value not in (None, 0, 1, "")
