"""A run of Lightning's Trainer, recorded: ``Trainer(callbacks=[trainwatch.lightning.Callback("run.jsonl")])``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import callbacks

from trainwatch.recorder.guests import Agreement, agreed_end, guarded
from trainwatch.recorder.naming import by_split, of_training
from trainwatch.recorder.recorder import Recorder

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.optim import Optimizer


class Callback(callbacks.Callback):
    """Records each optimiser step of a ``lightning.Trainer``, its evaluations and checkpoints.

    ``path`` and ``options`` are those of :class:`trainwatch.Recorder`; config, horizon and rank are the Trainer's. A
    step is a batch, or a group of accumulated ones, after which an optimiser was stepped: Lightning's own
    ``global_step`` counts those of every optimiser. The loss is what ``training_step`` returned; what it logged by
    ``self.log`` at this step stands beside it, ``train_loss_ce`` as ``loss/ce``. Norms are those before clipping. A
    stop file ends the fit after the step, as an early stop does; whether that leaves a checkpoint is
    ``ModelCheckpoint``'s.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.path, self.options = path, options
        self.watch: Recorder | None = None
        self.steps = 0  # of the run; a checkpoint keeps them
        self._loss: Tensor | None = None  # of the micro-batches of this step
        self._stepped = False  # whether an optimiser was
        self._agreement = Agreement(1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of Lightning keeps of the recording."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run's header; a fit that goes on from a checkpoint goes on with the run."""
        each, several = max(len(trainer.optimizers), 1), len(trainer.optimizers) > 1
        total = int(trainer.estimated_stepping_batches) if trainer.max_steps < 0 else trainer.max_steps // each
        about = {"config": dict(pl_module.hparams), "total_steps": total if total > 0 else None}
        about |= {"max_grad_norm": _limit(trainer), "horizon": {"accumulation": trainer.accumulate_grad_batches}}
        place = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        self.watch = Recorder(self.path, **{**about, **place, "resume": self.steps or None, **self.options})
        optimizers = {str(i): getattr(one, "optimizer", one) for i, one in enumerate(trainer.optimizers)}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.watch.attach(pl_module, optimizers if several else next(iter(optimizers.values()), None), scaler)
        self._agreement = Agreement(trainer.world_size)

    @guarded
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gradient is whole, unscaled, and not clipped yet."""
        self._stepped = True
        if self.watch is not None and len(trainer.optimizers) == 1:
            norm, limit = self.watch.gradients(), _limit(trainer)
            if limit:
                self.watch.log({"clip": (norm > limit).to(norm.dtype)})

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch; a row, if an optimiser was stepped after it."""
        self._heed(trainer)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if self.watch is not None and self._stepped:
            self.watch.log(self._row(trainer, batch_idx))
            self.watch.step()
            self.steps = self.watch.steps
            self._loss, self._stepped = None, False

    @guarded
    def _heed(self, trainer: Trainer) -> None:
        """A stop file, if there is one."""
        if self._stepped and self.watch is not None and self._agreement.reached(self.watch.should_stop):
            trainer.should_stop = True

    def _row(self, trainer: Trainer, batch_idx: int) -> dict[str, Any]:
        """Lightning divides each micro-batch's loss by their number, so that the sum is the mean."""
        told = {name.removesuffix("_step"): value for name, value in trainer.callback_metrics.items()}
        row = {name: value for name, value in of_training(told).items() if not name.endswith("_epoch")}
        whole = trainer.num_training_batches
        if isinstance(whole, int) and whole:
            row["epoch"] = trainer.current_epoch + (batch_idx + 1) / whole
        return row | ({} if self._loss is None else {"loss": self._loss})

    @guarded
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One evaluation; the one before the training is a trial."""
        if self.watch is not None and not trainer.sanity_checking:
            for split, values in by_split(trainer.callback_metrics).items():
                self.watch.evaluate(self.steps, split, values)

    @guarded
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is being written."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if self.watch is not None:
            self.watch.checkpoint(folder or trainer.default_root_dir, self.steps)

    @guarded
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning catches Ctrl-C, and closes what is open before anything else is raised."""
        if self.watch is not None:
            self.watch.on_exception(exception)
            self.watch = None

    @guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit is done, by its horizon or by an early stop."""
        if self.watch is not None:
            total = self.watch.total_steps
            early = trainer.should_stop and (total is None or self.steps < total)
            self.watch.close(**agreed_end(self.watch, early))
            self.watch = None


def _limit(trainer: Trainer) -> float | None:
    """The norm that gradients are clipped to, if they are clipped by their norm."""
    by_value = str(trainer.gradient_clip_algorithm or "norm").endswith("value")
    return None if by_value or not trainer.gradient_clip_val else float(trainer.gradient_clip_val)
