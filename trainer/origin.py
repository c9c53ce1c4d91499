"""Where the first value of a step that is not finite comes from: which operation made it, where, of which samples.

The step is taken as the loop takes it, with autograd's anomaly detection on, and every operation is looked at. What is
infinite by design (a mask of -inf before a softmax) is told from what is not: a NaN counts before an infinity, and what
only fills a tensor makes neither.
"""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trainwatch
from trainer.tasks.peptide.data import TENSORS
from trainer.train import accumulate, apply, forward

if TYPE_CHECKING:
    from trainer.run import Run
    from trainer.tasks.peptide.data import Batch

FILLS = ("full", "fill", "where", "scalar_tensor", "lift_fresh", "_to_copy", "copy_", "empty")
"""Operations that put a value somewhere and compute none; memory that is not written yet holds anything."""
OURS, LOOP = Path(__file__).parent, ("origin.py", "train.py", "optim.py")
FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)')
ANOMALY = re.compile(r"Function '(\w+)' returned nan values")


@dataclass(frozen=True)
class Operation:
    """An operation whose result is not finite. `phase` is forward, backward or update; `place` is a line of ours.

    `given` says what it was given that was not finite itself.
    """

    name: str
    made: str  # nan, inf
    phase: str
    place: str
    module: str
    given: str = ""


@dataclass
class Origin:
    """What is known of it: `inputs` of the batch and `weights` were not finite before anything was computed.

    `components` have a value (`value`) or a gradient (`gradient`) that is not, and `samples`, by their global index,
    do so each by itself. Without any of these the step came out finite.
    """

    operation: Operation | None = None
    infinity: Operation | None = None  # what made the infinity that the operation was given
    inputs: dict[str, int] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    components: dict[str, str] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)
    looked: int = 0

    @property
    def found(self) -> bool:
        """Whether anything was not finite."""
        return bool(self.operation or self.inputs or self.weights or self.components)


def origin(run: Run, micros: Iterable[Batch]) -> Origin:
    """Take the next step of a run, which is to be one that is not finite, and look at everything in it."""
    found = Origin(weights=[name for name, weight in run.model.named_parameters() if not _finite(weight)])
    watch = trainwatch.Recorder("replay.jsonl", enabled=False)
    watch.attach(run.model, run.optimizer, scaler=run.precision.scaler)
    at = run.applied.next
    for batch in micros:
        moved = batch.to(run.device)
        _data(found, moved)
        if not found.weights:
            _components(found, run, moved, at)
        with _traced(run) as trace:
            accumulate(run, moved, at, watch)
            if batch.micro.closes:
                trace.phase = "update"
                apply(run, moved, at, watch)
        broken = found.components or not all(map(_finite, run.model.parameters()))
        found.operation = trace.nan or (trace.inf if broken else None)
        found.infinity = trace.inf if trace.nan and "inf" in trace.nan.given else None
        if found.found:
            break
    return found


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _data(found: Origin, batch: Batch) -> None:
    """What of the batch itself is not finite."""
    for name in TENSORS:
        bad = int((~torch.isfinite(getattr(batch, name))).sum())
        found.inputs |= {name.rpartition("_")[0]: bad} if bad else {}


def _components(found: Origin, run: Run, batch: Batch, at: int) -> None:
    """Which components are not finite in the micro-batch, and which of its samples are so alone."""
    drawn = torch.get_rng_state()  # looking draws no number that the step would have had
    found.components = _broken(run, batch, at)
    for row in range(batch.micro.size):
        one = replace(batch, **{name: getattr(batch, name)[row : row + 1] for name in TENSORS})
        found.looked += 1
        if _broken(run, one, at):
            found.samples.append(batch.micro.first + row)
    torch.set_rng_state(drawn)


def _broken(run: Run, batch: Batch, at: int) -> dict[str, str]:
    """Components with a weight whose value, or whose gradient over the parameters, is not finite."""
    weights, scale = run.running.weights(at), run.precision.scaler.get_scale()
    found = forward(run, batch, at)[1].components
    live = {name: loss * weights.get(name, 1.0) for name, loss in found.items() if weights.get(name, 1.0) != 0}
    broken = {name: "value" for name, loss in live.items() if not _finite(loss)}
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    for name in live.keys() - broken.keys():
        if live[name].requires_grad:
            grads = torch.autograd.grad(live[name] * scale, parameters, retain_graph=True, allow_unused=True)
            broken |= {} if all(grad is None or _finite(grad) for grad in grads) else {name: "gradient"}
    return {name: broken[name] for name in live if name in broken}


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at every operation: the first whose result holds a NaN, and the first before it that makes an infinity."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase, self.modules = "forward", list[str]()
        self.nan: Operation | None = None
        self.inf: Operation | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.nan is not None:
            return func(*args, **(kwargs or {}))
        given = _kinds(tree_leaves((args, kwargs or {})))
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        if any(name.startswith(fill) or f"_{fill}" in name for fill in FILLS):
            return out
        made = _kinds(tree_leaves(out))
        if "nan" in made:
            self.nan = self._seen(name, "nan", given)
        elif "inf" in made and not given and self.inf is None:
            self.inf = self._seen(name, "inf", given)
        return out

    def _seen(self, name: str, made: str, given: set[str]) -> Operation:
        came = " and ".join(sorted(given))
        node = torch._C._current_autograd_node()
        if node is None:
            frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_stack()]
            return Operation(name, made, self.phase, _place(frames), "".join(self.modules[-1:]), came)
        metadata: dict[str, list[str]] = node.metadata  # type: ignore[assignment]  # torch declares a method
        told = "".join(metadata.get("traceback_", ()))  # where the forward pass made this node
        place = _place([(file, int(line), function) for file, line, function in FRAME.findall(told)])
        return Operation(f"{name} in {node.name()}", made, "backward", place, "", came)


def _kinds(values: Iterable[Any]) -> set[str]:
    """What is not finite in some tensors."""
    floats = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    kinds = {"nan"} if any(bool(value.isnan().any()) for value in floats) else set()
    return kinds | ({"inf"} if any(bool(value.isinf().any()) for value in floats) else set())


def _place(frames: Iterable[tuple[str, int | None, str]]) -> str:
    """The innermost line of the trainer, the loop's own apart."""
    ours = [(Path(file), line, function) for file, line, function in frames if Path(file).is_relative_to(OURS)]
    inner = [frame for frame in ours if frame[0].name not in LOOP] or ours[-1:]
    if not inner:
        return ""
    file, line, function = inner[-1]
    return f"{file.relative_to(OURS.parent).as_posix()}:{line} in {function}"


@contextlib.contextmanager
def _traced(run: Run) -> Iterator[_Trace]:
    """Every operation inside is looked at, with anomaly detection on; the error that it raises is an answer."""
    trace, hooks = _Trace(), []
    for prefix, whole in (("model", run.model), ("loss", run.loss)):
        for name, module in whole.named_modules():
            label = f"{prefix}.{name}" if name else prefix
            hooks += [
                module.register_forward_pre_hook(lambda *_, label=label: trace.modules.append(label)),
                module.register_forward_hook(lambda *_: trace.modules.pop() and None, always_call=True),
            ]
    try:
        with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True), trace:
            warnings.simplefilter("ignore")  # anomaly detection says that it is slow
            yield trace
    except RuntimeError as error:
        anomaly = ANOMALY.search(str(error))
        if anomaly is None:
            raise
        trace.nan = trace.nan or Operation(anomaly.group(1), "nan", "backward", "", "")
    finally:
        for hook in hooks:
            hook.remove()
