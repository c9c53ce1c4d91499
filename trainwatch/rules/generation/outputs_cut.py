"""See the rule's docstring: it is the page that `trainwatch rules outputs-cut` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import running_medians
from trainwatch.table import Chunk

CUT = re.compile(
    r"logged/(?:.*_)?(?:completion|response|generation|output)s?_.*(?:clip|cut|trunc)\w*_(?:ratio|rate|frac\w*)"
)
"""Channels that tell how many outputs reached the limit of their length: TRL's, verl's. PPO clips another ratio."""


@dataclass
class OutputsCut(Rule):
    """Nearly every output that is generated for training is cut off at the limit of its length.

    What it sees:
        A logged share of outputs that were cut off (`completions/clipped_ratio`, `response_length/clip_ratio`): at
        95 % and more, by the median of five rows, in the last twenty rows that tell it, and since when. It is an info:
        by itself it says nothing of the reward.

    Why it matters:
        What is cut off has no end and often no answer, so a reward for either cannot be earned; and where the trainer
        masks such outputs out of the loss (`mask_truncated_completions`), nothing is left to learn from.

    What to do:
        Read some outputs. Raise the limit if they are on their way to an answer; if they ramble, see that the end token
        is in the prompt's template and not masked, reward an end, or stay closer to the reference (a larger beta).

    When it is wrong:
        Outputs of a fixed length by design: a policy that is asked for so many tokens and no end.

    References:
        Yu et al., "DAPO" (2025), section 3.4, on the noise that truncated outputs bring into the reward; Liu et al.,
        "Understanding R1-Zero-like training" (2025), on outputs that grow without bounds.
    """

    cut: float = 0.95  # of the outputs: one batch in twenty may end
    rows: int = 20  # the last ones that tell it: a young policy rambles, and its share comes down within so many

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The first of the channels that tell it."""
        name = next((name for name in run.train.kind("logged/") if CUT.fullmatch(name)), None)
        steps, shares = run.train.curve(name) if name else (np.empty(0), np.empty(0))
        if name is None or len(shares) < self.rows:
            return
        ends = np.flatnonzero(running_medians(shares, 5) < self.cut)
        since = int(ends[-1]) + 1 if len(ends) else 0
        if len(shares) - since >= self.rows:
            share = float(np.median(shares[since:]))
            yield self.finding(
                "info",
                "run",
                (int(steps[since]), int(steps[-1])),
                f"{share:.0%} of the outputs are cut off at the limit of their length, in {len(shares) - since:,} rows "
                f"since step {int(steps[since]):,}: hardly one ends by itself.",
                evidence={"channel": name, "share": share, "rows": len(shares) - since},
                advice="Read some outputs: raise the limit on their length if they are on their way to an answer; "
                "reward an end if they ramble.",
                confidence=0.8,
            )
