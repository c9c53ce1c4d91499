"""The components of a loss: their weighted sum, which belongs to the loop, and what is recorded of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainwatch.recorder.values import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from trainwatch.recorder.directions import OverParameters
    from trainwatch.recorder.transfer import Part


def undifferentiated(components: Mapping[str, Any]) -> bool:
    """Whether these are tensors of an evaluation: gradients are switched off."""
    if not any(is_tensor(raw) for raw in components.values()):
        return False
    return not sys.modules["torch"].is_grad_enabled()


def weighted(components: Mapping[str, Any], weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """Weight x raw of each component that takes part; a weight of exactly 0 leaves it out, since 0 x NaN is NaN."""
    terms = {}
    for name, raw in components.items():
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        if isinstance(weight, int | float):
            if weight != 0:
                terms[name] = raw if weight == 1 else weight * raw
        else:
            terms[name] = weight * raw
    return terms


def total(terms: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """The terms' sum, in their order; with no term left, a zero that ``backward()`` can be called on."""
    values = iter(terms.values())
    result = next(values, None)
    for value in values:
        result = result + value
    if result is None:
        like = next((raw for raw in components.values() if hasattr(raw, "new_zeros")), None)
        return 0.0 if like is None else like.detach().new_zeros(()).requires_grad_()
    return result


@dataclass
class Losses:
    """One step's losses, added up over its micro-batches."""

    outside: set[str] = field(default_factory=set)
    _host: dict[str, list[float]] = field(default_factory=dict)
    _device: dict[tuple[str, tuple[str, ...], Any], Part] = field(default_factory=dict)
    _over: OverParameters | None = None

    def add(self, components: Mapping[str, Any], summed: Any, share: float) -> None:
        """Take the raw values, and the sum that is differentiated, of one micro-batch with its part of the step."""
        names: list[str] = []
        values: list[Tensor] = []
        named = {f"loss/{name}": raw for name, raw in components.items()}
        for name, value in {**named, "loss": summed}.items():
            if is_tensor(value):
                names.append(name)
                values.append(value)
            else:
                mean = self._host.setdefault(name, [0.0, 0.0])
                mean[0] += share * float(value)
                mean[1] += share
        if values:
            self._add_tensors(names, values, share)

    def _add_tensors(self, names: list[str], values: list[Tensor], share: float) -> None:
        from trainwatch.recorder.transfer import capture, scalar

        scalars = [scalar(value) for value in values]
        single = [(name, value) for name, value in zip(names, scalars, strict=True) if value is not None]
        if single:
            for part in capture("mean", [name for name, _ in single], [value for _, value in single]):
                self._add_part(part, share, share)
        if len(single) < len(names):
            wrong = next(name for name, value in zip(names, scalars, strict=True) if value is None)
            raise ValueError(f"{wrong} is no scalar; reduce it to one number")

    def add_gram(self, terms: Mapping[str, Any], at: Tensor, share: float) -> list[str]:
        """Add one micro-batch's Gram matrix; returns the components newly found not to depend on ``at``."""
        from trainwatch.recorder.directions import gram

        part, outside = gram({name: term for name, term in terms.items() if is_tensor(term)}, at)
        outside += [name for name, term in terms.items() if not is_tensor(term)]
        if part is not None:
            self._add_part(part, share, share**2)
        new = [name for name in outside if name not in self.outside]
        self.outside.update(new)
        return new

    def add_over(self, terms: Mapping[str, Any], over: list[Tensor], scale: Any, share: float) -> None:
        """Add one micro-batch's gradients over the parameters."""
        from trainwatch.recorder.directions import OverParameters

        self._over = self._over or OverParameters()
        self._over.add({name: term for name, term in terms.items() if is_tensor(term)}, over, scale, share)

    def _add_part(self, part: Part, share: float, factor: float) -> None:
        """Add a micro-batch's part to the step's: ``factor`` times its values, for ``share`` of the step."""
        from trainwatch.recorder.transfer import summable

        if share != 1.0:
            part.values, part.count = summable(part.values) * factor, share
        key = (part.role, part.names, part.values.device)
        before = self._device.get(key)
        if before is None:
            self._device[key] = part
        else:
            before.values = summable(before.values) + summable(part.values)
            before.count += part.count

    def collect(self, fields: dict[str, Any], parts: list[Part]) -> None:
        """Hand the step's means and Gram matrix over, and begin the next."""
        if self._host:
            fields.update({name: value / count for name, (value, count) in self._host.items()})
            self._host = {}
        if self._device:
            parts += self._device.values()
            self._device = {}
        if self._over is not None:
            parts += self._over.collect()
            self._over = None


def no_shares(terms: Mapping[str, Any], at: Tensor) -> str:
    """Why the components' gradients cannot be taken at ``at``; empty if they can."""
    if not is_tensor(at):
        return f"at= is a {type(at).__name__}, no tensor"
    if not at.requires_grad:
        return "at= does not require a gradient"
    return (
        "" if any(is_tensor(term) and term.requires_grad for term in terms.values()) else "no component has a gradient"
    )
