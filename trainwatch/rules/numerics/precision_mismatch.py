"""See the rule's docstring: it is the page that `trainwatch rules precision-mismatch` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk

DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
"""Significant bits of each precision."""
HALVES = ("float16", "bfloat16")
WORDS = {name: name for name in DIGITS} | {
    "fp64": "float64",
    "double": "float64",
    "64": "float64",
    "64-true": "float64",
    "fp32": "float32",
    "32": "float32",
    "32-true": "float32",
    "float": "float32",
    "fp16": "float16",
    "16": "float16",
    "half": "float16",
    "16-mixed": "float16",
    "16-true": "float16",
    "bf16": "bfloat16",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
}
"""What configs call them; of Lightning, Accelerate and others."""
SAID = ("precision", "mixed_precision", "amp_dtype", "autocast_dtype", "compute_dtype")
"""Settings that name what is computed in. `dtype` may be that of the weights, and does not count."""
ASIDE = ("inference", "eval", "evaluation", "generation", "export", "deploy")
"""Sections of a config that say nothing of training."""
DEEPEST = 4  # levels of a config that are looked through


@dataclass
class PrecisionMismatch(Rule):
    """The run does not compute in the precision that it declares.

    What it sees:
        A gradient scaler at work where bfloat16 or float32 is declared. Weights in half precision where float32 is
        declared, or in the other half; less than float64 where that is declared. A config that says one precision and a
        run that declares another. A tensor of its own in `dtypes` ({"masses": {"declared": "float64", "observed":
        "bfloat16"}}) that is held in less than it should be. Float32 weights under a declared half precision are
        autocast's normal life.

    Why it matters:
        float16 overflows at 65,504, bfloat16 keeps 8 bits: near 1,000 its numbers lie 4 apart. A run that falls back to
        float32 is slow; one that falls into a half without a word loses small differences, and nothing looks broken.

    What to do:
        Make one setting say it, and hand its value to autocast, to the scaler (float16 only) and to the model's
        `to(dtype)`. Keep coordinates, masses, times and positions in float32 or float64 until their differences are
        taken.

    When it is wrong:
        A scaler that is enabled under bfloat16 by habit does no harm, and can go.

    References:
        Autocast and GradScaler: docs.pytorch.org/docs/stable/amp.html; positions in bfloat16: transformers #29285.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:dtypes|run:config",)
    wants: ClassVar[tuple[str, ...]] = ("run:dtypes", "amp/scale")
    causes: ClassVar[tuple[str, ...]] = (
        *("overflow-risk", "amp-scale-collapse", "slow-convergence", "loss-plateau", "loss-stuck", "non-finite-loss"),
        *("non-finite-gradient", "hidden-nan", "loss-divergence", "frozen-weights"),
        *("mode-collapse", "invalid-outputs"),  # what differs by less than a digit gets one answer, and a wrong one
    )

    rows: int = 20  # with a scaler that is not 1: a window

    _declared: str = field(default="", init=False)
    _scaled: int = field(default=0, init=False)
    _began: int = field(default=0, init=False)

    def start(self, header: Header) -> Iterator[Finding]:
        """What the header alone tells: declared against observed, and the config against both."""
        dtypes = mapping(header.raw.get("dtypes"))
        told, config = WORDS.get(str(dtypes.get("declared")), ""), _of_config(header.config)
        self._declared = told or config
        if told and config and told != config:
            yield self._mismatch("run", f"The config says {config}, and the run declares {told}.", config, told)
        seen = {WORDS[name] for name in str(dtypes.get("observed") or "").split(", ") if name in WORDS}
        if len(seen) == 1 and self._declared and _less(self._declared, *seen):
            (found,) = seen
            message = f"{self._declared} is declared, and {found} is what the run computes with."
            yield self._mismatch("run", message, self._declared, found)
        for name, pair in dtypes.items():
            parts = mapping(pair)
            want, found = (WORDS.get(str(parts.get(key)), "") for key in ("declared", "observed"))
            if want and found and DIGITS[found] < DIGITS[want]:
                message = f"{name}: {want} is declared, and {found} holds it, with {DIGITS[found]} significant bits."
                yield self._mismatch(f"module:{name}", message, want, found)

    def update(self, chunk: Chunk) -> Findings:
        """A scaler at work, where nothing needs one."""
        if self._declared in ("", "float16") or "amp/scale" not in chunk.channels or self._scaled >= self.rows:
            return
        scale = chunk["amp/scale"]
        rows = np.flatnonzero(np.isfinite(scale) & (scale != 1.0))
        if len(rows):
            self._began = self._began or int(chunk.step[rows[0]])
            if self._scaled < self.rows <= self._scaled + len(rows):
                at = int(rows[self.rows - self._scaled - 1])
                yield self.finding(
                    "warning",
                    "run",
                    (self._began, int(chunk.step[at])),
                    f"{self._declared} is declared, and a gradient scaler is at work (scale {scale[at]:,.0f}), which "
                    "float16 alone needs.",
                    evidence={"declared": self._declared, "scale": float(scale[at])},
                    advice="Check which dtype autocast really gets; hand it the declared one, and disable the scaler "
                    "unless that is float16.",
                    confidence=0.8,
                )
            self._scaled += len(rows)

    def _mismatch(self, subject: str, message: str, declared: str, observed: str) -> Finding:
        return self.finding(
            "warning",
            subject,
            (0, 0),
            message,
            evidence={"declared": declared, "observed": observed},
            advice="Make one setting say the precision, and hand its value to autocast, the scaler and the model; keep "
            "what is told apart by small differences in float32 or float64.",
            confidence=0.8,
        )


def _less(declared: str, found: str) -> bool:
    """Whether it is not what was declared; float32 (or more) under a declared half is what autocast looks like."""
    return declared != found and (found in HALVES or DIGITS[found] < DIGITS[declared])


def _of_config(config: Mapping[str, Any], depth: int = 0) -> str:
    """The one precision that a config names; empty for none, for `auto`, and for two that differ."""
    found = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.add(_of_config(value, depth + 1) if depth < DEEPEST and name not in ASIDE else "")
        elif name in SAID and not isinstance(value, bool):
            found.add(WORDS.get(str(value).lower().removeprefix("torch."), ""))
        elif name in ("fp16", "bf16") and value is True:
            found.add(WORDS[name])
    found.discard("")
    return found.pop() if len(found) == 1 else ""
