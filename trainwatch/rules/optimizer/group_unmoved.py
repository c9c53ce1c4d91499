"""See the rule's docstring: it is the page that `trainwatch rules group-unmoved` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Floats, Probes, Streak
from trainwatch.table import Chunk


@dataclass
class GroupUnmoved(Rule):
    """A parameter group does not move, or a hundred times faster or slower than its siblings.

    What it sees:
        The `update_ratio/<group>` over its own learning rate, sample by sample: exactly 0 three times in a row, with a
        rate above 0 and while another group moves, is an alarm (an info where a loss component is switched off, which
        the group may serve). So is a rate below a thousandth of another group's with which all planned steps, laid end
        to end, move the group by less than a thousandth of its norm, where the other moves a hundredth and more. A
        group that begins at 0 has no norm to go by: its rate is below a hundred thousandth of the other's, and all
        steps together come to less than a ten thousandth of the other's norm. A hundredfold above or below the median
        of all groups, in ten samples in a row, is an info. If no group moves, that is `frozen-weights`.

    Why it matters:
        Half of the model is not trained, or is trained with the other half's optimiser: Muon's rates are a hundred
        times AdamW's.

    What to do:
        Check which parameters the group holds, and that they take part in the loss. Match each group with its optimiser
        and rate.

    When it is wrong:
        Groups of biases that begin at 0 have large ratios for long: those are infos. A group of weights that the data
        does not use yet (a task's own head) rightly stands.

    References:
        torchmortem: imbalance of layers by 100 x.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("update_ratio/<group>", "lr/<group>")
    wants: ClassVar[tuple[str, ...]] = ("weight_norm/<group>", "weight/<component>", "amp/skipped")
    causes: ClassVar[tuple[str, ...]] = ("loss-plateau", "slow-convergence", "loss-stuck")

    samples: int = 3  # in a row at exactly 0: 150 steps at the recorder's pace
    apart: float = 100.0  # x the median of the groups, each over its rate
    lasting: int = 10  # samples in a row that far apart: what begins at 0 has come closer by then
    slow: float = 1e-3  # x another group's rate; rates that decay by layer come to 1e-5, and have long runs to move in
    path: float = 1e-3  # of its norm, in all steps: what rounding to bfloat16 changes
    moves: float = 1e-2  # of its norm, the same for the other group: it is trained
    slowest: float = 1e-5  # x another group's rate, for a group that begins at 0, as an adapter's second matrix does
    reach: float = 1e-4  # of the other group's norm, in all steps: biases that are trained come to a hundredth
    steps: int = 1000  # where nothing says how many are planned: a warm-up is at its end by then

    _still: dict[str, Streak] = field(default_factory=dict, init=False)
    _apart: dict[str, Streak] = field(default_factory=dict, init=False)
    _off: bool = field(default=False, init=False)  # a component was switched off in a row that was sampled
    _total: int = field(default=0, init=False)
    _most: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # a group's largest pace and rate
    _begin: dict[str, float] = field(default_factory=dict, init=False)  # a group's norm when it was first sampled
    _norm: dict[str, float] = field(default_factory=dict, init=False)  # and the largest
    _first: float = field(default=np.nan, init=False)  # step of all
    _probes: dict[str, Probes] = field(default_factory=dict, init=False)
    _samples: int = field(default=0, init=False)

    def start(self, header: Header) -> Iterator[Finding]:
        """How long the run is to be."""
        self._total = header.total_steps or 0
        yield from ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Only the rows that were sampled."""
        names = [name.removeprefix("update_ratio/") for name in chunk.channels if name.startswith("update_ratio/")]
        names = names[:MOST]
        step, trained = chunk.step.astype(np.float64), chunk.trained()
        self._first = float(np.fmin(self._first, step[0]))
        if not names:
            return
        ratios = np.stack([chunk[f"update_ratio/{name}"] for name in names])
        known = np.isfinite(ratios) & trained
        since = [
            self._probes.setdefault(name, Probes()).since(of_it, step) for name, of_it in zip(names, known, strict=True)
        ]
        sampled = np.flatnonzero(known.any(axis=0))
        if not len(sampled):
            return
        ratio = ratios[:, sampled]
        rate = np.stack([chunk[f"lr/{name}"][sampled] for name in names])
        pace = np.where((rate > 0) & np.isfinite(ratio), ratio / rate, np.nan)
        self._off |= _switched_off(chunk, sampled)
        moving = np.where(pace > 0, pace, np.nan)
        middle = np.nanmedian(np.where(np.isfinite(moving).any(axis=0), moving, 0.0), axis=0)
        columns = {"step": step[sampled], "middle": middle}
        for index, name in enumerate(names):
            self._push(name, columns | {"pace": pace[index], "rate": rate[index], "since": since[index][sampled]})
        yield from (self._unmoved(name, streak) for name, streak in self._still.items() if streak.onset is not None)
        for index, name in enumerate(names):
            before = self._most.get(name, (0.0, 0.0))
            largest = (float(np.fmax.reduce(values, initial=0.0)) for values in (pace[index], chunk[f"lr/{name}"]))
            self._most[name] = (max(before[0], next(largest)), max(before[1], next(largest)))
            self._weigh(name, chunk[f"weight_norm/{name}"])
        self._samples += len(sampled)
        yield from (self._far(name, streak) for name, streak in self._apart.items() if streak.onset is not None)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What all steps so far, and all that are planned, come to."""
        trial = copied(self)
        if len(rest):
            yield from trial.update(rest)
        if trial._most:
            yield from trial._creeps(float(run.last_step or 0))

    def _weigh(self, name: str, norms: Floats) -> None:
        known = norms[np.isfinite(norms)]
        if len(known):
            self._begin.setdefault(name, float(known[0]))
            self._norm[name] = max(self._norm.get(name, 0.0), float(known.max()))

    def _creeps(self, now: float) -> Iterator[Finding]:
        """Groups whose rate is nothing beside another's, and moves them nowhere."""
        seen = now - self._first + 1
        late = 2 * seen >= self._total > 0  # a short run has few samples
        if (self._samples < self.samples and not late) or (not self._total and seen < self.steps):
            return
        other = max(self._most, key=lambda name: self._most[name][1])
        whole, (pace, highest) = max(float(self._total), seen), self._most[other]
        for name, (fastest, rate) in self._most.items():
            slow, short, path, whose = self.slow, self.path, fastest * rate * whole, "their"
            if self._begin.get(name) == 0:
                slow, short, whose = self.slowest, self.reach, f"{other}'s"
                path *= self._norm[name] / (self._norm.get(other) or np.nan)
            creeps = 0 < rate < slow * highest and 0 < path < short
            if creeps and pace * highest * whole > self.moves:
                yield self.finding(
                    "warning",
                    f"group:{name}",
                    (int(self._first), int(now)),
                    f"Group {name} has a learning rate of {rate:.2g} beside the {highest:.2g} of {other}: all "
                    f"{whole:,.0f} steps together move its weights by {path:.1g} of {whose} norm at most.",
                    evidence={"learning_rate": rate, "other_rate": highest, "path": path},
                    advice=f"Give {name} the rate that is meant for it, or freeze it and save its gradient.",
                    confidence=0.85,
                )

    def _push(self, name: str, columns: dict[str, Floats]) -> None:
        """One group's samples, where another group moved."""
        judged = np.isfinite(columns["pace"]) & (columns["middle"] > 0)
        rows = {key: values[judged] for key, values in columns.items()}
        times = rows["pace"] / rows["middle"]
        self._still.setdefault(name, Streak(self.samples)).push(times == 0, rows)
        far = (times > self.apart) | ((times < 1 / self.apart) & (times > 0))
        self._apart.setdefault(name, Streak(self.lasting)).push(far, rows)

    def _unmoved(self, name: str, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        return self.finding(
            "info" if self._off else "warning",
            f"group:{name}",
            (int(onset["since"]), int(now["step"])),
            f"The weights of group {name} have not moved in {streak.bad:,} samples from step {onset['since']:,.0f} on, "
            f"at a rate of {now['rate']:.2g}, while other groups move.",
            over=streak.over,
            evidence={"samples": streak.bad, "learning_rate": now["rate"]},
            advice=f"Check that the parameters of {name} take part in the loss, and that its optimizer holds them.",
            confidence=0.8,
        )

    def _far(self, name: str, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        times = now["pace"] / now["middle"]
        return self.finding(
            "info",
            f"group:{name}",
            (int(onset["since"]), int(now["step"])),
            f"Group {name} moves {times:,.3g} times as far for its rate as the groups do in the median.",
            over=streak.over,
            evidence={"times": times},
            advice=f"Check that {name} has the rate and the optimizer that are meant for it.",
            confidence=0.6,
        )


def _switched_off(chunk: Chunk, rows: NDArray[np.intp]) -> bool:
    """Whether some component has weight 0 in one of these rows."""
    return any((chunk[name][rows] == 0).any() for name in chunk.channels if name.startswith("weight/"))
