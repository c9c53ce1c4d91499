"""The Recorder: what a training loop calls. It adds no synchronisation, and it never raises into the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from trainwatch.recorder import file, flow, header, inputs, labels, losses, values
from trainwatch.recorder.journal import Journal
from trainwatch.recorder.timing import Batches, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from trainwatch.recorder.models import Models
    from trainwatch.recorder.overlap import Overlap
    from trainwatch.recorder.transfer import Part

EVERY = 50  # rows between two looks at what costs more: weights, update ratios
OFTEN = 10  # rows between two looks at memory and at what the first layer reads: 30 us each, and short runs show both
Batch = TypeVar("Batch")


class Recorder(Journal):
    """Records a training run as it happens, into one JSONL file.

    Everything about the run (``config`` to ``config_defaults``) is optional; what is not said is not judged. Arguments
    that cannot be right raise here, before the loop; from then on a fault of the recorder's own is caught, said once on
    stderr, written as an event, and the run goes on. ``resume=STEP`` goes on with the same file from a checkpoint's
    step; without it an existing file is left alone and a numbered sibling is written. ``durable=True`` writes before
    ``step()`` returns. ``enabled=False`` makes every method do nothing, but losses are still summed, gradients clipped.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: Any = None,
        total_steps: int | None = None,
        curriculum: Any = None,
        curriculum_running: Any = None,
        schedules: Mapping[str, Any] | None = None,
        clocks: Sequence[str] | None = None,
        horizon: Any = None,
        components: Any = None,
        max_grad_norm: float | None = None,
        dtypes: Mapping[str, Any] | None = None,
        parameters: int | None = None,
        modules: Any = None,
        gradient_at: str | None = None,
        classes: Mapping[str, int] | None = None,
        checkpoint_every: int | None = None,
        config_source: Any = None,
        config_defaults: Mapping[str, Any] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        run: str | None = None,
        resume: int | None = None,
        durable: bool = False,
        enabled: bool = True,
    ) -> None:
        told = {name: value for name, value in locals().items() if name in header.DECLARED}
        super().__init__(path, resume, total_steps)
        self._losses, self._flow = losses.Losses(), flow.Flow()
        self._fields: dict[str, Any] = {}
        self._parts: list[Part] = []
        self._inputs, self._labels = inputs.Inputs(), labels.Labels()
        self._overlap: Overlap | None = None  # once there is a loader
        self._rows = self.steps  # those before a resume count
        self._normed, self._spent, self._shares, self._directions = False, 0.0, True, True
        self._resuming = resume is not None  # until an optimiser has taken its first step
        if enabled:
            self._open(told, file.place(rank, world_size), run, resume, durable)

    def attach(self, model: Any, optimizer: Any = None, scaler: Any = None) -> None:
        """Say what to read norms, rates and AMP state from; dicts of several models and optimisers by name will do."""
        from trainwatch.recorder.models import Models

        if self._models is not None:
            self._models.close()
        self._models = Models(model, optimizer, scaler, self._fault, hooks=self._enabled)
        self._models.sample(self._sampling())
        if self._enabled:
            self._guard("attach()", lambda models: self._note_models(models.about()), self._models)
            if self._models.sharded and self._models.optimizers:
                self._say("sharded", "update ratios and weight norms are withheld: weights are spread over processes")

    def batches(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """The loader's batches; the wait for them is recorded as ``time/data``, a hash as ``data/fingerprint``.

        The hash is of a thousand numbers of each tensor or array that lies on the host; what does not is left alone.
        Of labels there (integers: the second of a pair, or what is named so) it is told how many kinds a batch has, and
        whether all of them are ignored (-100).
        Within ``phase("eval")`` it is a validation loader: it is told then how many of its samples are trained on.
        """
        if not self._enabled:
            return loader
        if self._overlap is None:
            self._guard("batches()", self._compare_samples)
        return Batches(loader, self._stopwatch, self._see)

    def inputs(self, values: Tensor) -> None:
        """What the model reads in this step: its mean, spread, largest magnitude, and what in it is not finite."""
        if self._enabled and self._stopwatch.phase == "train":
            self._guard("inputs()", self._inputs.read, values, self._say)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """``with watch.phase("eval"):`` (or "checkpoint"): no part of ``time/step``; ``losses`` only sums in it.

        ``evaluate()`` then tells which modules were still in training mode (``training_mode/dropout``), and the scale
        of what the first layer read (``data/read_std``), which each tenth step of training tells as well.
        """
        look = self._models if self._enabled and name == "eval" else None
        return Phase(self._stopwatch, name, look)

    def losses(
        self,
        components: Mapping[str, Any],
        weights: Mapping[str, Any] | None = None,
        at: Tensor | None = None,
        over: Iterable[Tensor] | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """The differentiable sum of weight x raw; neither divided by the accumulation nor scaled.

        A component that ``weights`` does not name has weight 1. A Python weight of exactly 0 leaves it out of the sum;
        its raw value is recorded all the same. Called several times before ``step()`` (micro-batches), the row has the
        means, weighted by each one's ``share`` of the step's samples where those differ; a share of 0 is not recorded.
        With ``at``, the last activation that every component passes through, the norm, share and cosine of the
        weighted components' gradients there are recorded: one short backward each, from the loss down to ``at``. Over
        micro-batches they are those of the mean loss, at their ``at``s laid end to end. Where that costs too much of a
        short step, give ``at`` on every tenth step only. Under ``torch.no_grad()`` it only sums.

        With ``over``, parameters, the same is recorded of the gradients over them: ``param_grad/<c>``, ``param_share``,
        ``param_cosine``. That is a whole backward pass and the parameters' memory in float32 for each component, so it
        is for one step in a hundred. With many processes they are those of this one's samples, before any reduction;
        of parameters that are spread over processes (FSDP2) they are withheld. A compiled model keeps its graph for
        them only with ``torch._functorch.config.donated_buffer = False``.
        """
        terms = losses.weighted(components, weights)
        summed: Tensor = losses.total(terms, components)
        if self._enabled and self._stopwatch.phase == "train" and share and not losses.undifferentiated(components):
            self._guard("losses()", self._take_losses, components, weights, summed, share)
            self._guard("losses()", self._take_flow, terms)
            if at is not None and self._shares:
                self._guard("losses(at=)", self._take_gram, terms, at, share)
            if over is not None and self._directions:
                self._guard("losses(over=)", self._take_directions, terms, over, share)
        return summed

    def gradients(self, max_norm: float | None = None, of: str | None = None) -> Tensor:
        """The gradient's norm, before it is clipped to ``max_norm``, as a device scalar. Call it after ``unscale_``.

        Clips exactly as ``torch.nn.utils.clip_grad_norm_`` does; so a norm that is not finite makes the gradient not
        finite too, and a gradient scaler then skips the step. ``of`` names one of several models. Where weights are
        spread over processes (FSDP2) it takes part in a reduction, so every rank calls it, with a recorder or with one
        that is switched off.
        """
        from trainwatch.recorder import models

        if self._models is None:
            raise RuntimeError("gradients(): no model is known; call attach(model, optimizer) before the loop")
        seen = self._enabled or self._models.sharded
        norm = self._guard("gradients()", self._take_norms, max_norm, of) if seen else None
        return models.clip(self._models.grads(of), max_norm, norm)

    def param_hash(self) -> None:
        """Record a hash of the weights as they are now, on which all ranks must agree where each holds them all.

        Call it before ``step()``, now and then: it reads every weight once. Nothing is sent between ranks.
        """
        if self._enabled:
            self._guard("param_hash()", self._take_hash)

    def log(self, channels: Mapping[str, Any]) -> None:
        """Values of this step: Python numbers, or tensors of one element, whose values are taken at once."""
        if not self._enabled:
            return
        began = perf_counter()
        try:
            if values.PLAIN.issuperset(map(type, channels.values())):
                self._fields.update(channels)
            else:
                values.sort(channels, self._fields, self._parts, self._say)
        except Exception as fault:
            self._fault("log()", fault)
        self._spent += perf_counter() - began

    def clock(self, name: str, value: Any) -> None:
        """The reading of a counter that the training code keeps by itself: ``clock/<name>``."""
        self.log({f"clock/{name}": value})

    def schedule(self, name: str, value: Any) -> None:
        """A scheduled value as this step used it: ``schedule/<name>``."""
        self.log({f"schedule/{name}": value})

    def step(self) -> None:
        """One attempted optimiser step is complete; its row goes to the writer."""
        if not self._enabled:
            return
        began = perf_counter()
        fields, parts = self._fields, self._parts
        self._fields, self._parts = {}, []
        self.steps, self._rows = self.steps + 1, self._rows + 1
        try:
            self._complete(fields, parts, began)
        except Exception as fault:
            self._fault("step()", fault)
        self._guard("step(), on its way to the writer,", self._put, "step", self.steps, fields, parts)

    def evaluate(
        self,
        step: int,
        split: str,
        values: Mapping[str, Any],
        *,
        weights_step: int | None = None,
        repeat: int | None = None,
    ) -> None:
        """One evaluation of one split. ``loss`` and ``loss/<c>`` stay; a bare name is a metric: ``metric/<name>``."""
        if self._enabled:
            self._stopwatch.pause()
            named = {name if "/" in name or name == "loss" else f"metric/{name}": v for name, v in values.items()}
            extra = {"split": split, "weights_step": weights_step, "repeat": repeat}
            self._guard("evaluate()", self._tell_evaluation, step, named, extra)

    def sample(
        self, outputs: Sequence[Any], step: int | None = None, quality: Mapping[str, Any] | None = None, **details: Any
    ) -> None:
        """Outputs that the model generated, and their quality: validity, diversity, longest_run, entropy, ..."""
        if self._enabled:
            self._stopwatch.pause()
            named = {name if "/" in name else f"quality/{name}": value for name, value in (quality or {}).items()}
            extra = {"outputs": list(outputs), **details}
            self._guard("sample()", self._tell, "sample", self.steps if step is None else step, named, extra)

    def checkpoint(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        *,
        best: bool | None = None,
        metric: Any = None,
        seconds: float | None = None,
    ) -> None:
        """A checkpoint was written; ``seconds`` is measured (since the step) if it is not told."""
        if self._enabled:
            spent = self._stopwatch.pause(seconds)
            numbers = {"metric": metric} if metric is None or values.is_number(metric) else {}
            extra = {"path": str(path), "best": best, "metric": None if numbers else metric}
            timed = {**numbers, "seconds": spent if seconds is None else seconds}
            self._guard("checkpoint()", self._tell, "checkpoint", self.steps if step is None else step, timed, extra)

    def event(self, name: str, /, **details: Any) -> None:
        """Something happened: stage, resume, skip, exception, signal, oom, warning, intervention, monitor, note."""
        if self._enabled:
            step = details.pop("step", self.steps)
            self._guard("event()", self._put, "event", step, {**details, "event": name})

    def _guard(self, where: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do our own part of a method; a fault in it is told once and costs the loop nothing else."""
        began = perf_counter()
        try:
            return work(*arguments)
        except Exception as fault:
            self._fault(where, fault)
            return None
        finally:
            self._spent += perf_counter() - began

    def _sampling(self) -> bool:
        """Whether the next row looks at weights; the first does, but not the first of a resume.

        Rows are counted, not steps: a loop that records each tenth step would never come by a fiftieth.
        """
        return self._rows == 0 or (self._rows + 1) % EVERY == 0

    def _compare_samples(self) -> None:
        from trainwatch.recorder.overlap import Overlap

        self._overlap = Overlap()

    def _see(self, batch: Any, loader: Any) -> None:
        if self._enabled and self._overlap and self._stopwatch.phase in ("train", "eval"):
            training = self._stopwatch.phase == "train"
            if training:
                self._guard("batches()", self._inputs.see, batch)
                if self._models is not None and self._rows and self._rows % OFTEN == 0:  # it may be compiled at first
                    self._guard("batches()", self._models.entrance.look)
                self._guard("batches()", self._labels.see, batch)
            self._guard("batches()", self._overlap.see, batch, loader, training)

    def _take_losses(
        self, components: Mapping[str, Any], weights: Mapping[str, Any] | None, summed: Any, share: float
    ) -> None:
        self._stopwatch.working()
        if weights is not None:
            applied = {f"weight/{name}": weights.get(name, 1.0) for name in components}
            values.sort(applied, self._fields, self._parts, self._say, "losses()")
        self._losses.add(components, summed, share)

    def _take_flow(self, terms: Mapping[str, Any]) -> None:
        """Components that are in the sum and teach nothing; what is frozen now may be all that one depends on."""
        for told in self._flow.see(terms, self.steps + 1):
            frozen = self._models is not None and not all(one.requires_grad for one in self._models.parameters)
            self._put("event", self.steps, {"event": "monitor", "frozen": frozen, **told})

    def _take_gram(self, terms: Mapping[str, Any], at: Tensor, share: float) -> None:
        """Shares at ``at``; where they cannot be taken one sentence says why; after a fault they are given up."""
        why = losses.no_shares(terms, at)
        if why:
            self._say(f"shares {why}", f"losses(at=): {why}; gradient shares are withheld")
            return
        self._shares = False
        new = self._losses.add_gram(terms, at, share)
        self._shares = True
        if new:
            outside = sorted(self._losses.outside)
            hint = "; were the losses computed inside a compiled region?" if len(outside) == len(terms) else ""
            text = f"gradient shares are withheld for {', '.join(outside)}: no gradient reaches at= from there{hint}"
            self._put("event", self.steps, {"event": "monitor", "message": text, "outside_at": outside})

    def _take_directions(self, terms: Mapping[str, Any], over: Iterable[Tensor], share: float) -> None:
        """The same over parameters; after a fault they are given up."""
        from trainwatch.recorder import directions

        self._directions = False
        parameters = directions.trainable(over)
        why = directions.no_directions(parameters)
        if why:
            self._say("directions", f"losses(over=): {why}; gradients over the parameters are withheld")
            return
        self._losses.add_over(terms, parameters, self._models.scale if self._models else None, share)
        self._directions = True

    def _take_hash(self) -> None:
        from trainwatch.recorder.probes import param_hash
        from trainwatch.recorder.transfer import capture

        if self._models is None or not self._models.parameters:
            self._say("hash", "param_hash(): no weights are known; call attach(model) before the loop")
        elif self._models.sharded:
            self._say("hash", "param_hash() is withheld: the weights are spread over processes, each is there once")
        else:
            self._parts += capture("value", ["param_hash"], [param_hash(self._models.parameters)])

    def _take_norms(self, max_norm: float | None, of: str | None) -> Tensor | None:
        assert self._models is not None
        self._normed = True
        for probe in self._models.optimizers:
            probe.norm_wanted = False
        if self._models.still_scaled():
            self._say(
                "unscale", "gradients() came before scaler.unscale_(optimizer): norm and limit are of scaled gradients"
            )
        return self._models.norms(max_norm, of, self._parts if self._enabled else [])

    def _complete(self, fields: dict[str, Any], parts: list[Part], began: float) -> None:
        """Add to a row what only its end tells."""
        models = self._models
        self._losses.collect(fields, parts)
        if models is not None:
            models.collect(fields, parts, self._normed)
            models.sample(self._sampling())
            self._normed = False
            for told in models.told(self.steps):
                self._put("event", self.steps, told)
            if self._overlap is None and self._rows % OFTEN == 0:
                models.entrance.look()
            if self._resuming:
                self._note_resume(models)
        if self._rows % OFTEN == 0:
            fields.update(values.memory(models.parameters if models is not None else []))
        if self._overlap:
            self._overlap.forget()
        self._inputs.collect(fields, parts)
        self._labels.collect(fields)
        self._stopwatch.lap(began, fields)
        fields["time/monitor"] = self._spent + perf_counter() - began
        self._spent = 0.0

    def _note_resume(self, models: Models) -> None:
        """A resume that brought the weights and not the optimiser's moments shows in no number of the loop."""
        forgotten = models.forgotten()
        self._resuming = forgotten is None
        if forgotten:
            text = f"the optimiser began anew at this resume: {', '.join(forgotten)} had no state before its first step"
            self._put("event", self.steps, {"event": "resume", "message": text, "empty_optimizers": forgotten})

    def _tell_evaluation(self, step: int, numbers: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Its figures, and what was seen of the model and of the samples while it went on."""
        modes, read = self._models.evaluated() if self._models else ({}, {})
        overlap = self._overlap.collect(extra["split"]) if self._overlap else {}
        self._tell("eval", step, {**read, **numbers}, {**extra, **modes, **overlap})

    def _tell(self, kind: str, step: int, numbers: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """An evaluation, sample or checkpoint; its numbers may still be on a device."""
        fields = {name: value for name, value in extra.items() if value is not None}
        parts: list[Part] = []
        values.sort(numbers, fields, parts, self._say, f"{kind}")
        self._put(kind, step, fields, parts)
