"""See the rule's docstring: it is the page that `trainwatch rules never-started` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from trainwatch.header import mapping, text
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk

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
        stopped, asked = _what_stopped_it(run)
        attempts = len(run.headers)
        tried = "1 attempt" if attempts == 1 else f"{attempts:,} attempts"
        why = "; ".join(f"{count} x {said}" for said, count in stopped.most_common(KINDS))
        more = f"; and {len(stopped) - KINDS} other kinds" if len(stopped) > KINDS else ""
        yield self.finding(
            "info" if asked == attempts and not stopped else "critical",
            "run",
            (0, 0),
            f"No step was ever taken in {tried}: {why or _silent(run, asked)}{more}.",
            evidence={"attempts": attempts, "exceptions": stopped.total(), "kinds": len(stopped)},
            advice=f"Mend {next(iter(stopped), 'the start')} first; try the next start with a few steps.",
            confidence=0.95,
        )


def _silent(run: Run, asked: int) -> str:
    if asked:
        return "it was stopped before its first step"
    return "the process ended by itself" if run.end is not None else "the process died without a last word"


def _what_stopped_it(run: Run) -> tuple[Counter[str], int]:
    """How often each exception ended an attempt, and how many attempts were stopped on purpose.

    An exception that is recorded as an event and again in the end record that follows it is one.
    """
    stopped: Counter[str] = Counter()
    asked, before = 0, ""
    for event in run.events:
        if event.get("kind") == "end":
            said = _spoken(mapping(event.get("exception")))
            if said and said != before and not said.startswith("KeyboardInterrupt"):
                stopped[said] += 1
            elif not said and not before and event.get("status") == "failed":
                stopped[text(event.get("reason")) or "an exception that was not recorded"] += 1
            asked += event.get("status") == "stopped" or said.startswith("KeyboardInterrupt")
            before = ""
        elif event.get("event") in ("exception", "oom"):
            before = _spoken(event) or str(event["event"])
            if not before.startswith("KeyboardInterrupt"):
                stopped[before] += 1
    return stopped, asked


def _spoken(said: dict[str, Any]) -> str:
    """Type and first line of an exception."""
    message = str(said.get("message") or "").strip()
    parts = (text(said.get("type")), message.splitlines()[0][:200] if message else None)
    return ": ".join(part for part in parts if part)
