"""See the rule's docstring: it is the page that `trainwatch rules never-started` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.attempts import attempts

KINDS = 5  # kinds of exception that are spelt out; the rest are counted


@dataclass
class NeverStarted(Rule):
    """No step was ever taken.

    What it sees:
        A run file whose process is over or dead, with headers and no row of training: how often it was tried, and which
        exceptions stopped it how often.

    Why it matters:
        It looks like a run in every list, and is none: a queue slot that was waited for, and nothing trained. The same
        start often fails for one reason after the other.

    What to do:
        Mend the causes in the order in which they are listed; each of them stopped the run by itself.

    When it is wrong:
        A run that only evaluates takes no steps by design: it is left alone as soon as one evaluation is recorded.

    References:
        Logs of 0 epochs with three kinds of error, one after the other.
    """

    causes: ClassVar[tuple[str, ...]] = ("crashed",)  # it tells of every attempt, that of the last one alone

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Over, and nothing in it."""
        if run.train.size or run.eval.size or not run.headers or run.status() in ("running", "stalled", "killed"):
            return
        starts = attempts(run)
        stopped, asked = Counter(said for start in starts for said in start.stopped), sum(s.asked for s in starts)
        count = len(run.headers)
        tried = "1 attempt" if count == 1 else f"{count:,} attempts"
        why = "; ".join(f"{times} x {said}" for said, times in stopped.most_common(KINDS))
        more = f"; and {len(stopped) - KINDS} other kinds" if len(stopped) > KINDS else ""
        yield self.finding(
            "info" if asked == count and not stopped else "critical",
            "run",
            (0, 0),
            f"No step was ever taken in {tried}: {why or _silent(run, asked)}{more}.",
            evidence={"attempts": count, "exceptions": stopped.total(), "kinds": len(stopped)},
            advice=f"Mend {next(iter(stopped), 'the start')} first; try the next start with a few steps.",
            confidence=0.95,
        )


def _silent(run: Run, asked: int) -> str:
    if asked:
        return "it was stopped before its first step"
    return "the process ended by itself" if run.end is not None else "the process died without a last word"
