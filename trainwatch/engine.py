"""Feeds a run to the rules: finds them, cuts nothing, withholds what has no data, isolates what breaks."""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trainwatch import rules as rules_package
from trainwatch.header import Header
from trainwatch.rule import Rule, missing
from trainwatch.run import Cursor, Event, Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, Table
from trainwatch.views.ranks import Abreast, Alignment

Item = TypeVar("Item")


class SettingsError(Exception):
    """A threshold or switch that no rule has; the text is one sentence that names the nearest."""


LISTED = "; `trainwatch rules` lists them."


@lru_cache(maxsize=1)
def catalogue() -> dict[str, type[Rule]]:
    """Every rule below ``rules/``, by name."""
    found: dict[str, type[Rule]] = {}
    for module in pkgutil.walk_packages(rules_package.__path__, f"{rules_package.__name__}."):
        if not module.ispkg:
            rule = _rule_in(module.name)
            found[rule().name] = rule
    return dict(sorted(found.items()))


def _rule_in(module_name: str) -> type[Rule]:
    """The one rule in a module; its class is the file's name in capitals."""
    module = importlib.import_module(module_name)
    stem = module_name.rpartition(".")[2]
    class_name = stem.title().replace("_", "")
    rule = getattr(module, class_name, None)
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"{module.__file__}: a rule file must define its rule as `class {class_name}(Rule)`")
    return rule


@dataclass
class Settings:
    """Which rules run, and with which thresholds: ``off`` names rules, ``thresholds`` maps rule -> field -> value.

    ``checks_off`` names checks of lint.
    """

    off: frozenset[str] = frozenset()
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checks_off: frozenset[str] = frozenset()

    def rules(self) -> list[Rule]:
        """Fresh rules. Raises SettingsError for a rule or a field that does not exist."""
        known = catalogue()
        for name in (*self.off, *self.thresholds):
            if name not in known:
                raise SettingsError(f"there is no rule {name!r}{nearest(name, known) or LISTED}")
        return [
            _configured(rule, self.thresholds.get(name, {})) for name, rule in known.items() if name not in self.off
        ]


def _configured(rule: type[Rule], values: Mapping[str, Any]) -> Rule:
    thresholds = {item.name: item for item in fields(rule) if item.init}
    for name in values:
        if name not in thresholds:
            raise SettingsError(f"rule {rule().name!r} has no threshold {name!r}{nearest(name, thresholds) or LISTED}")
    default = rule()
    return rule(**{name: _threshold(default, name, value) for name, value in values.items()})


def _threshold(rule: Rule, name: str, value: Any) -> float | int:
    """``value`` as the number that a threshold can be: finite, whole where the default is, positive where it is."""
    default = getattr(rule, name)
    try:
        as_float = float(value)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{rule.name}.{name} must be a number, not {value!r}") from None
    whole = isinstance(default, int)
    if not math.isfinite(as_float) or (whole and as_float % 1) or (default > 0 and as_float <= 0):
        kind = "a whole number" if whole else "a number"
        raise SettingsError(f"{rule.name}.{name} must be {kind} above 0 like its default {default}, not {value!r}")
    return int(as_float) if whole else as_float


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'check'?``, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


RANK_FAMILIES = ("numerics", "lifecycle")
"""What is judged on every rank: a NaN or a crash on rank 3 ends the run, while its losses may rightly differ."""


SPLIT_FAMILY = "generalisation"
"""What is judged split by split, and is one sickness of one model: each split that shows it is a witness."""


LONGEST = 65_536
"""Rows of a chunk: what a rule makes of them stays small beside the run's own columns."""


class Pace(NamedTuple):
    """How a rule takes training rows: in blocks of so many, and whether others may go before them in the file."""

    block: int
    patient: bool


def _pace(rule: Rule) -> Pace:
    return Pace(rule.block, rule.reads == ("train",) and type(rule).event is Rule.event)


def _groups(rules: Iterable[Rule]) -> dict[Pace, list[Rule]]:
    groups: dict[Pace, list[Rule]] = {}
    for rule in rules:
        groups.setdefault(_pace(rule), []).append(rule)
    return groups


