"""See the rule's docstring: it is the page that `trainwatch rules class-imbalance` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import Evaluations
from trainwatch.views.neglect import dearer, done, figures, never_found, never_right, only_the_largest, told_apart

PREFIX = "data/class/"
MOST = 1000  # classes that are counted: more of them are a vocabulary
EVENED = re.compile(
    r"class_?weight|pos_?weight|focal|balanc|weighted_?(?:random_?)?sampl|(?:re|over|under)_?sampl", re.IGNORECASE
)


WEIGHT = re.compile(r"(class|pos)_?weights?", re.IGNORECASE)  # of 1 it answers nothing


@dataclass
class ClassImbalance(Rule):
    """One class has many times the samples of another, and is not learnt for it.

    What it sees:
        The header's `classes` {name: count}, and, where `data/class/<name>` tells how many samples of a class were in a
        step's batch, what training really saw. Any ratio above ten is an info. Counts are no more than that, however
        far apart they are; an alarm needs a proof that the smallest class is neglected. The figures of its own (its
        recall or the like, named after it) stand at 0 in the last five evaluations; or, of two classes, the recall does
        when the run is over; or accuracy has come to the share of the largest class and stays, and no other figure of
        merit gets better; or the batches hold not a tenth of what its declared count promises; or one class alone is
        short of samples (a fiftieth of the largest, a sixth of the next smallest one; under 20, or under 100 beside two
        others and more), and the lowest of all recalls stands at 0, or a loss is half as high again in the last three
        evaluations as in training, no figure of merit but accuracy gets better and none of that class is above 0. That
        loss makes a warning, and so do that recall and any evaluation before the run is over.

    Why it matters:
        A model that always answers with the largest class is nearly right by the loss and by accuracy, and the rare
        class, often the one that matters, is never learnt. Neither curve shows it.

    What to do:
        Draw the classes evenly (a weighted sampler), weight the loss by the inverse frequency, or take a focal loss;
        and judge by a metric of each class (balanced accuracy, macro F1). Where the data set's counts mislead, record
        what each batch holds: `watch.log({"data/class/cat": n, "data/class/dog": m})`.

    When it is wrong:
        Words, relations, species and objects follow long tails by nature, which cost nobody anything: validation has
        the same. A training set of which one class is short by nature, and that is learned by heart besides, looks as
        if that class had got lost. Where rare events are ranked and none is ever likely, as clicks are not, a recall
        at one half is 0 and nobody needs it. More than a hundred classes are an info at most, and so is any imbalance
        that the config already answers (a class weight, a sampler, a focal loss).

    References:
        Amazon SageMaker Debugger, ClassImbalance (ratio above 10); Buda et al., "A systematic study of the class
        imbalance problem" (2018); Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (2019).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("run:classes|data/class/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>|eval:metric/<name>",)
    causes: ClassVar[tuple[str, ...]] = ("mode-collapse", "loss-plateau", "suspicious-validation")

    ratio: float = 10.0  # largest over smallest: SageMaker's threshold; natural tails reach 20 to 150, and are learnt
    few: int = 20  # samples: Liu et al. call fewer few-shot; no plain training learns a class from them
    many: int = 100  # samples: Liu et al. call more many-shot; such a class is learnt however many the others have
    grave_ratio: float = 50.0  # 79.7 % beside 0.8 % was such a run: the rare class is a rounding error of the loss
    apart: float = 6.0  # x fewer than the next smallest: a tail that is long by nature comes to 2 or 3
    missed: float = 10.0  # x fewer than the declared counts make one expect, and
    due: int = 30  # samples that they do: a tenth of that is no chance
    majority: float = 0.5  # of all samples: a model that knows one answer is right more often than wrong
    long_tail: int = 100  # classes; more are a vocabulary, whose tail is long by nature
    enough: int = 1000  # samples seen before the batches are believed: the rare class is then due ten times; or
    each: int = 30  # a class, on average: a tenth of that is no chance, and over
    rows: int = 60  # rows: thirty steps of a sampler may miss a class

    _declared: dict[str, float] = field(default_factory=dict, init=False)
    _evened: str = field(default="", init=False)
    _seen: dict[str, float] = field(default_factory=dict, init=False)
    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def start(self, header: Header) -> Findings:
        """What the header declares."""
        counts = {name: number(count) for name, count in mapping(header.raw.get("classes")).items()}
        self._declared = {name: count for name, count in counts.items() if count is not None and count > 0}
        self._evened = _evened(header.config)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Count what the batches hold; evaluations are few."""
        self._evaluations.push(chunk)
        if chunk.table == "train":
            self._seen = self._counted(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What training really saw stands in for what was declared."""
        seen = self._counted(rest)
        whole = {**dict.fromkeys(self._declared, 0.0), **seen}
        samples = sum(seen.values())
        if samples >= self.enough or (run.train.size >= self.rows and samples >= self.each * len(whole) > 0):
            proof = self._proof(whole, run)
            proof = proof if proof[0] else (self._left_out(whole, run), True)
            said = list(self._judge(whole, "were drawn", run, proof))
            yield from said or self._drawn_evenly(seen, run)
        else:
            yield from self._judge(self._declared, "are declared", run, self._proof(self._declared, run))

    def _counted(self, chunk: Chunk) -> dict[str, float]:
        names = [name.removeprefix(PREFIX) for name in chunk.channels if name.startswith(PREFIX)][:MOST]
        return {name: _added(self._seen.get(name, 0.0), chunk[PREFIX + name]) for name in names}

    def _judge(
        self, counts: Mapping[str, float], how: str, run: Run, because: tuple[str, bool] = ("", False)
    ) -> Iterator[Finding]:
        total, (proof, sure) = sum(counts.values()), because
        if len(counts) < 2 or not 0 < total < np.inf:
            return
        most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
        ratio, share = counts[most] / max(counts[least], 1.0), counts[most] / total
        if not self.ratio < ratio < np.inf:
            return
        answered = len(counts) > self.long_tail or bool(self._evened)
        grave = sure and ratio > self.grave_ratio and share > self.majority
        yield self.finding(
            "info" if answered or not proof else "critical" if grave else "warning",
            "run",
            (0, run.last_step or 0),
            f"{most} has {share:.1%} of the samples that {how}, {least} has {100 * counts[least] / total:.2g}%: "
            f"{ratio:,.0f} times as many{f'; {self._evened} answers it' if self._evened else proof}.",
            evidence={"ratio": ratio, "largest": counts[most], "smallest": counts[least], "classes": len(counts)},
            advice=f"Draw the classes evenly or weight the loss of {least}; judge by a metric of each class.",
            confidence=0.9,
        )

    def _proof(self, counts: Mapping[str, float], run: Run) -> tuple[str, bool]:
        """What shows that the smallest class is neglected, if anything does; counts alone do not. And whether it is
        sure: what is learned by heart costs more too, and what stands at 0 may rise while the run goes on.
        """
        if len(counts) < 2 or not 0 < sum(counts.values()) < np.inf:
            return "", False
        least, share = min(counts, key=lambda name: counts[name]), max(counts.values()) / sum(counts.values())
        courses, lost = list(self._evaluations.courses()), self._lost(counts, least)
        if done(run, 0.5) and (figure := never_right(courses, least, lowest=lost)):
            return f", and {figure} has been 0 in the last evaluations", done(run)
        if done(run, 0.5) and share > self.majority and only_the_largest(courses, share):
            return ", and accuracy stands at what the largest alone gives", done(run)
        if len(counts) == 2 and done(run) and not told_apart(courses) and (figure := never_found(courses)):
            return f", and {figure} has been 0 in the last evaluations", False  # ranked right, perhaps
        known = any(course.value.any() for course in figures(courses, least))
        return "" if known or not lost or told_apart(courses) else dearer(courses), False

    def _lost(self, counts: Mapping[str, float], least: str) -> bool:
        """Whether one class alone has too few samples to be learnt, as if it had got lost: no end of a tail."""
        samples = min(counts[least], self._declared.get(least, np.inf))  # epochs draw the same ones again
        smallest, following = sorted(counts.values())[:2]
        beside = max(smallest, 1.0)
        alone = following > self.apart * beside and max(counts.values()) > self.grave_ratio * beside
        return alone and samples < (self.many if len(counts) > 2 else self.few)

    def _left_out(self, seen: Mapping[str, float], run: Run) -> str:
        """Whether the batches hold far less of the class that is rarest in them than its declared count promises, and
        no later stage can bring it.
        """
        least, declared = min(seen, key=lambda name: seen[name]), sum(self._declared.values())
        due = self._declared.get(least, 0.0) / declared * sum(seen.values()) if declared else 0.0
        missed = due >= max(self.due, self.missed * seen[least]) and not run.header.curriculum
        return f", where {due:,.0f} were due" if missed else ""

    def _drawn_evenly(self, seen: Mapping[str, float], run: Run) -> Iterator[Finding]:
        """Take back what was said of the declared counts."""
        for finding in self._judge(self._declared, "are declared", run):
            ratio = max(seen.values()) / max(min(seen.values()), 1.0)
            yield self.finding(
                "info",
                "run",
                (0, run.last_step or 0),
                f"{finding.message.rstrip('.')}; the batches even it out to {ratio:,.1f} times.",
                over=True,
                evidence={**finding.evidence, "drawn_ratio": ratio},
                advice="Nothing: the sampler does its work.",
            )


def _added(before: float, counts: NDArray[np.float64]) -> float:
    """A sum that goes on, one row after the other: rounded alike, however the rows are cut."""
    sound = np.where(np.isfinite(counts) & (counts > 0), counts, 0.0)
    return float(np.add.accumulate(np.concatenate([[before], sound]))[-1])


def _evened(config: Mapping[str, Any]) -> str:
    """Dotted path of a setting that answers an imbalance, if one is switched on."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    for prefix, branch in waiting:
        for key, item in branch.items():
            alike = WEIGHT.fullmatch(str(key)) and item == 1 and item is not True
            if EVENED.search(str(key)) and item not in (None, False, 0, "", "none", [], {}) and not alike:
                return f"{prefix}{key}"
            if isinstance(item, str) and EVENED.search(item):
                return f"{prefix}{key}={item}"
            if isinstance(item, Mapping) and len(waiting) < MOST:
                waiting.append((f"{prefix}{key}.", item))
    return ""
