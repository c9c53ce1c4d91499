"""See the rule's docstring: it is the page that `trainwatch rules frozen-weights` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Floats, Probes, Streak, carried, fall
from trainwatch.table import Chunk

ASIDE = re.compile(r"teacher|target|ema|momentum|random|fourier|reservoir|prior")
"""What is frozen on purpose with weights of its own: copies that follow, and noise that is meant."""
NORMALISATION = re.compile(r"(bn|batch_?norm|layer_?norm|rms_?norm|group_?norm|norm|ln)(_?\d+)?")


@dataclass
class FrozenWeights(Rule):
    """Gradients arrive and the learning rate is not zero, but no weight moves.

    What it sees:
        An update ratio of exactly 0 in every parameter group for two samples (for the only one, where half of the run
        is over and the loss has not come down), a `param_hash` that is the same in twenty
        rows, or weight norms equal to the last digit in five samples; in rows with a gradient above 0, a learning rate
        above a thousandth of the highest so far, and no step that the gradient scaler skipped; an update ratio is no
        witness where one row in ten has a gradient of exactly 0. Modules that are frozen
        while a parameter group of the optimiser that has a name and a rate finds nothing to move; or a module with a
        gradient, while the group of its name finds none, where other groups are looked at; or one of several models,
        while the optimiser of its name steps without any. Modules of a tenth of
        the model and more that are frozen as they were initialised: the recorder looks at frozen weights once, and
        those that were ever trained are no even noise. As an info: a model of which only the normalisation layers can
        be trained.

    Why it matters:
        The optimiser holds other tensors than the model: it was built before the model was moved, wrapped, cast or
        reloaded. Or each update is lost in rounding, in weights of half precision. Nothing is trained at all.

    What to do:
        Build the optimiser last, from the parameters of the model that is trained. Keep a float32 copy of weights that
        are half precision.

    When it is wrong:
        A hash over parameters that another optimiser moves in other steps. A body that is frozen for now and unfrozen
        later: it has half of the planned steps to begin. Random features that are meant to stay random. A teacher or a
        target network is known by its name, or by a trained module of its size.

    References:
        accelerate #2665 (stale parameters after wrapping); TrainCheck (OSDI 2025), "all but BatchNorm frozen".
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = (
        "update_ratio/<group>|param_hash|weight_norm/<group>",
        "lr/<group>",
        "grad_norm|grad_norm/<module>|grad_norm_at_step",
    )
    wants: ClassVar[tuple[str, ...]] = ("param_hash", "amp/skipped", "run:modules")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-stuck", "lr-too-low", "group-unmoved", "loss-plateau", "evaluation-unchanged"),
    )

    samples: int = 2  # of the update ratio: 0 is exact, and one may be a skipped step that was not told
    hashes: int = 20  # rows
    norms: int = 5  # samples: float32 hides a step of 1e-8, five in a row seldom
    alive: float = 1e-3  # of the highest learning rate: below it, at the end of a cosine, rounding hides a healthy step
    begin: float = 0.5  # of the planned steps: what is unfrozen step by step has begun by then
    much: float = 0.1  # of the parameters are frozen as they were initialised: less is a table or a projection
    noise: float = 0.9  # of those show no training at all; twenty steps of any training leave less than half
    told: int = 600  # parameters: of fewer nobody can say whether a draw or a training left them
    few: float = 0.02  # of the parameters can be trained, and all of them in normalisation layers

    idle: float = 0.1  # of the rows have no gradient: two such steps are then sampled in a row by chance

    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _without: tuple[int, int] = field(default=(0, 0), init=False)  # rows without a gradient, and with a norm
    _last: dict[str, float] = field(default_factory=dict, init=False)
    _highest: float = field(default=0.0, init=False)
    _seen: int = field(default=0, init=False)
    _probes: dict[str, Probes] = field(default_factory=dict, init=False)
    _sampled: bool = field(default=False, init=False)  # an update ratio was seen

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Three witnesses, each in the rows in which something should have moved."""
        rates = [chunk[name] for name in chunk.channels if name.startswith("lr/")]
        if not rates:
            return
        rate = np.fmax.reduce(rates)
        highest = np.fmax.accumulate(np.concatenate([[self._highest], rate]))[1:]
        self._highest = float(highest[-1])
        gradient = _gradient(chunk)
        due = (rate > self.alive * highest) & (rate > 0) & chunk.trained() & (gradient > 0)
        idle = self._idles(gradient)
        moved, step = self._moved(chunk), chunk.step.astype(np.float64)
        row = self._seen + np.arange(len(chunk), dtype=np.float64)
        self._seen += len(chunk)
        for witness, rows in (("update_ratio", self.samples), ("param_hash", self.hashes), ("weight_norm", self.norms)):
            judged = due & np.isfinite(moved[witness])
            judged &= ~idle | (witness != "update_ratio")
            probes = self._probes.setdefault(witness, Probes())
            since = probes.since(judged | (rate <= self.alive * highest), step)
            columns = {"row": row, "step": step, "rate": rate, "since": since}
            streak = self._streaks.setdefault(witness, Streak(rows))
            streak.push(moved[witness][judged] == 0, {name: values[judged] for name, values in columns.items()})
        known = [(name, streak) for name, streak in self._streaks.items() if streak.onset is not None]
        if known:
            yield self._finding(*min(known, key=lambda item: item[1].believed["row"]))

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """The rows that fill no block yet, on a copy; and what the header says can be trained."""
        if len(rest):
            yield from self.ahead(rest)
        yield from self._little_trained(run)
        still = any(streak.onset is not None for streak in self._streaks.values())  # it is said of all that was seen
        known = list(self._untrained(run)) or list(self._idle(run, rest)) or list(self._others(run, still))
        yield from known or self._once(run)

    def _untrained(self, run: Run) -> Iterator[Finding]:
        """Modules that are frozen with the weights they were initialised with: they pass on noise."""
        modules = run.header.modules
        frozen = [module for module in modules if module.fresh is not None and module.trainable == 0]
        names = {module.name for module in frozen}
        sizes = {module.parameters for module in modules if module.trainable > 0}
        own = [
            module
            for module in frozen
            if module.name.rpartition(".")[0] not in names  # it is counted with the whole of which it is a part
            and module.parameters not in sizes  # a copy of what is trained
            and not ASIDE.search(module.name.lower())
            and f"grad_norm/{module.name}" not in run.train  # it was unfrozen since
        ]
        whole = sum(module.parameters for module in modules if module.depth == 1)
        size, fresh = sum(module.parameters for module in own), sum(module.fresh or 0.0 for module in own)
        much = size >= max(self.told, self.much * whole) and fresh >= self.noise * size
        if much and sizes and run.first_step is not None:
            said = ", ".join(module.name for module in own[:4])
            yield self.finding(
                "warning",
                f"module:{own[0].name}",
                (run.first_step, run.last_step or 0),
                f"{said} cannot be trained, and the weights are as an initialisation leaves them: {size:,.0f} of "
                f"{whole:,.0f} parameters stay noise.",
                evidence={"frozen": size, "fresh": fresh, "parameters": whole},
                advice="Load the weights that were meant to be frozen, or set requires_grad before the optimizer is "
                "built.",
                confidence=0.85,
            )

    def _idle(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Named groups with a rate that were never seen to hold anything, beside modules that cannot be trained."""
        groups = {name.removeprefix("lr/") for name in rest.channels if name.startswith("lr/")}
        kinds = ("update_ratio/", "weight_norm/")  # either is of a group that holds something
        seen = {name.partition("/")[2] for name in rest.channels if name.startswith(kinds)}
        frozen = [module.name for module in run.header.modules if module.depth == 1 and module.trainable == 0]
        planned, steps = run.header.total_steps or 0, run.last_step or 0
        late = steps >= self.begin * planned if planned else run.end is not None
        idle = [name for name in sorted(groups - seen) if not name.rpartition(".")[2].isdigit()]
        rated = [name for name in idle if self._highest_of(run, name) > 0]
        if seen and frozen and rated and late and run.first_step is not None:
            yield self.finding(
                "warning",
                f"group:{rated[0]}",
                (run.first_step, steps),
                f"The optimiser has a learning rate for {', '.join(rated[:4])} and nothing to move with it; "
                f"{', '.join(frozen[:4])} cannot be trained at all.",
                evidence={"groups": len(rated), "frozen": len(frozen)},
                advice="Set requires_grad before the optimiser is built; leave the group out if it is meant to rest.",
                confidence=0.75,
            )

    def _others(self, run: Run, still: bool) -> Iterator[Finding]:
        """Named groups, or optimisers, that hold no gradient in the samples in which what bears that name has one."""
        for what, group, rate in (*_emptied(run), *(() if still else _idling(run))):
            if len(rate) >= self.samples and rate.max() > 0 and run.first_step is not None:
                yield self.finding(
                    "warning",
                    f"group:{group}",
                    (run.first_step, run.last_step or run.first_step),
                    f"Module {group} has a gradient, and the {what} {group}, at a rate of {rate.max():.2g}, holds none "
                    f"in {len(rate):,} samples: it holds other tensors.",
                    evidence={"samples": len(rate), "learning_rate": float(rate.max())},
                    advice="Build the optimiser from the parameters of the model that is trained, once it is whole.",
                    confidence=0.8,
                )

    def _once(self, run: Run) -> Findings:
        """The only sample of the updates is exactly 0, in a run of which half is over, and the loss has not moved."""
        rows = Chunk("train", run.train, 0, run.train.size)
        ratios, rates = (
            [rows[name] for name in rows.channels if name.startswith(kind)] for kind in ("update_ratio/", "lr/")
        )
        if not ratios or not rates or not 2 * (run.last_step or 0) > (run.header.total_steps or np.inf):
            return
        ratio, rate = np.fmax.reduce(ratios), np.fmax.reduce(rates)
        due = np.isfinite(ratio) & (rate > self.alive * np.fmax.reduce(rate)) & rows.trained() & (_gradient(rows) > 0)
        if due.sum() == 1 and np.nanmax(ratio) == 0 and fall(rows["loss"]) <= 0:
            yield self.finding(
                "warning",
                "run",
                (int(rows.step[0]), int(rows.step[-1])),
                f"Gradients arrive and the learning rate is {rate[due][0]:.3g}, but the only update that was sampled "
                "is exactly 0, and the loss has not come down: no weight moves.",
                evidence={"learning_rate": float(rate[due][0])},
                advice="Build the optimizer from the parameters of the model that is trained, once it is wrapped.",
                confidence=0.8,
            )

    @staticmethod
    def _highest_of(run: Run, group: str) -> float:
        return float(np.fmax.reduce(run.train.column(f"lr/{group}", 0, run.train.size), initial=0.0))

    def _idles(self, gradient: Floats) -> NDArray[np.bool_]:
        """Whether so many rows up to each had a gradient of exactly 0 that a sampled step may have been such a one: a
        hinge whose margins are kept, in a log that tells the norm of other steps than it samples.
        """
        none, known = (
            before + np.add.accumulate(rows)
            for before, rows in zip(self._without, (gradient == 0, np.isfinite(gradient)), strict=True)
        )
        self._without = (int(none[-1]), int(known[-1])) if len(gradient) else self._without
        idle: NDArray[np.bool_] = none > self.idle * known
        return idle

    def _moved(self, chunk: Chunk) -> dict[str, Floats]:
        """0 where a witness saw nothing move, above where it did, NaN where it looked not. float64 [rows]"""
        groups = [name for name in chunk.channels if name.startswith("update_ratio/")]
        ratio = np.fmax.reduce([chunk[name] for name in groups]) if groups else np.full(len(chunk), np.nan)
        norms = [name for name in chunk.channels if name.startswith("weight_norm/")]
        changes = [self._change(chunk, name) for name in norms] if not self._sampled else []
        norm = np.fmax.reduce(changes) if changes else np.full(len(chunk), np.nan)
        sampled = np.logical_or.accumulate(np.isfinite(ratio)) | self._sampled
        self._sampled, norm = bool(sampled[-1]), np.where(sampled, np.nan, norm)  # the surer witness has come
        return {"update_ratio": ratio, "param_hash": self._change(chunk, "param_hash"), "weight_norm": norm}

    def _change(self, chunk: Chunk, name: str) -> Floats:
        """How far a value is from the last one there was. float64 [rows]"""
        values = chunk[name]
        before = carried(self._last.get(name, np.nan), values)
        self._last[name] = float(carried(self._last.get(name, np.nan), np.append(values, np.nan))[-1])
        change: Floats = np.abs(values - before)
        return change

    def _finding(self, witness: str, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        denied = witness == "weight_norm" and self._streaks["update_ratio"].good_since > 0
        saw = {
            "update_ratio": "the update ratio of every group is exactly 0",
            "param_hash": "the hash of the parameters is the same",
            "weight_norm": "the weights' norms are the same to the last digit",
        }[witness]
        return self.finding(
            "critical",
            "run",
            (int(onset["since"]), int(now["step"])),
            f"Gradients arrive and the learning rate is {now['rate']:.3g}, but {saw} in {streak.bad:,} samples: no "
            "weight moves.",
            over=streak.over or denied,
            evidence={"samples": streak.bad, "learning_rate": now["rate"], "witness": witness},
            advice="Build the optimizer from the parameters of the model that is trained, once it is wrapped.",
            confidence=0.7 if witness == "weight_norm" else 0.95,
        )

    def _little_trained(self, run: Run) -> Iterator[Finding]:
        """Nothing but normalisation layers can be trained."""
        outer = [module for module in run.header.modules if module.depth == 1]
        whole, trained = sum(module.parameters for module in outer), sum(module.trainable for module in outer)
        names = [module.name for module in run.header.modules if module.trainable > 0]
        leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
        normal = [NORMALISATION.fullmatch(name.rpartition(".")[2].lower()) for name in leaves]
        if leaves and all(normal) and 0 < trained < self.few * whole and run.first_step is not None:
            yield self.finding(
                "info",
                "config:requires_grad",
                (run.first_step, run.first_step),
                f"Only {trained:,.0f} of {whole:,.0f} parameters can be trained, all in normalisation layers.",
                evidence={"trainable": trained, "parameters": whole},
                advice="If it is not meant, set requires_grad before the optimizer is built.",
                confidence=0.8,
            )


def _gradient(chunk: Chunk) -> Floats:
    """The largest gradient norm that a row tells. float64 [rows]"""
    names = [name for name in chunk.channels if name in ("grad_norm", "grad_norm_at_step")]
    names = names or [name for name in chunk.channels if name.startswith("grad_norm/")][:64]
    found: Floats = np.fmax.reduce([chunk[name] for name in names]) if names else np.full(len(chunk), np.nan)
    return found


def _emptied(run: Run) -> Iterator[tuple[str, str, Floats]]:
    """Groups without an update ratio, that bear a module's name, and their rates in samples in which it has a gradient.

    Beside groups of the same optimiser: another one may not have begun, and its rate may be logged by hand.
    """
    train, channels = run.train, run.train.channels
    seen = [name.removeprefix("update_ratio/") for name in channels if name.startswith("update_ratio/")]
    optimizers = {group.rpartition(".")[0] for group in seen}
    sampled = np.any([np.isfinite(train[f"update_ratio/{group}"]) for group in seen], axis=0)
    for name in sorted(channels):
        group, norm = name.removeprefix("lr/"), f"grad_norm/{name.removeprefix('lr/')}"
        optimizer, _, own = group.rpartition(".")
        named = not own.isdigit() and norm in run.train
        if group not in (name, *seen) and named and optimizer in optimizers:
            rate = train[name][sampled & (train[norm] > 0)]
            yield "optimiser's group", group, rate[np.isfinite(rate)]


def _idling(run: Run) -> Iterator[tuple[str, str, Floats]]:
    """Those of several optimisers that stepped without a gradient in every sample in which the model of their name has
    one, and their rates. A weight norm is of what has a gradient.
    """
    train, channels = run.train, run.train.channels
    seen = [name.removeprefix("update_ratio/") for name in channels if name.startswith("update_ratio/")]
    for optimizer in sorted({group.rpartition(".")[0] for group in seen} - {""}):
        own = [group for group in seen if group.rpartition(".")[0] == optimizer]
        ratio = np.fmax.reduce([train[f"update_ratio/{group}"] for group in own])
        stepped = np.diff(train[f"applied/{optimizer}"], prepend=0.0) > 0
        due = np.isfinite(ratio) & (train[f"grad_norm/{optimizer}"] > 0) & stepped
        if (ratio[due] == 0).all() and not any(f"weight_norm/{group}" in train for group in own):
            rate = np.fmax.reduce([train[f"lr/{group}"][due] for group in own])
            yield "optimiser", optimizer, rate[np.isfinite(rate)]
