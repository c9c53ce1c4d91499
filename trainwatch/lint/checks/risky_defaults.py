"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.names import words
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

PRECISION = words("precision mixed_precision amp_dtype dtype torch_dtype")
FP16 = re.compile(r"(?:torch\.)?(?:fp16|float16|half|16|16-mixed)", re.IGNORECASE)
CLIP = re.compile(r"clip|max_grad_norm|max_norm|grad_norm", re.IGNORECASE)
BRINGS_ITS_OWN = frozenset(["huggingface", "deepspeed", "axolotl", "speechbrain"])
"""Loops that clip unless told otherwise: at 1.0, SpeechBrain's at 5.0."""
MASS = re.compile(r"(?:^|[._])(?:precursor|mass|peptide_mass|expected_mass)(?:_|$)", re.IGNORECASE)
SMOOTHING = words("label_smoothing label_smoothing_factor smoothing")


class RiskyDefaults(Check):
    """Settings that are each usual and that do not go together.

    What it sees:
        float16 without a limit of the gradient's norm; label smoothing beside a loss of the expected mass.

    Why it matters:
        float16 overflows at 65,504, and one large gradient costs a row of skipped steps. Smoothed labels ask for
        probability on wrong residues, and the expected mass then never fits.

    What to do:
        Clip at 1.0, or take bfloat16; smoothing 0 where a mass is expected.

    When it is wrong:
        The limit is set in code. It is only mentioned.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Half precision first, then smoothing."""
        nodes = [node for node in material.nodes if node.scalar]
        clipped = any(CLIP.search(node.dotted) and node.value not in (None, False, 0, 0.0) for node in nodes)
        half = next((node for node in nodes if _fp16(node)), None)
        if half is not None and not clipped and not material.dialects & BRINGS_ITS_OWN:
            yield self._said(half, "float16 without a limit of the gradient's norm", "Clip at 1.0, or take bfloat16.")
        smoothed = next((node for node in nodes if node.name.lower() in SMOOTHING and (node.number or 0) > 0), None)
        mass = next((node for node in nodes if MASS.search(node.dotted) and (node.number or 0) > 0), None)
        if smoothed is not None and mass is not None:
            what = f"label smoothing {smoothed.written} beside {mass.dotted}: the expected mass can never fit"
            yield self._said(smoothed, what, f"Write {smoothed.name}: 0.0.")

    def _said(self, node: Node, what: str, advice: str) -> Finding:
        return self.finding("info", node.dotted, node.place, f"{node.dotted}: {what}.", advice, confidence=0.6)


def _fp16(node: Node) -> bool:
    name = node.name.lower()
    return (name == "fp16" and node.value is True) or (name in PRECISION and bool(FP16.fullmatch(str(node.value))))
