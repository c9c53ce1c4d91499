"""See the rule's docstring: it is the page that `trainwatch rules repetitive-outputs` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np

from trainwatch.bases.outputs import OutputsRule
from trainwatch.rule import Findings
from trainwatch.schema import Finding
from trainwatch.table import Chunk

PHRASE = 16  # tokens: longer ones are refrains
PAIRS = 16  # neighbours, in all outputs together: among fewer, half may be alike by chance
TIMES = 3  # that a phrase comes in a row: twice happens in any text
MOST = (32, 1024)  # outputs of a sample that are read, and tokens of each


@dataclass
class RepetitiveOutputs(OutputsRule):
    """The model repeats itself: GGGG..., AAAA...

    What it sees:
        The longest stretch of one token is more than half of an output's length; or, where the outputs themselves are
        recorded, that of one short phrase, three times in a row and more, or two thirds of all tokens are the same
        as the one before. Where the recorded figure is always whole, it is the longest stretch of all outputs (7777
        among many), and the outputs' own have to come to 40 % of the length, and to more than pairs, on average. A
        warning where it had been less than three tenths (three samples in a row), for a tenth of the planned steps.
        Outputs that never were better in half of the run are an info: a young model says its most common token. They
        are a warning if it is a phrase (who knows a phrase is not young), or if less than 40 % of the first loss are
        left (that of a game does not tell), and they repeat themselves nearly as much as at first.

    Why it matters:
        Repetition feeds itself: each repeated token makes the next one likelier. The loss, which has the truth before
        every token, does not see it.

    What to do:
        Look whether a loss rewards it (a mass that any residue can fill up), whether the decoder is greedy, and whether
        the input reaches the decoder at all.

    When it is wrong:
        Data that consist of long stretches (gaps, padding that counts as output, low-complexity sequences).

    References:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """

    causes: ClassVar[tuple[str, ...]] = ("invalid-outputs",)

    varied: float = 0.3  # of the length in one stretch: three of ten, as peptides have now and then
    repeated: float = 0.5  # of the length in one stretch
    seldom: float = 0.4  # of the length, in the mean of the longest stretches: numbers of four digits come to 0.35
    lasting: float = 0.1  # of the planned steps, for outputs that had been better
    half: float = 0.5  # of the planned steps, for outputs that never were: a young model's repeat themselves
    doubled: float = 2.5  # tokens, in that mean: two alike come in any data, and are nearly half of five
    echoed: float = 0.65  # of the tokens are the same as the one before: doubled letters come to less
    shortest: float = 4.0  # tokens: in a shorter output a stretch of two is half of it

    _short: int | None = field(default=None, init=False)  # step of the first sample, of outputs too short to tell
    _longest: bool = field(default=True, init=False)  # the figure is whole: of the one output that repeats itself most

    def sampled(self, chunk: Chunk, row: int) -> Findings:
        """Only samples that tell it, of outputs that are long enough."""
        run, length, entropy = (
            float(chunk[f"quality/{name}"][row]) for name in ("longest_run", "length_mean", "entropy")
        )
        outputs = chunk.text(row, "outputs")
        echo, phrase = _echo(outputs), _phrases(outputs)
        self._longest &= not np.isfinite(run) or run.is_integer()
        if length < self.shortest:
            self._short = int(chunk.step[row]) if self._short is None else self._short
            return ()
        stretch = run / length
        odd = self._longest and _stretches(outputs) < max(self.seldom * length, self.doubled)
        part = float(np.fmax(np.fmax(phrase, 0.0 if odd else stretch), echo if echo > self.echoed else 0.0))
        if not np.isfinite(part):
            return ()
        return self.follow(
            int(chunk.step[row]),
            lambda: self._finding(int(chunk.step[row]), part, entropy, phrase=phrase == part),
            good=np.fmax(part, stretch) < self.varied,
            bad=part > self.repeated,
            merit=-part,
        )

    def _finding(self, step: int, part: float, entropy: float, *, phrase: bool) -> Finding:
        decline = self._decline
        stuck = not decline.was_good and (phrase or (self.grown and self.stands(step, -self.varied)))
        before = "it had been" if decline.was_good else "it never stayed"
        before += f" below {self.varied:.0%}"
        before += f", though {self._left:.0%} of the first loss are left" if stuck and self.grown else ""
        known, what = np.isfinite(entropy), "One phrase again and again" if phrase else "What was just said"
        return self.finding(
            "warning" if decline.was_good or stuck else "info",
            "run",
            (decline.first if decline.was_good or self._short is None else self._short, decline.last),
            f"{what} fills {part:.0%} of an average output, in {decline.rows} samplings since step "
            f"{decline.first:,}; {before}.",
            evidence={"repeated": part, "samples": decline.rows} | ({"entropy": entropy} if known else {}),
            advice="See whether a loss rewards filling up, and whether the input reaches the decoder at all.",
            confidence=0.9 if decline.was_good else 0.6,
        )


def _stretches(outputs: Any) -> float:
    """Mean of the outputs' longest stretches of one token; NaN where there are no outputs."""
    texts = [text[: MOST[1]] for text in outputs[: MOST[0]] if isinstance(text, str | list)] if outputs else []
    longest = [max((len(list(same)) for _, same in groupby(text)), default=0) for text in texts]
    return float(np.mean(longest)) if longest else np.nan


def _echo(outputs: Any) -> float:
    """Share of all tokens that are the same as the one before; NaN where there are few."""
    texts = [text[: MOST[1]] for text in outputs[: MOST[0]] if isinstance(text, str | list)] if outputs else []
    alike = [one == other for text in texts for one, other in pairwise(text)]
    return sum(alike) / len(alike) if len(alike) >= PAIRS else np.nan


def _phrases(outputs: Any) -> float:
    """Mean share of an output that one phrase of several tokens fills, repeated; NaN where there are no outputs."""
    texts = [text[: MOST[1]] for text in outputs[: MOST[0]] if isinstance(text, str | list)] if outputs else []
    long = [_phrase(text) for text in texts if len(text) >= 2 * TIMES]
    return sum(long) / len(texts) if long else np.nan


def _phrase(text: Sequence[Any]) -> float:
    """The largest share of a text that is one phrase of two tokens and more, several times in a row."""
    codes = np.unique([str(token) for token in text], return_inverse=True)[1]
    best = 0
    for length in range(2, min(PHRASE, len(codes) // TIMES) + 1):
        breaks = np.flatnonzero(np.append(codes[length:] != codes[:-length], True))
        begins = np.append(0, breaks[:-1] + 1)
        at = int(np.argmax(breaks - begins))
        repeated, phrase = int(breaks[at] - begins[at]), codes[begins[at] : begins[at] + length]
        if repeated >= (TIMES - 1) * length and len(set(phrase.tolist())) > 1:
            best = max(best, repeated + length)
    return best / max(len(codes), 1)
