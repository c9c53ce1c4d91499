"""See the rule's docstring: it is the page that `trainwatch rules component-dead` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, median
from trainwatch.table import Chunk
from trainwatch.views.components import BLOCK, Roles, components, gradients, small_by_design, together
from trainwatch.views.evaluations import held_out
from trainwatch.views.games import opponent, plays
from trainwatch.views.unreached import head_of, unreached

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class ComponentDead(Rule):
    """A loss component has a weight, and no gradient.

    What it sees:
        The norm of the component's gradient is exactly 0 in five probes in a row, over 20 rows at least, in which its
        weight and its value are not, while other components have one. Or the recorder found that a declared task does
        not depend on the tensor at which the others' gradients are taken (`outside_at`), and its value has not come
        down in a hundred rows, or has risen by half by half of the run, in validation, too; so for an auxiliary, if a
        whole module has never had a gradient. Or the module of its own name never had one by half of the run, and its
        value has not come down while another's has. Or it has no gradient over the parameters, and the others' add up
        to the whole gradient's norm in every sample; what is no task has to have risen besides, so that it does depend
        on what is trained. Or it stands at its highest value in most rows, and had five others at least (or any of
        three digits), while validation has more than twice as much of it in every evaluation, and half as much again at
        one time as at another: a bound cuts it off. Where no gradients are recorded: its value is one and the same from
        the first row on, while the total changes; or a declared task was never better than at first, in training and in
        validation, and ends worse by half in both, which is more than the others together have gained, of which one is
        learned: a step along its gradient would have lowered it.

    Why it matters:
        It stands in the sum and in the plots, and teaches nothing: it is clamped (a bounded error that no answer comes
        near), detached, computed from an argmax, or it reads a constant.

    What to do:
        Replace a clamp by a bound that keeps its slope (log1p, Huber, tanh); look for `detach()`, `no_grad`, `argmax`,
        `item()` and integer casts between the model's output and this loss.

    When it is wrong:
        A loss that is logged beside the others, and meant to teach nothing, has the weight 0: record it. Without
        recorded weights a gradient of 0 is an info; so it is when the component has woken (see late-activation), and
        where its value comes down while a module's gradient is exactly 0, or that of the first module is: then
        dead-module says what cuts it off. So it is for what is no task if its value stands at a limit (free bits) or a
        part of the model is frozen, unless it has had that one value from the first row through half of the planned run
        and its name is not that of a kind which may (KL, entropy). Where no gradients are recorded, a constant is a
        warning only if its role was declared as `task`. A value of 0 is no sickness here (a margin that is kept).
        Gradients are taken at one tensor: what does not depend on it has no norm, and if it is learned elsewhere its
        value falls.

    References:
        A mass loss clamped at 100 ppm: the first answers are tens of thousands of ppm away.
    """

    block: ClassVar[int] = BLOCK
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = (
        *("component_grad/<component>|grad_share/<component>", "param_grad/<component>"),
        "weight/<component>",
        "run:components",
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("component-ignored", "loss-plateau", "dead-module", "group-unmoved", "gradient-dominance"),
        *("loss-divergence", "overtraining", "loss-stuck"),
    )

    probes: int = 5  # in a row, and over
    rows: int = 20  # at least; a mask or a margin may leave a component without a gradient in a batch
    moving: float = 0.01  # relative, of a value without a gradient: at a limit it would stand still
    constant_rows: int = 40  # from the first row on: a rate that warms up moves nothing for a while
    unlearned_rows: int = 100  # for a task without a norm: by then what is trained elsewhere has come down
    fell: float = 0.05  # of its first level: less is no learning
    others_fell: float = 0.2  # of the first level of one that has a norm: the run does learn
    worsened: float = 0.5  # of its first value, in training and validation: what two healthy tasks trade is a fifth
    evaluations: int = 5  # none of which was better than the first
    same: float = 0.02  # relative: the parts are of three digits, and cancel
    beyond: float = 2.0  # x a bound, at least, in every evaluation: a gap of generalisation comes to less at first
    values: int = 6  # different ones: fewer are a log of two digits; unless those below the bound have more than
    fine: float = 0.01  # of it
    varies: float = 1.5  # x, from the least to the most of validation: by a scale of its own alone it would stand still
    moves: float = 0.75  # of the rows change the total: a log of two or three digits repeats itself

    _roles: Roles = field(default_factory=Roles, init=False)
    _frozen: bool = field(default=False, init=False)  # a part of the model
    _planned: int = field(default=0, init=False)  # steps
    _seen: int = field(default=0, init=False)  # rows
    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _range: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # of a value without a gradient
    _first: dict[str, tuple[float, int, int]] = field(default_factory=dict, init=False)  # value, step, rows
    _varied: set[str] = field(default_factory=set, init=False)
    _total: tuple[float, int, int] = field(default=(np.nan, 0, 0), init=False)  # the last one, changes, rows

    def start(self, header: Header) -> Findings:
        """Which components are no tasks."""
        self._roles, self._planned = Roles.of(header), header.total_steps or 0
        self._frozen = any(module.trainable == 0 < module.parameters for module in header.modules)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One comparison of each gradient column with 0."""
        norms = gradients(chunk)
        for name in components(chunk):
            self._constant(name, chunk)
            streak = self._follow(name, chunk, norms) if name in norms else None
            if streak is not None and streak.onset is not None:
                yield self._dead(name, streak)
        self._count(chunk["loss"])
        self._seen += len(chunk)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Rows that fill no block yet count on a copy."""
        trial = copied(self)
        yield from trial.update(rest)
        yield from trial._constants(rest)
        whole = Chunk("train", run.train, 0, run.train.size)
        for look in (trial._cut_off, trial._headless, trial._left_out, trial._untaught, trial._capped):
            yield from look(run, whole)

    def _follow(self, name: str, chunk: Chunk, norms: dict[str, Floats]) -> Streak | None:
        """The streak of rows without a gradient, if these rows changed its story."""
        norm = norms[name]
        dead, streak = norm == 0.0, self._streaks.get(name)
        if streak is None and not dead.any():
            return None
        weight, value = chunk[f"weight/{name}"], chunk[f"loss/{name}"]
        others = np.nansum(list(norms.values()), axis=0)
        judged = np.isfinite(norm) & (others > 0) & np.isfinite(value) & (weight != 0)
        streak = self._streaks.setdefault(name, Streak(self.probes, self.rows))
        row = np.arange(self._seen, self._seen + len(chunk), dtype=np.float64)
        columns = {"step": row, "at": chunk.step.astype(np.float64), "value": value, "weight": weight}
        columns["cut"] = _any_zero(chunk).astype(np.float64)
        columns["fed"] = (~_first_zero(chunk)).astype(np.float64)
        dead &= judged & (value != 0)
        low, high = self._range.get(name, (np.inf, -np.inf))
        self._range[name] = (
            float(np.min(value[dead], initial=low)),
            float(np.max(value[dead], initial=high)),
        )
        changed = streak.push(dead[judged], {key: values[judged] for key, values in columns.items()})
        return streak if changed else None

    def _constant(self, name: str, chunk: Chunk) -> None:
        """Whether it has had one value only so far."""
        if name in self._varied:
            return
        value = chunk[f"loss/{name}"]
        known = np.flatnonzero(np.isfinite(value) & (chunk[f"weight/{name}"] != 0))
        if len(known):
            first, step, rows = self._first.get(name, (float(value[known[0]]), int(chunk.step[known[0]]), 0))
            self._first[name] = (first, step, rows + len(known))
            if (value[known] != first).any():
                self._varied.add(name)

    def _count(self, total: Floats) -> None:
        """How often the total changes."""
        last, changes, rows = self._total
        known = total[np.isfinite(total)]
        if len(known):
            changed = int((known[1:] != known[:-1]).sum()) + int(known[0] != last)
            self._total = (float(known[-1]), changes + changed, rows + len(known))

    def _dead(self, name: str, streak: Streak) -> Finding:
        now, onset = streak.latest, streak.onset or streak.latest
        learned = now["value"] < onset["value"] - self.fell * abs(onset["value"])
        beyond = learned and now["cut"] > 0 and onset["cut"] > 0  # taught behind a module that lets nothing through
        beyond |= now["fed"] == 0 and onset["fed"] == 0
        weighted = bool(np.isfinite(now["weight"]))  # else it may have none
        low, high = self._range[name]
        moves = high - low > self.moving * max(abs(low), abs(high)) and not self._frozen
        meant = self._roles.aside(name) and not moves and not self._never(name, now["at"])
        return self.finding(
            "warning" if weighted and not streak.over and not meant and not beyond else "info",
            f"component:{name}",
            (int(onset["at"]), int(now["at"])),
            f"The {name} loss stands at {now['value']:,.4g} with no gradient at all, in {streak.bad:,} rows.",
            over=streak.over,
            evidence={"value": now["value"], "rows": streak.bad} | ({"weight": now["weight"]} if weighted else {}),
            advice=f"Find what cuts {name} off from the model: a clamp, detach(), argmax or a constant; bound it by a "
            "function that keeps a slope, or give it the weight 0.",
            confidence=0.95,
        )

    def _never(self, name: str, now: float) -> bool:
        """Whether it has had one value only for half of the planned run; a KL, an entropy may have by their nature."""
        constant = name in self._first and name not in self._varied
        due = constant and 2 * (now - self._first[name][1] + 1) >= self._planned > 0
        return due and not self._frozen and not small_by_design(name, ())

    def _capped(self, run: Run, whole: Chunk) -> Findings:
        """Those whose highest value in training is one and the same in most rows, and far less than validation has."""
        _, changes, rows = self._total
        validated = [name for name in components(whole) if f"loss/{name}" in run.eval]
        for name in validated if changes >= self.moves * rows else ():
            value = whole[f"loss/{name}"]
            due = np.isfinite(value) & (whole[f"weight/{name}"] != 0)
            most = np.max(value[due], initial=0.0)
            at = np.flatnonzero(due & (value == most))
            coarse = not most or self._coarse(np.unique(value[due & (value < most)]), most)
            if coarse or len(at) < max(self.rows, due.sum() // 2):
                continue
            steps, held = held_out(run, f"loss/{name}")
            held = held[steps >= whole.step[at[0]]]
            if len(held) >= self.evaluations and self.beyond * most < held.min() < held.max() / self.varies:
                yield self.finding(
                    "warning",
                    f"component:{name}",
                    (int(whole.step[at[0]]), int(whole.step[at[-1]])),
                    f"The {name} loss is exactly {most:,.6g} in {len(at):,} rows and never more, where validation has "
                    f"{held.min():,.4g} to {held.max():,.4g}: a bound cuts it off, and it has no gradient there.",
                    evidence={"value": float(most), "rows": len(at), "validation": float(held[-1])},
                    advice=f"Bound {name} by a function that keeps its slope; free bits are a lower bound.",
                    confidence=0.9,
                )

    def _coarse(self, below: Floats, most: float) -> bool:
        """Whether the values below a bound are so few, and of so few digits, that rounding may have made it."""
        places = int(np.floor(-np.log10(self.fine * most)))
        exact = np.isclose(below, np.round(below, places), rtol=1e-9, atol=0)
        return len(below) < self.values - 1 and (not len(below) or bool(exact.any()))

    def _cut_off(self, run: Run, whole: Chunk) -> Findings:
        """Tasks that the recorder found not to depend on the tensor at hand, and that nothing trains elsewhere."""
        told = run.header.raw.get("outside_at")
        if not isinstance(told, list) or not self._lasted(run, whole):
            return
        taught, idle = gradients(whole), _without_gradient(run)
        if not idle and not any(_fell(whole, name) >= self.others_fell for name in taught):
            return  # nobody learns
        for name in [name for name in components(whole) if name in told and name not in taught]:
            meant = self._roles.task(name) or (idle and not self._regularises(name))
            stands = (
                self._lost(run, whole, name) if len(whole) < self.unlearned_rows else _fell(whole, name) < self.fell
            )
            if meant and self._weight(whole, name, self.rows) > 0 and stands:
                at = run.header.raw.get("gradient_at") or "the tensor at which gradients are taken"
                why = f"does not depend on {at}, where the others' gradients are, and is not learned"
                yield self._unlearned(run, name, why, _levels(whole, name), 0.75)

    def _headless(self, run: Run, whole: Chunk) -> Findings:
        """Where no components' gradients are recorded: those whose own module, a head by its name, never had any."""
        idle = _without_gradient(run)
        learnt = any(_fell(whole, name) >= self.others_fell for name in components(whole))
        if not idle or gradients(whole) or not self._lasted(run, whole) or not learnt:
            return
        for name in components(whole):
            lost = _fell(whole, name) < self.others_fell  # what the others change of its inputs moves it a little
            own = head_of(name, idle, run)
            head = own and not opponent(name)  # an opponent has its gradient in a step of its own
            counts = not self._weight(whole, name, self.unlearned_rows) <= 0  # the recorder looks each fiftieth step
            if head and lost and counts and not self._regularises(name):
                why = f"is not learned, and the module {own} has never had a gradient"
                yield self._unlearned(run, name, why, _levels(whole, name), 0.85)

    def _lost(self, run: Run, whole: Chunk, name: str) -> bool:
        """Whether it has risen by half, in training and validation: few rows tell no less."""
        held = held_out(run, f"loss/{name}")[1]
        risen = len(held) >= 3 and held[-3:].min() > (1 + self.worsened) * held[0] > 0
        return bool(risen) and _fell(whole, name) < -self.worsened

    def _lasted(self, run: Run, whole: Chunk) -> bool:
        """Whether what is trained elsewhere, or is to be trained yet, has had its time."""
        half = 2 * (run.last_step or 0) >= self._planned > 0
        return len(whole) >= (self.rows if half else self.unlearned_rows)

    def _regularises(self, name: str) -> bool:
        """Whether it was declared a regulariser, or has the name of one."""
        return self._roles.said.get(name) == "regulariser" or small_by_design(name, ())

    def _weight(self, whole: Chunk, name: str, rows: int) -> float:
        """The lowest weight of the last rows; NaN where none is recorded."""
        return float(np.fmin.reduce(whole[f"weight/{name}"][-rows:]))

    def _unlearned(self, run: Run, name: str, why: str, levels: tuple[float, float], confidence: float) -> Finding:
        first, now = levels
        return self.finding(
            "warning",
            f"component:{name}",
            (run.first_step or 0, run.last_step or 0),
            f"The {name} loss {why}: {first:,.4g} at first, {now:,.4g} now.",
            evidence={"first": first, "now": now},
            advice=f"Find what cuts {name} off from the model: detach(), no_grad, argmax, or outputs of another model.",
            confidence=confidence,
        )

    def _left_out(self, run: Run, whole: Chunk) -> Findings:
        """Tasks without a gradient over the parameters, where those of the others make up the whole gradient's norm."""
        norms = {name.partition("/")[2]: whole[name] for name in whole.channels if name.startswith("param_grad/")}
        if not norms:
            return
        sums, norm = together(whole, norms), whole["grad_norm"]
        made, known = np.abs(sums / norm - 1) < self.same, {*norms, *gradients(whole)}
        for name in [name for name in components(whole) if name not in known]:
            value, weight = whole[f"loss/{name}"], whole[f"weight/{name}"]
            due = np.isfinite(value) & (value != 0) & (weight > 0) & np.isfinite(sums) & (norm > 0)
            depends = not self._roles.aside(name) or self._rose(value[np.isfinite(value)])
            if due.sum() < self.probes or not made[due].all() or not depends:
                continue
            yield self.finding(
                "warning",
                f"component:{name}",
                (int(whole.step[due][0]), run.last_step or 0),
                f"The {name} loss stands at {value[due][-1]:,.4g} and has no gradient over the parameters: those of "
                f"{', '.join(norms)} make up the whole gradient.",
                evidence={"value": float(value[due][-1]), "samples": int(due.sum())},
                advice=f"Find what cuts {name} off from the model: detach(), no_grad, argmax, item() or a constant.",
                confidence=0.9,
            )

    def _rose(self, value: Floats) -> bool:
        """Whether every value of the end is above all of the beginning: over a frozen part it would only vary."""
        width = min(BLOCK, max(1, len(value) // 5))
        first, now = value[:width], value[-width:]
        return bool(
            len(value) > self.rows and now.min() > first.max() > 0 and median(now) > (1 + self.fell) * median(first)
        )

    def _untaught(self, run: Run, whole: Chunk) -> Findings:
        """Tasks that only got worse, by more than the others gained: the sum is followed, and they are not in it."""
        names = components(whole)
        if len(whole) < self.unlearned_rows or plays(whole.channels) or gradients(whole):
            return
        aims = [name for name in names if self._roles.said.get(name) != "regulariser"]
        if not any(_fell(whole, name) >= self.others_fell for name in aims):
            return
        levels = {name: _levels(whole, name) for name in names}
        weight = {name: float(np.nanmin(whole[f"weight/{name}"], initial=np.inf)) for name in names}
        gained = {name: weight[name] * (first - now) for name, (first, now) in levels.items()}
        for name in [name for name in names if self._roles.task(name) and 0 < weight[name] < np.inf]:
            lost = -gained[name] > np.nansum([abs(gained[other]) for other in names if other != name])
            if lost and self._worsened(run, whole, name):
                first, now = levels[name]
                yield self.finding(
                    "warning",
                    f"component:{name}",
                    (run.first_step or 0, run.last_step or 0),
                    f"The {name} loss was never better than at first, in training and validation, and went from "
                    f"{first:,.4g} to {now:,.4g} while others were learned: nothing teaches it.",
                    evidence={"first": first, "now": now},
                    advice=f"Find what cuts {name} off from the model (detach(), no_grad, argmax), what turns its "
                    "sign, or which other loss asks for its opposite.",
                    confidence=0.75,
                )

    def _worsened(self, run: Run, rows: Chunk, name: str) -> bool:
        """Whether a value has risen by half, in training and in validation, and was lower than at first in neither."""
        value = rows[f"loss/{name}"]
        value = value[np.isfinite(value)]
        held = run.eval.curve(f"loss/{name}")[1] if f"loss/{name}" in run.eval else np.empty(0)
        if len(value) < self.unlearned_rows or len(held) < self.evaluations:
            return False
        levels = np.array([np.median(value[: self.probes]), *(np.median(part) for part in np.array_split(value, 8))])
        return all(
            first > 0 and course.min() >= (1 - self.same) * first and now > (1 + self.worsened) * first
            for course, first, now in ((levels, levels[0], levels[-1]), (held, held[0], float(np.median(held[-3:]))))
        )

    def _constants(self, rest: Chunk) -> Findings:
        """Of what is constant from the first row on; gradients, where they are recorded, have said it already."""
        _, changes, rows = self._total
        norms = gradients(rest)
        for name, (value, first, count) in self._first.items():
            known = name in norms or value == 0 or name in self._varied
            if known or count < self.constant_rows or changes < self.moves * rows:
                continue
            yield self.finding(
                "info" if self._roles.aside(name) or not self._roles.task(name) else "warning",
                f"component:{name}",
                (first, int(rest.rows.step[rest.stop - 1])),
                f"The {name} loss has been {value:,.6g} in all of {count:,} rows, while the total changes.",
                evidence={"value": value, "rows": count},
                advice=f"See whether {name} depends on the model at all: a clamp, detach() or argmax makes a constant.",
                confidence=0.7,
            )


def _any_zero(chunk: Chunk) -> Bools:
    """Rows in which some module's gradient is exactly 0. bool [rows]"""
    norms = [chunk[name] == 0 for name in chunk.channels if name.startswith("grad_norm/")]
    return np.any(norms, axis=0) if norms else np.zeros(len(chunk), dtype=bool)


def _first_zero(chunk: Chunk) -> Bools:
    """Rows in which the gradient of the module next to the input is exactly 0: all that comes after it is fed a
    constant. A head that serves a dead component alone comes after modules that learn. bool [rows]
    """
    first = next((name for name in chunk.channels if name.startswith("grad_norm/")), None)
    return chunk[first] == 0 if first else np.zeros(len(chunk), dtype=bool)


def _without_gradient(run: Run) -> list[str]:
    """Modules that may be trained and never had a gradient, while others have: the outer ones by their norms, and what
    the recorder tells.
    """
    norms = [name.removeprefix("grad_norm/") for name in run.train.channels if name.startswith("grad_norm/")]
    outer = [module.name for module in run.header.modules if module.depth == 1 and module.trainable > 0]
    return [*([name for name in outer if name and name not in norms] if norms else []), *unreached(run)]


def _levels(rows: Chunk, name: str) -> tuple[float, float]:
    """The medians of a component's first and last block of rows."""
    table, width = rows.rows, min(BLOCK, max(1, len(rows) // 5))
    ends = (table.column(f"loss/{name}", a, b) for a, b in ((0, width), (len(rows) - width, len(rows))))
    first, now = (median(values) for values in ends)
    return first, now


def _fell(rows: Chunk, name: str) -> float:
    """How far a component came down, as a share of its first level; NaN where that is not above 0."""
    first, now = _levels(rows, name)
    return 1 - now / first if first > 0 else float("nan")
