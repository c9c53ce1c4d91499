"""A run of Hugging Face's Trainer, recorded: ``callbacks=[trainwatch.transformers.Callback("run.jsonl")]``.

The Trainer's own log hides what is not finite (``logging_nan_inf_filter`` puts an average in its place) and is the mean
of many steps; here the loss is what the model returned in each step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainwatch.recorder.guests import Agreement, agreed_end, guarded
from trainwatch.recorder.naming import of_training
from trainwatch.recorder.recorder import Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

COSTS = ("_runtime", "_samples_per_second", "_steps_per_second", "_jit_compilation_time", "_model_preparation_time")
"""How the Trainer names what an evaluation cost: no quality of the model."""
KNOWN = {"loss", "learning_rate", "epoch", "grad_norm"}
"""In the Trainer's log, what is recorded otherwise."""
SCHEDULES = {"linear": "linear", "cosine": "cosine"}
"""The Trainer's schedules that go from the rate to 0 over the whole run, and what the format calls them."""


class Callback(TrainerCallback):
    """Records each optimiser step of a ``transformers.Trainer``, its evaluations and checkpoints.

    ``path`` and ``options`` are those of :class:`trainwatch.Recorder`; config, horizon and rank are the Trainer's. The
    loss is that of the model's outputs, in nats as the model gives it: the mean of the micro-batches, or their sum
    where the model was told the items of the whole batch. Where the Trainer computes the loss from the outputs itself
    (label smoothing, ``compute_loss_func``), only its log has it, and it is taken from there. The gradient's norm
    before clipping is in the log, too: at every step with ``logging_steps=1``. A stop file ends the training after the
    step, with a checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.path, self.options = path, options
        self.watch: Recorder | None = None
        self._losses: list[Tensor] = []
        self._summed = False  # whether the micro-batches' losses are parts of a sum
        self._open = False  # whether a step is complete whose row waits for the Trainer's log
        self._hooks: list[Any] = []
        self._agreement = Agreement(1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """The run's header; a Trainer that goes on from a checkpoint goes on with the run."""
        resumed = state.global_step or None
        if self.watch is None or not resumed:
            about = {"config": args.to_dict(), "total_steps": state.max_steps, "horizon": _horizon(args)}
            about |= {"max_grad_norm": args.max_grad_norm or None, "schedules": _schedules(args, state, parts)}
            place = {"rank": args.process_index, "world_size": args.world_size}
            self.watch = Recorder(self.path, **{**about, **place, "resume": resumed, **self.options})
        optimizer = parts.get("optimizer")
        self.watch.attach(
            parts["model"], getattr(optimizer, "optimizer", optimizer), getattr(optimizer, "scaler", None)
        )
        self._hooks = [parts["model"].register_forward_hook(self._see, with_kwargs=True)]
        self._agreement = Agreement(args.world_size)

    @guarded
    def _see(self, model: nn.Module, _: Any, told: Mapping[str, Any], outputs: Any) -> None:
        """What the model returns while it is trained; a fault of ours must not become the run's."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is not None and model.training and getattr(loss, "requires_grad", False) and loss.numel() == 1:
            self._losses.append(loss.detach())
            self._summed = told.get("num_items_in_batch") is not None

    @guarded
    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **parts: Any) -> None:
        """The first micro-batch of a step."""
        self._flush()
        self._losses.clear()

    @guarded
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """An optimiser step was attempted; if the Trainer is about to log it, the row waits for that."""
        if self.watch is None:
            return
        self._heed(control)
        self.watch.steps = state.global_step - 1
        row: dict[str, Any] = {} if state.epoch is None else {"epoch": state.epoch}
        if self._losses:
            whole = sum(self._losses[1:], self._losses[0])
            across = args.world_size if args.average_tokens_across_devices else 1
            row["loss"] = whole * across if self._summed else whole / len(self._losses)
        self.watch.log(row)
        self._open = True
        if not control.should_log:
            self._flush()

    @guarded
    def _heed(self, control: TrainerControl) -> None:
        """A stop file, if there is one."""
        if self.watch is not None and self._agreement.reached(self.watch.should_stop):
            control.should_training_stop = control.should_save = True

    @guarded
    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Mapping[str, Any] | None = None, **parts: Any
    ) -> None:
        """What the Trainer, or one built upon it, says of the step."""
        told = {name: value for name, value in (logs or {}).items() if isinstance(value, Real)}
        if self.watch is None or not self._open:
            return
        row = of_training({name: value for name, value in told.items() if name not in KNOWN})
        row |= {name: told[name] for name in ("grad_norm",) if name in told}
        if not self._losses and "loss" in told:
            row["loss"] = told["loss"]
        self.watch.log(row)
        self._flush()

    @guarded
    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Mapping[str, Any] | None = None, **parts: Any
    ) -> None:
        """One evaluation; that of a named data set is a split of its own."""
        kept = {name.removeprefix("eval_"): v for name, v in (metrics or {}).items() if not name.endswith(COSTS)}
        split, values = "eval", {name: value for name, value in kept.items() if isinstance(value, Real)}
        values.pop("epoch", None)
        named = next((name for name in values if name.endswith("_loss")), None)
        if named and "loss" not in values:
            split = named.removesuffix("_loss")
            values = {name.removeprefix(f"{split}_"): value for name, value in values.items()}
        if self.watch is not None and values:
            self.watch.evaluate(state.global_step, split, values)

    @guarded
    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **parts: Any) -> None:
        """A checkpoint was written."""
        if self.watch is not None:
            self.watch.checkpoint(f"{args.output_dir}/checkpoint-{state.global_step}", state.global_step)

    @guarded
    def on_train_end(self, args: Any, state: TrainerState, control: Any, **parts: Any) -> None:
        """The Trainer is done, by its horizon or by an early stop."""
        self._flush()
        for hook in self._hooks:
            hook.remove()
        if self.watch is not None:
            self.watch.close(**agreed_end(self.watch, state.global_step < state.max_steps))
        self._hooks, self.watch = [], None

    def _flush(self) -> None:
        """The row of the step that is complete."""
        if self.watch is not None and self._open:
            self.watch.step()
        self._open = False


def _horizon(args: TrainingArguments) -> dict[str, Any]:
    """What the planned steps are made of."""
    told = {"batch_size": args.train_batch_size * args.world_size, "accumulation": args.gradient_accumulation_steps}
    return told | ({"epochs": args.num_train_epochs} if args.max_steps <= 0 else {}) | {"processes": args.world_size}


def _schedules(args: TrainingArguments, state: TrainerState, parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The learning rate of each group as the arguments declare it."""
    kind = SCHEDULES.get(str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)))
    groups = getattr(parts.get("optimizer"), "param_groups", [])
    if kind is None or not groups or args.lr_scheduler_kwargs:
        return None
    form = {"kind": kind, "end": 0.0, "over_steps": state.max_steps, "warmup": args.get_warmup_steps(state.max_steps)}
    return {
        f"lr/{group.get('name', i)}": form | {"start": group.get("initial_lr", group["lr"])}
        for i, group in enumerate(groups)
    }