class Engine:
    """Judges one run, as far as it was read; :meth:`feed` again when it has grown."""

    def __init__(self, settings: Settings | None = None, families: Sequence[str] = ()) -> None:
        self.settings = settings or Settings()
        self.rules = [rule for rule in self.settings.rules() if not families or rule.family in families]
        self.failed: dict[str, str] = {}
        self._findings: dict[tuple[str, str, int], Finding] = {}
        self._declared: dict[tuple[str, str], Finding] = {}
        self._cursor = Cursor()
        self._withheld: tuple[tuple[int, ...], dict[str, list[str]]] = (), {}
        self._groups = _groups(self.rules)
        self._judged = dict.fromkeys(self._groups, 0)  # the first training row that was not judged yet
        self._rows = 0
        self._headers = 0
        self._ranks: dict[int, Engine] = {}
        self._alignment = Alignment()

    @np.errstate(all="ignore")  # a value near the largest float may overflow: that is a value too
    def feed(self, run: Run) -> None:
        """Show the rules what was appended to the run since the last call, in file order; so for every rank."""
        for item in run.since(self._cursor):
            if isinstance(item, Header):
                self._train(run.train, patient=True)
                self._compare(run)  # what the process before it wrote
                self._begin(item)
            elif isinstance(item, Chunk) and item.table == "train":
                self._rows = item.stop
                self._train(run.train, patient=False)
            elif isinstance(item, Chunk):
                self._each(_ask_update, item, [rule for rule in self.rules if item.table in rule.reads])
            else:
                self._each(_ask_event, item, [rule for rule in self.rules if type(rule).event is not Rule.event])
        self._train(run.train, patient=True)
        self._compare(run)
        for rank, other in run.ranks.items():
            self._ranks.setdefault(rank, Engine(self.settings, RANK_FAMILIES)).feed(other)

    def _compare(self, run: Run) -> None:
        """Show the rules what all ranks have written of the same steps."""
        if run.ranks and self._headers:
            for rows in self._alignment.advance(run, self._headers - 1):
                for rule in self._sound():
                    if type(rule).abreast is not Rule.abreast:
                        self._keep(self._guarded(rule, _ask_abreast, rows))

    @np.errstate(all="ignore")
    def findings(self, run: Run) -> list[Finding]:
        """Everything found so far, and what the rules say of the run as it stands now; oldest and gravest first."""
        latest = dict(self._findings)
        withheld = self.withheld(run)
        rest = {pace: Chunk("train", run.train, start, self._rows) for pace, start in self._judged.items()}
        for rule in self._sound():
            if (rule.block or type(rule).finish is not Rule.finish) and rule.name not in withheld:
                now = (run, rest[_pace(rule)])
                latest |= {finding.key: finding for finding in self._guarded(rule, _ask_finish, now)}
        kept = [finding for finding in latest.values() if finding.rule not in {*withheld, *self.failed}]
        kept = self._of_splits(kept) + self._of_ranks(run, kept)
        return sorted(kept, key=lambda finding: (finding.first_step, -finding.rank, finding.rule, finding.subject))

    def _of_splits(self, kept: Sequence[Finding]) -> list[Finding]:
        """The same with one finding for what a rule says of several splits: of the one it was said of first."""
        family = {rule.name for rule in self.rules if rule.family == SPLIT_FAMILY}
        alike: dict[tuple[str, ...], list[Finding]] = {}
        for finding in kept:
            one = finding.rule in family and finding.subject.startswith("split:")
            group = (finding.rule, finding.severity, finding.state) if one else tuple(map(str, finding.key))
            alike.setdefault(group, []).append(finding)
        return [_witnessed(findings) for findings in alike.values()]

    def _of_ranks(self, run: Run, kept: Sequence[Finding]) -> list[Finding]:
        """What the ranks above 0 say, where rank 0 does not say the same; of a fault that spreads, where it began."""
        said: dict[str, int] = {}
        for finding in kept:
            said[finding.rule] = min(finding.first_step, said.get(finding.rule, finding.first_step))
        found, spread = [], {rule.name for rule in self.rules if rule.family == "numerics"}
        for rank in sorted(self._ranks.keys() & run.ranks.keys()):
            for finding in self._ranks[rank].findings(run.ranks[rank]):
                earlier = finding.rule in spread and finding.first_step < said.get(finding.rule, -1)
                if finding.rule not in said or earlier:
                    message = f"On rank {rank}: {finding.message}"
                    found.append(replace(finding, subject=f"rank:{rank}", message=message))
        return found

    def withheld(self, run: Run) -> dict[str, list[str]]:
        """Rules that cannot judge this run, and the channels that would wake them."""
        fields = sum(len(header.raw) for header in run.headers)
        known = (fields, *(len(table.channels) for table in (run.train, run.eval, run.sample)))
        if known != self._withheld[0]:
            self._withheld = known, {r.name: lacking for r in self.rules if (lacking := missing(r.needs, run))}
        return dict(self._withheld[1])

    def _begin(self, header: Header) -> None:
        """A process takes the run up. A resume gives every rule a fresh baseline and closes what it superseded."""
        if self._headers:
            lifecycle = {rule.name for rule in self.rules if rule.family == "lifecycle"}
            self.rules = [replace(rule) for rule in self.rules]
            self._groups, self._judged = _groups(self.rules), dict.fromkeys(self._judged, self._rows)
            self._supersede(header.resumed_from, lifecycle)
        self._headers += 1
        self._declare(header)

    def _declare(self, header: Header) -> None:
        """What is wrong with a header holds from the first header that has it until one that has not."""
        said = {}
        for rule in self._sound():
            for finding in self._guarded(rule, _ask_start, header):
                before = self._declared.get((finding.rule, finding.subject))
                kept = replace(finding, first_step=before.first_step) if before else finding
                said[finding.rule, finding.subject] = self._findings[kept.key] = kept
        for name, finding in self._declared.items():
            if name not in said:
                until = header.resumed_from or 0
                message = f"{finding.message} (mended when the run was resumed from step {until:,})"
                self._findings[finding.key] = replace(finding, last_step=until, state="over", message=message)
        self._declared = said

    def _supersede(self, resumed_from: int | None, lifecycle: set[str]) -> None:
        """Close what no longer holds: findings of abandoned rows, and how the earlier process ended."""
        last = -1 if resumed_from is None else resumed_from
        how = "the run was started anew" if resumed_from is None else f"the run was resumed from step {last:,}"
        for key, finding in self._findings.items():
            if (finding.rule, finding.subject) in self._declared:
                continue
            if finding.first_step > last or finding.rule in lifecycle:
                message = f"{finding.message} (superseded: {how})"
                self._findings[key] = replace(finding, severity="info", state="over", message=message)
            elif finding.state == "active":
                self._findings[key] = replace(finding, last_step=min(finding.last_step, last))

    def _train(self, table: Table, *, patient: bool) -> None:
        """Give each rule as many rows as fill its blocks; what is left waits in the run's own table.

        A rule that looks at training rows alone is patient: evaluations and events between them do not cut its chunks.
        """
        for pace in [pace for pace in self._groups if pace.patient == patient]:
            start = self._judged[pace]
            stop = self._rows - (self._rows - start) % pace.block if pace.block else self._rows
            longest = LONGEST - LONGEST % pace.block if pace.block else LONGEST
            self._judged[pace] = stop
            for begin in range(start, stop, longest):
                chunk = Chunk("train", table, begin, min(begin + longest, stop))
                self._each(_ask_update, chunk, self._groups[pace])

    def _each(self, ask: Callable[[Rule, Item], Iterable[Finding]], item: Item, rules: Iterable[Rule]) -> None:
        for rule in rules:
            if rule.name not in self.failed:
                self._keep(self._guarded(rule, ask, item))

    def _keep(self, findings: Iterable[Finding]) -> None:
        self._findings |= {finding.key: finding for finding in findings}

    def _sound(self) -> list[Rule]:
        return [rule for rule in self.rules if rule.name not in self.failed]

    def _guarded(self, rule: Rule, ask: Callable[[Rule, Item], Iterable[Finding]], item: Item) -> list[Finding]:
        """What a rule says; one that raises is left out from then on, and named."""
        try:
            return list(ask(rule, item))
        except Exception as error:
            self.failed[rule.name] = f"{type(error).__name__}: {error}"
            return []


def _witnessed(findings: Sequence[Finding]) -> Finding:
    """The earliest of findings on several splits, with the others named."""
    first = min(findings, key=lambda finding: finding.first_step)
    first = replace(first, last_step=max(finding.last_step for finding in findings))
    others = sorted(
        {finding.subject.removeprefix("split:") for finding in findings if finding.subject != first.subject}
    )
    if not others:
        return first
    return replace(
        first,
        message=f"{first.message} So it is in {', '.join(others)}.",
        evidence=first.evidence | {"also": ", ".join(others)},
    )


def _ask_start(rule: Rule, header: Header) -> Iterable[Finding]:
    return rule.start(header)


def _ask_update(rule: Rule, rows: Chunk) -> Iterable[Finding]:
    return rule.update(rows) if rows.table in rule.reads else ()


def _ask_abreast(rule: Rule, rows: Abreast) -> Iterable[Finding]:
    return rule.abreast(rows)


def _ask_event(rule: Rule, event: Event) -> Iterable[Finding]:
    return rule.event(event)


def _ask_finish(rule: Rule, now: tuple[Run, Chunk]) -> Iterable[Finding]:
    return rule.finish(*now)
