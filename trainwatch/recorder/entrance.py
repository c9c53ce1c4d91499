"""What the first layer of a model reads, in training now and then, and in evaluations: its scale; loads torch.

Not what the model is given: it may divide pixels by 255 itself, and ids and masks have no scale. A linear, a
convolutional or a recurrent layer reads data where what enters it was computed from no weight that is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook

from trainwatch.recorder.inputs import scale
from trainwatch.recorder.modes import compiles
from trainwatch.recorder.probes import Fault

READERS: Final = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase)
VAIN: Final = 2  # looks in a row that found no such layer: tokens, graphs of ids


class Entrance:
    """Of one or several models: what is read first counts.

    A hook of torch's own sees it, from `look()` or `begin()` until it has; nothing is put on a module, so that it can
    be copied, saved and scripted. Where this process compiles anything there is none, for it would be compiled again.
    """

    def __init__(self, models: Iterable[nn.Module], fault: Fault) -> None:
        self._readers = {module for model in models for module in model.modules() if isinstance(module, READERS)}
        self._fault = fault
        self._hook: Any = None
        self._vain = 0
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

    def detach(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def collect(self) -> Tensor | None:
        """The scale of what was read since `look()`: mean, spread, largest magnitude, count of bad values. [4]"""
        seen, self._seen = self._seen, None
        if self._hook is not None:
            self.detach()
            self._vain += 1
            if self._vain >= VAIN:
                self._readers = set()
        return seen

    def held(self) -> Tensor | None:
        """The same of the evaluation that was last."""
        held, self._held = self._held, None
        return held

    def _wait(self) -> None:
        if self._hook is None and self._readers and not compiles():
            self._hook = register_module_forward_pre_hook(self._passed)

    def _passed(self, module: nn.Module, given: Any) -> None:
        """Data enters a module."""
        if torch.compiler.is_compiling() or module not in self._readers:
            return
        try:
            if given and (self._evaluates or torch.is_grad_enabled()) and _data(given[0]):
                self._take(scale(given[0]))
        except Exception as fault:
            self.detach()
            self._readers = set()
            self._fault("the look at what the first layer reads", fault)

    def _take(self, read: Tensor) -> None:
        self._vain = 0
        if self._evaluates:
            self._held = read
        else:
            self._seen = read
        self.detach()


def _data(read: Any) -> bool:
    """Whether it is plain data with several numbers a sample: a time, one for all of a batch, has no spread."""
    if type(read) is not Tensor or read.requires_grad or not read.is_floating_point() or read.layout != torch.strided:
        return False
    if read.ndim < 2 or read.numel() <= len(read) or read.is_meta or torch._C._functorch.peek_interpreter_stack():
        return False
    return not (read.is_cuda and torch.cuda.is_current_stream_capturing())
