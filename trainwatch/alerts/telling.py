"""What is worth a message: a finding that begins, grows or is over, and the end of a run. Each once.

Infos are nobody's alarm: only warnings and worse are told. The message of a run's end holds its root cause, and what
was found with the end is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainwatch.diagnosis import Diagnosis
from trainwatch.run import Run
from trainwatch.schema import SEVERITIES, Finding
from trainwatch.text import wording
from trainwatch.text.wording import SYMBOLS, clean

TOLD_FROM = SEVERITIES.index("warning")
OVER = -1
Event = Literal["finding", "over", "stalled", "end"]
Told = dict[str, int]
"""What was told of a run: a finding's key and how grave it was then, ``OVER`` once that was told; and its ends."""


@dataclass(frozen=True)
class Message:
    """One thing to tell: for people a title and a few lines, for programs ``data``, which is strict JSON.

    ``key`` and ``grade`` are what is remembered of it.
    """

    key: str
    grade: int
    title: str
    body: str
    data: dict[str, Any]


def _message(
    event: Event, key: str, run: Run, said: Diagnosis, finding: Finding | None, also: Sequence[Finding] = ()
) -> Message:
    title, lines = _title(event, run, said, finding), _lines(event, said, finding)
    data = {
        "version": 1,
        "event": event,
        "run": run.name,
        "source": said.source,
        "status": said.status,
        "step": said.last_step,
        "message": f"{title}. {lines[0]}",
        "finding": finding.to_dict() if finding else None,
        "also": [one.to_dict() for one in also],
    }
    grade = OVER if event == "over" or finding is None or finding.state == "over" else finding.rank
    body = "\n".join([*lines, f"trainwatch check {clean(said.source)}"])
    return Message(key, grade, title, body, wording.strict(data))


def _title(event: Event, run: Run, said: Diagnosis, finding: Finding | None) -> str:
    """How bad, which run, what."""
    name = clean(run.name, 80)
    if finding is None or event in ("end", "stalled"):
        return f"{wording.symbol(said)} {name}: {wording.verdict(said, run.header.total_steps)}"
    what = clean(finding.rule, 80) + (f" on {clean(finding.subject, 80)}" if finding.subject != "run" else "")
    if event == "over":
        return f"{SYMBOLS[None]} {name}: {what} is over"
    return f"{SYMBOLS[finding.severity]} {name}: {finding.severity}, {what}"


def _lines(event: Event, said: Diagnosis, finding: Finding | None) -> list[str]:
    """The sentence with the numbers, and what to do."""
    advice = [f"Do: {clean(finding.advice)}"] if finding and finding.advice and event != "over" else []
    if finding is not None and event in ("finding", "over"):
        return [clean(finding.message), *advice]
    more = len(said.findings) - (said.root_cause is not None)
    rest = [f"There {'is' if more == 1 else 'are'} {wording.plural(more, 'finding')} beside it."] if more else []
    return [wording.root_cause(said), *advice, *rest]


@dataclass
class Teller:
    """What is to be told of one run, look after look. ``told`` was told before; it grows with what is told.

    ``quiet``: a run that is over when it is first seen is no news. So it is in a folder, which holds many.
    """

    told: Told = field(default_factory=dict)
    quiet: bool = False
    _first: bool = True
    _shown: dict[str, Finding] = field(default_factory=dict)  # what was told and is not over, as it last stood

    def look(self, run: Run, said: Diagnosis, ended: bool) -> list[Message]:
        """The messages that this look asks for."""
        news = not (ended and self._first and self.quiet and not self.told)
        found = list(self._end(run, said) if ended else self._live(run, said))
        self._first = False
        self.told |= {message.key: message.grade for message in found}
        return found if news else []

    def _end(self, run: Run, said: Diagnosis) -> Iterator[Message]:
        """One message for each process of a run: one that is resumed ends again."""
        key, root = f"end {len(run.headers)} {said.status}", said.root_cause
        self._shown.clear()
        if key in self.told:
            return
        with_it = [one for one in said.findings if one.rank >= TOLD_FROM]
        self.told |= {_key(finding): finding.rank for finding in with_it}
        yield _message("end", key, run, said, root, [one for one in with_it if root is None or one.key != root.key])

    def _live(self, run: Run, said: Diagnosis) -> Iterator[Message]:
        known = {_key(finding): finding for finding in said.findings}
        for key, finding in known.items():
            before = self.told.get(key)
            news = finding.rank >= TOLD_FROM and (before is None or OVER < before < finding.rank)
            if news and finding.rule == said.status:  # the state, and the rule that says so, are one thing
                yield _message("stalled", key, run, said, said.root_cause or finding)
            elif news:
                yield _message("finding", key, run, said, finding)
            if finding.state == "active" and finding.rank >= TOLD_FROM and before != OVER:
                self._shown[key] = finding
        for key in [key for key, grade in self.told.items() if grade > OVER and not key.startswith("end ")]:
            now, shown = known.get(key), self._shown.get(key)
            if now is not None and now.state == "active" and now.rank >= TOLD_FROM:
                continue
            self._shown.pop(key, None)
            self.told[key] = OVER
            if left := now or shown:  # neither is left of what an earlier watch told and a rule took back
                yield _message("over", key, run, said, left)


def _key(finding: Finding) -> str:
    return " ".join(str(part) for part in finding.key)
