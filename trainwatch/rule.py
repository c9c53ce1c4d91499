"""The contract of a rule: a stream of chunks in, findings out, in constant memory.

A rule is one file ``rules/<family>/<name>.py`` with one dataclass, and is found by being there. Its fields are its
thresholds, each with its unit and the reason of the number; what it remembers is a field with ``init=False``. Its
docstring is its page, in five parts: *What it sees / Why it matters / What to do / When it is wrong / References*.

How a log is cut into chunks never changes what a rule finds, and ``finish`` may be called at any time and any number
of times: it looks at the run as it stands and remembers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.run import Event, Run
from trainwatch.schema import CHANNELS, HEADER, Finding, Severity, matches
from trainwatch.table import Chunk, TableName
from trainwatch.views.ranks import Abreast

Findings = Iterable[Finding]


@dataclass
class Rule:
    """The base of every rule.

    ``reads`` names the tables whose rows it wants. ``needs`` names what it cannot judge without, ``wants`` what makes
    it surer: a channel pattern (``loss/<component>``), ``eval:`` and a channel, or ``run:`` and a field of the header;
    alternatives are parted by ``|``. ``causes`` names the rules whose findings this one would explain. ``block`` is
    how many training rows it judges at once: they come in whole blocks of so many, counted from the first row of the
    process, so that a live run asks it once in a while; 0 is as they come. An ``outcome`` is where a run went, whatever
    led it there: such a finding is the root cause only if nothing else is as grave.
    """

    block: ClassVar[int] = 0
    reads: ClassVar[tuple[TableName, ...]] = ("train",)
    needs: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[tuple[str, ...]] = ()
    causes: ClassVar[tuple[str, ...]] = ()
    outcome: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """``loss-scale-imbalance`` for the rule in ``rules/balance/loss_scale_imbalance.py``."""
        return _name(type(self).__module__)

    @property
    def family(self) -> str:
        """The folder the rule stands in: ``balance``."""
        return _family(type(self).__module__)

    def start(self, header: Header) -> Findings:  # noqa: ARG002
        """A process takes the run up; lint calls this alone."""
        return ()

    def update(self, chunk: Chunk) -> Findings:  # noqa: ARG002
        """The next rows of one of the tables in ``reads``; training rows in whole blocks, if it has a ``block``."""
        return ()

    def event(self, event: Event) -> Findings:  # noqa: ARG002
        """The next record that is no row."""
        return ()

    def abreast(self, rows: Abreast) -> Findings:  # noqa: ARG002
        """The next steps that every rank of the run has written."""
        return ()

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """What can be said of the run as it stands now; ``rest`` are the rows that fill no block yet.

        Must not change the rule. One that says nothing else judges them as if they were a block.
        """
        return self.ahead(rest)

    def ahead(self, rest: Chunk) -> Findings:
        """What :meth:`update` would say of rows that fill no block yet: on a copy, which is forgotten."""
        return copied(self).update(rest) if len(rest) else ()

    def finding(
        self,
        severity: Severity,
        subject: str,
        steps: tuple[int, int],
        message: str,
        *,
        over: bool = False,
        evidence: Mapping[str, float | int | str] | None = None,
        advice: str = "",
        patch: Mapping[str, Any] | None = None,
        confidence: float = 1.0,
    ) -> Finding:
        """A finding of this rule that began at ``steps[0]`` and was last seen at ``steps[1]``."""
        return Finding(
            rule=self.name,
            severity=severity,
            subject=subject,
            first_step=int(steps[0]),
            last_step=int(max(steps)),  # a log may go backwards
            state="over" if over else "active",
            message=_spelt(message),
            evidence={name: _plain(value) for name, value in (evidence or {}).items()},
            advice=_spelt(advice),
            patch=dict(patch or {}),
            confidence=confidence,
        )


LARGE = re.compile(r"(?<![\w.])\d(?:\.\d+)?e\+0[2-8](?!\w)")


def _spelt(text: str) -> str:
    """``3.257e+06`` as 3,257,000: what has up to nine digits is easier to read with all of them."""
    return LARGE.sub(lambda found: f"{float(found[0]):,.0f}", text)


@cache
def _name(module: str) -> str:
    """Asked for at every row of a live run."""
    return module.rpartition(".")[2].replace("_", "-")


@cache
def _family(module: str) -> str:
    return module.split(".")[-2]


def _plain(value: Any) -> float | int | str:
    """A Python number for a NumPy one."""
    return value.item() if hasattr(value, "item") else value  # type: ignore[no-any-return]


def missing(patterns: tuple[str, ...], run: Run) -> list[str]:
    """Those of a rule's ``needs`` or ``wants`` that the run has nothing for, so far."""
    return [pattern for pattern in patterns if not any(_has(run, choice) for choice in pattern.split("|"))]


def _has(run: Run, pattern: str) -> bool:
    place, _, name = pattern.rpartition(":")
    if place == "run":
        return any(header.raw.get(name) not in (None, {}, []) for header in run.headers)
    table = run.table(place) if place in ("eval", "sample") else run.train  # type: ignore[arg-type]
    return any(matches(name, channel) for channel in table.channels)


def known(pattern: str) -> bool:
    """Whether the telemetry format knows every alternative of a pattern in ``needs`` or ``wants``."""
    return all(_known(choice) for choice in pattern.split("|"))


def _known(choice: str) -> bool:
    place, _, name = choice.rpartition(":")
    if place == "run":
        return name in HEADER
    return place in ("", "eval", "sample") and any(name == channel.pattern for channel in CHANNELS)


Part = Literal["What it sees", "Why it matters", "What to do", "When it is wrong", "References"]
PARTS: tuple[Part, ...] = ("What it sees", "Why it matters", "What to do", "When it is wrong", "References")


def page(rule: type) -> dict[str, str]:
    """A rule's docstring by parts, with its first line under ``""``; a part that it lacks is absent."""
    import inspect

    lines: dict[str, list[str]] = {"": []}
    part = ""
    for line in (inspect.getdoc(rule) or "").splitlines():
        if line.strip().rstrip(":") in PARTS:
            part = line.strip().rstrip(":")
            lines[part] = []
        else:
            lines[part].append(line)
    return {name: "\n".join(text).strip() for name, text in lines.items()}
