"""What the first layer of a model reads, in training now and then, and in evaluations: its scale; loads torch.

Not what the model is given: it may divide pixels by 255 itself, and ids and masks have no scale. A linear, a
convolutional or a recurrent layer that is called before all others reads data, unless a gradient goes further back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook

from trainwatch.recorder.modes import compiles
from trainwatch.recorder.probes import Fault

READERS: Final = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase)
NAMES: Final = ("data/read_mean", "data/read_std", "data/read_absmax")
SAMPLE: Final = 4096  # numbers that are looked at, spread over all: 20 to 40 us, and no copy of a batch
VAIN: Final = 2  # looks in a row that found something else than data: tokens, graphs of ids


class Entrance:
    """Of one or several models: what is read first counts.

    A hook of torch's own sees it, from `look()` or `begin()` until it has; nothing is put on a module, so that it can
    be copied, saved and scripted. Where this process compiles anything there is none, for it would be compiled again.
    """

    def __init__(self, models: Iterable[nn.Module], fault: Fault) -> None:
        readers = (module for model in models for module in model.modules() if isinstance(module, READERS))
        self._readers = {id(module): module for module in readers}  # not every module has a hash
        self._fault = fault
        self._hook: Any = None
        self._vain = 0
        self._reader = 0  # which of them read data in training: another one reads something else
        self._evaluates = self._interrupted = False
        self._seen: Tensor | None = None  # in training
        self._held: Tensor | None = None  # in the evaluation that goes on, or has ended

    def look(self) -> None:
        """At the training step that comes now."""
        if self._seen is None and not self._evaluates:
            self._wait()

    def begin(self) -> None:
        """An evaluation begins: its first batch is looked at."""
        self._interrupted, self._evaluates, self._held = self._hook is not None, True, None
        self._wait()

    def end(self) -> None:
        """It is over."""
        self._evaluates = False
        if self._interrupted:
            self._wait()
        else:
            self.detach()

    def close(self) -> None:
        """Look never again, though an evaluation may go on."""
        self._readers = {}
        self.detach()

    def detach(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def collect(self) -> Tensor | None:
        """Mean, spread and largest magnitude of what was read since `look()`. float32 [3]"""
        self.detach()
        seen, self._seen = self._seen, None
        return seen

    def held(self) -> Tensor | None:
        """The same of the evaluation that was last."""
        held, self._held = self._held, None
        return held

    def _wait(self) -> None:
        if self._hook is None and self._readers and not compiles():
            self._hook = register_module_forward_pre_hook(self._passed)

    def _passed(self, module: nn.Module, given: Any) -> None:
        """Something enters a module."""
        if torch.compiler.is_compiling() or id(module) not in self._readers:
            return
        try:
            if not _traced() and given and (self._evaluates or torch.is_grad_enabled()) and not _alone(given[0]):
                self._take(module, given[0])
        except Exception as fault:
            self.detach()
            self._readers = {}
            self._fault("the look at what the first layer reads", fault)

    def _take(self, module: nn.Module, read: Any) -> None:
        """The first layer of all: what it reads is data, or there is none to be looked at."""
        self.detach()
        data = _data(read)
        if self._evaluates:
            self._held = scale(read) if data and id(module) == self._reader else None
            return
        self._vain = 0 if data else self._vain + 1
        if data:
            self._seen, self._reader = scale(read), id(module)
        elif self._vain >= VAIN:
            self._readers = {}


def _traced() -> bool:
    """Whether somebody traces, transforms or replays each operation (selective checkpoints do): ours are not his."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
    return transformed or torch._C._len_torch_dispatch_stack() > 0


def scale(read: Tensor) -> Tensor:
    """Mean, spread and largest magnitude of some of its numbers, where they lie. float32 [3]"""
    with torch.no_grad():
        if read.is_contiguous():
            stride = (read.numel() // SAMPLE) | 1
            while any(math.gcd(stride, size) > 1 for size in read.shape):  # else it would fall into step with columns
                stride += 2
            some = read.detach().reshape(-1)[::stride].float()
        else:
            each = int(SAMPLE ** (1 / read.ndim))  # along each dimension, of what does not lie in one piece
            some = read.detach()[tuple(slice(None, None, -(-size // each)) for size in read.shape)].float()
        return torch.stack([some.mean(), some.std(correction=0), some.abs().amax()])


def _alone(read: Any) -> bool:
    """Whether it is one number a sample: a time, which is one for all of a batch, is read beside the data."""
    return type(read) is Tensor and not read.is_nested and read.ndim > 0 and read.numel() <= len(read)


def _data(read: Any) -> bool:
    """Whether it is plain data."""
    if type(read) is not Tensor or read.requires_grad or not read.is_floating_point() or read.layout != torch.strided:
        return False
    if read.ndim < 2 or not read.numel() or read.is_meta or read.is_nested:
        return False
    return not (read.is_cuda and torch.cuda.is_current_stream_capturing())
