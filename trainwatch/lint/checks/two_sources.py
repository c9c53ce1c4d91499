"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.dialect import training_arguments
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

SAME = (
    ("lr", "learning_rate"),
    ("batch_size", "train_batch_size"),
    ("num_epochs", "epochs", "max_epochs"),
    ("max_grad_norm", "grad_clip", "gradient_clip_val"),
    ("total_steps", "max_steps", "num_training_steps"),
    ("wd", "weight_decay"),
)
"""Names that mean one thing; beside each other, a trainer reads one of them."""


class TwoSources(Check):
    """One setting is said twice, in two ways that disagree; one of them is ignored.

    What it sees:
        Two usual names of one setting side by side with different values; pairs of TrainingArguments of which one
        silently wins; fp16 and bf16 both on; a DeepSpeed batch that is not its own product; an override given twice.

    Why it matters:
        Who changes the one that loses changes nothing.

    What to do:
        Keep the one that is meant.

    When it is wrong:
        The two names mean different things to your trainer.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Mapping by mapping."""
        for node in material.nodes:
            if node.children:
                yield from self._same(node)
                yield from self._both(node)
                yield from self._product(node)
                if training_arguments(node):
                    yield from self._training_arguments(node)

    def _same(self, node: Node) -> Iterator[Finding]:
        for names in SAME:
            said = [node.children[name] for name in names if name in node.children]
            said = [child for child in said if child.number is not None and child.number > 0]
            if len({child.number for child in said}) > 1:
                listed = " and ".join(f"{child.name} {child.written}" for child in said)
                message = f"{listed} are two names of one setting, and the trainer reads one of them."
                yield self._say(
                    "warning", said[-1], message, f"Keep the one that it reads; delete {said[-1].name}.", 0.7
                )

    def _both(self, node: Node) -> Iterator[Finding]:
        on = [name for name in ("fp16", "bf16") if (c := node.children.get(name)) is not None and _on(c)]
        if len(on) == 2:
            message = "fp16 and bf16 are both on; a run has one precision."
            yield self._say("warning", node.children["fp16"], message, "Turn fp16 off where the card has bf16.", 1.0)

    def _product(self, node: Node) -> Iterator[Finding]:
        """DeepSpeed raises unless train_batch_size = micro batch x accumulation x processes."""
        names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        numbers = [c.number if (c := node.children.get(name)) is not None else None for name in names]
        whole, micro, group = numbers
        if whole and micro and group and whole % (micro * group):
            message = (
                f"train_batch_size {whole:g} is no multiple of {micro:g} a card x {group:g} accumulated: no number of "
                "cards gives it."
            )
            near = max(round(whole / (micro * group)), 1) * micro * group
            advice = f"Write {near:g}, or leave it out: it follows from the others and the number of cards."
            yield self._say("warning", node.children[names[0]], message, advice, 1.0)

    def _training_arguments(self, node: Node) -> Iterator[Finding]:
        said = node.children
        steps, ratio = said.get("warmup_steps"), said.get("warmup_ratio")
        if steps and ratio and (steps.number or 0) > 0 and (ratio.number or 0) > 0:
            message = f"warmup_steps {steps.written} wins over warmup_ratio {ratio.written}, which is ignored."
            yield self._say("warning", ratio, message, "Delete one of them.", 1.0)
        limit, epochs = said.get("max_steps"), said.get("num_train_epochs")
        if limit and epochs and (limit.number or 0) > 0 and epochs.number:
            message = f"max_steps {limit.written} wins over num_train_epochs {epochs.written}, which is ignored."
            yield self._say("info", epochs, message, "Delete num_train_epochs, or set max_steps to -1.", 1.0)

    def _say(self, severity: str, node: Node, message: str, advice: str, confidence: float) -> Finding:
        return self.finding(
            severity,  # type: ignore[arg-type]  # one of two literals above
            node.dotted,
            node.key,
            message,
            advice,
            confidence=confidence,
        )


def _on(node: Node) -> bool:
    enabled = node.children.get("enabled")
    return node.value is True or (enabled is not None and enabled.value is True)
