"""What was attached: models, optimisers, the gradient scaler. Gradient norms and clipping; loads torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainwatch.recorder import entrance, probes, resting, unreached
from trainwatch.recorder.carried import Carried
from trainwatch.recorder.entrance import Entrance
from trainwatch.recorder.header import modules_form
from trainwatch.recorder.modes import Modes
from trainwatch.recorder.probes import Fault, ModelProbe, OptimizerProbe
from trainwatch.recorder.resting import Resting
from trainwatch.recorder.transfer import Part, capture
from trainwatch.recorder.unreached import Unreached

WRAPPED = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
"""What wrappers put into the names of parameters."""


class Models:
    """One model and its optimiser, or several by name."""

    def __init__(self, model: Any, optimizer: Any, scaler: Any, fault: Fault, hooks: bool = True) -> None:
        self.several = isinstance(model, Mapping) or isinstance(optimizer, Mapping)
        given = _named("model", model, nn.Module)
        self.models = {name: ModelProbe(one) for name, one in given.items()}
        self.modes = Modes([*given.values()], fault)
        enabled = getattr(scaler, "is_enabled", None)
        self.scaler = scaler if scaler is not None and (enabled is None or enabled()) else None
        optimizers = _named("optimizer", optimizer, Optimizer) if optimizer is not None and hooks else {}
        self.optimizers = [
            OptimizerProbe(f"{name}." if name else "", one, self.scaler, fault) for name, one in optimizers.items()
        ]
        self.parameters = [parameter for probe in self.models.values() for parameter in probe.parameters]
        self.sharded = any(probe.sharded for probe in self.models.values())
        whole = {} if self.sharded else optimizers
        self.carried = [Carried(name if len(whole) > 1 else "", one, fault) for name, one in whole.items()]
        names = {
            id(parameter): WRAPPED.sub("", f"{name}.{own}" if name else own)
            for name, probe in self.models.items()
            for own, parameter in probe.model.named_parameters()
        }
        self._reach = [Unreached(names, one, fault) for one in optimizers.values()]
        inner = [probe.model for probe in self.models.values()]  # a wrapper's process group is not ours to keep alive
        self._rest = [Resting(inner, one, fault) for one in optimizers.values()]
        self.entrance = Entrance(inner, fault)
        self._unreached: dict[str, int] = {}  # as it was told last, and so
        self._resting: Counter[str] = Counter()
        self._unscaled_said = False

    def close(self) -> None:
        """Leave models and optimisers as they were."""
        self.modes.end()
        self.entrance.close()
        for probe in self.optimizers:
            probe.detach()
        looks: list[Carried | Unreached | Resting] = [*self.carried, *self._reach, *self._rest]
        for look in looks:
            look.detach()

    def grads(self, of: str | None) -> list[nn.Parameter]:
        """The parameters whose gradients ``gradients()`` reads and clips."""
        return self.parameters if of is None else self.models[of].parameters

    def norms(self, max_norm: float | None, of: str | None, parts: list[Part]) -> Tensor | None:
        """Record the gradient's norms and whether it will be clipped; returns the whole norm."""
        names: list[str] = []
        values: list[Tensor] = []
        totals: list[Tensor] = []
        for model, probe in self.models.items():
            found = probe.norms() if of in (None, model) else None
            if found is not None:
                modules, each, total = found
                names += [f"grad_norm/{model}"] if self.several else [f"grad_norm/{module}" for module in modules]
                values += [total] if self.several else each
                totals.append(total)
        if not totals:
            return None
        with torch.no_grad():
            total = totals[0] if len(totals) == 1 else torch.linalg.vector_norm(probes.together(totals))
            if of is None:
                names, values = [*names, "grad_norm"], [*values, total]
            if max_norm is not None:
                names, values = [*names, "clip"], [*values, (total > max_norm).to(total.dtype)]
        parts += capture("value", names, values)
        return total

    @property
    def scale(self) -> Any:
        """What the gradient scaler multiplies the loss by, on the device if it is there; None without one."""
        scale = getattr(self.scaler, "_scale", None)
        return getattr(self.scaler, "_init_scale", None) if scale is None else scale

    def still_scaled(self) -> bool:
        """Whether ``gradients()`` was called before ``scaler.unscale_(optimizer)``: its limit then means nothing."""
        states = getattr(self.scaler, "_per_optimizer_states", None)
        if states is None or self._unscaled_said:
            return False
        stages = [states[id(p.optimizer)]["stage"].name for p in self.optimizers if id(p.optimizer) in states]
        self._unscaled_said = "UNSCALED" not in stages
        return self._unscaled_said

    def begin(self) -> None:
        """An evaluation begins."""
        self.modes.begin()
        self.entrance.begin()

    def end(self) -> None:
        """It is over."""
        self.modes.end()
        self.entrance.end()

    def evaluated(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Of the last evaluation: how many modules were in training mode, and the scale of what was read."""
        held = self.entrance.held()
        return self.modes.collect(), {} if held is None else dict(zip(entrance.NAMES, held.unbind(), strict=True))

    def collect(self, fields: dict[str, Any], parts: list[Part], normed: bool) -> None:
        """Add to a step's row what the optimisers' hooks saw."""
        self.modes.forget()
        called = [probe.called for probe in self.optimizers]
        for look in self.carried:
            look.collect(fields, any(probe.sampling for probe in self.optimizers))
        for probe in self.optimizers:
            probe.collect(fields, parts)
            probe.norm_wanted = not normed
        if (read := self.entrance.collect()) is not None:
            parts += capture("value", entrance.NAMES, [*read.unbind()])
        if self.scaler is not None and any(probe.hooked for probe in self.optimizers):
            fields.setdefault("amp/skipped", int(not any(called)))

    def told(self, step: int) -> Iterator[dict[str, Any]]:
        """An event where other weights than before never had a gradient, or the model is trained in another mode."""
        sizes = {module: size for look in self._reach for module, size in look.sizes.items()}
        if sizes != self._unreached:
            self._unreached = sizes
            yield unreached.event(sizes)
        rests = [rest for rest in (look.told(step) for look in self._rest) if rest[0]]
        kinds = sum((Counter(kinds) for kinds, _, _ in rests), Counter())
        if kinds != self._resting:
            self._resting = kinds
            yield resting.event(kinds, min((since for _, since, _ in rests), default=0), any(t for _, _, t in rests))

    def forgotten(self) -> list[str] | None:
        """Optimisers whose first step found no state to go on from; None before any has taken a step."""
        if not any(probe.ever_called for probe in self.optimizers):
            return None
        return [probe.name for probe in self.optimizers if probe.forgot]

    def sample(self, sampling: bool) -> None:
        """Whether the next step looks at weights and update ratios."""
        for probe in self.optimizers:
            probe.sampling = sampling

    def about(self) -> dict[str, Any]:
        """What the header would have said, had it known: parameters, modules, dtypes."""
        observed = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in self.parameters})
        forms = {name: modules_form(probe.model) or [] for name, probe in self.models.items()}
        rows = [
            {**row, "name": f"{n}.{row['name']}" if n else row["name"]} for n, form in forms.items() for row in form
        ]
        count = sum(parameter.numel() for parameter in self.parameters)
        known: dict[str, Any] = {"parameters": count, "modules": rows, "dtypes": {"observed": ", ".join(observed)}}
        device = self.parameters[0].device if self.parameters else None
        if device is not None and device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            known["device"] = {"name": properties.name, "memory": properties.total_memory}
        return known


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None, norm: Tensor | None) -> Tensor:
    """Clip as ``torch.nn.utils.clip_grad_norm_`` does, with a norm that is known already; returns the norm."""
    parameters = list(parameters)
    if norm is None:
        try:
            norm = torch.nn.utils.get_total_norm(probes.gradients(parameters))
        except Exception:
            if max_norm is not None:
                raise
            norm = torch.tensor(torch.nan)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _named(what: str, one: Any, kind: type) -> dict[str, Any]:
    """One thing under the empty name, or several under theirs."""
    named = dict(one) if isinstance(one, Mapping) else {"": one}
    for name, value in named.items():
        if not isinstance(value, kind) and not hasattr(value, "param_groups"):
            where = f"{what}[{name!r}]" if name else what
            raise TypeError(
                f"attach(): {where} is a {type(value).__name__}; give a torch {kind.__name__}, or a dict of them"
            )
    return named
