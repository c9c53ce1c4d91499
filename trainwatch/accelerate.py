"""A run of a loop with Accelerate, recorded: ``Accelerator(log_with=trainwatch.accelerate.Tracker("run.jsonl"))``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from trainwatch.recorder.guests import guarded
from trainwatch.recorder.naming import by_split, of_training
from trainwatch.recorder.recorder import Recorder


class Tracker(GeneralTracker):
    """Records what is given to ``accelerator.log``; ``path`` and ``options`` are those of :class:`trainwatch.Recorder`.

    Calls for one step are one row, ``train_loss_ce`` as ``loss/ce``; what is named ``eval_...`` or ``val/...`` is an
    evaluation. Without a step each call is the next one. For rates, norms and updates besides, after ``init_trackers``:
    ``accelerator.get_tracker("trainwatch").attach(model, optimizer)``.
    """

    name = "trainwatch"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__()
        self.path, self.options = path, options
        self.watch: Recorder | None = None
        self._step: int | None = None  # whose row waits for more
        self._taken = 0  # steps that the attached optimiser has taken since the last row

    @property
    def tracker(self) -> Recorder | None:
        """The Recorder; None before ``init_trackers``, and on other processes than the first."""
        return self.watch

    @property
    def should_stop(self) -> bool:
        """Whether somebody wrote ``<run>.stop``: known to the first process alone, so tell the others.

        ``if tracker.should_stop: accelerator.set_trigger()``, and on all: ``if accelerator.check_trigger(): break``.
        """
        return self.watch is not None and self.watch.should_stop

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """What was given to ``init_trackers(config=...)`` is the run's config."""
        self.watch = Recorder(self.path, **{"config": dict(values), "rank": 0, "world_size": 1, **self.options})

    @on_main_process
    @guarded
    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Values of a training step, or of an evaluation at it."""
        if self.watch is None:
            self.store_init_configuration({})
        assert self.watch is not None
        row, evaluations = of_training(values), by_split(values)
        if row and (step is None or step != self._step):
            self._flush()
            self._step = self.watch.steps + 1 if step is None else step
        self.watch.log(row)
        for split, measured in evaluations.items():
            self.watch.evaluate(self._at(step), split, measured)

    @on_main_process
    def attach(self, model: Any, optimizer: Any, scaler: Any = None) -> None:
        """Read norms, rates and AMP state from these, as ``prepare`` returned them."""
        if self.watch is None:
            raise RuntimeError("attach(): there is no run yet; call accelerator.init_trackers(...) before it")
        plain = getattr(optimizer, "optimizer", optimizer)
        plain.register_step_pre_hook(self._before_step)
        self.watch.attach(getattr(model, "module", model), plain, scaler or getattr(optimizer, "scaler", None))

    @guarded
    def _before_step(self, *_: Any) -> None:
        """A row that was logged after its own step must not wait until it has the next one's rates."""
        if self._taken:
            self._flush()
        self._taken += 1

    def _at(self, step: int | None) -> int:
        """The step that an evaluation belongs to."""
        assert self.watch is not None
        return step if step is not None else self._step or self.watch.steps

    def _flush(self) -> None:
        """The row of the step that is complete."""
        if self.watch is not None and self._step is not None:
            self.watch.steps = self._step - 1
            self.watch.step()
            self._taken = 0
        self._step = None

    @on_main_process
    @guarded
    def finish(self) -> None:
        """``accelerator.end_training()``."""
        self._flush()
        if self.watch is not None:
            self.watch.close()
