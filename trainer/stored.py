"""A trained model, out of its checkpoint."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer import checkpoint
from trainer.config import UsageError
from trainer.horizon import Micro
from trainer.loading import again
from trainer.run import Run, build
from trainer.tasks.peptide.data import collate
from trainer.tasks.peptide.evaluation import residues_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from trainer.tasks.peptide.data import Spectrum


@dataclass(frozen=True)
class Stored:
    """A run built from a checkpoint's config; `models` are its weights: `live`, and `average` where one is kept."""

    path: Path
    step: int
    run: Run
    models: dict[str, nn.Module]

    @torch.no_grad()
    def answers(self, name: str, spectra: list[Spectrum]) -> NDArray[np.integer]:
        """The last answers of the model called `name`: tokens [B, S], spelled from the C-terminus."""
        batch = collate(spectra, self.run.shape, Micro(0, len(spectra), 0, 1.0, True)).to(self.run.device)
        with self.run.precision.autocast():
            logits_TBSV = self.models[name](batch).logits_TBSV
        found: NDArray[np.integer] = logits_TBSV[-1].argmax(-1).cpu().numpy()
        return found

    def peptides(self, name: str, spectra: list[Spectrum]) -> list[NDArray[np.integer]]:
        """The same as peptides: each its residues' tokens, from the N-terminus."""
        return [residues_of(answer) for answer in self.answers(name, spectra)]


def stored(path: Path, overrides: list[str]) -> Stored:
    """The model of a checkpoint, its config overridden. Raises UsageError for a file or a setting that does not fit."""
    if not path.is_file():
        raise UsageError(f"checkpoint {path} is no file; name one such as logs/NAME.checkpoints/best.pt")
    state = checkpoint.load(path)
    run = build(again(f"checkpoint {path}", state["config"], overrides))
    weights = {"live": state["model"]} | ({"average": state["ema"]} if "ema" in state else {})
    try:
        models = {name: _wearing(run.model, tensors) for name, tensors in weights.items()}
    except RuntimeError as error:
        kind = f"size={run.config.size} model.kind={run.config.model.kind}"
        raise UsageError(f"checkpoint {path} holds no model of {kind}; leave out what changes it.") from error
    return Stored(path, state["step"], run, models)


def _wearing(model: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """A copy of the model with these weights, for evaluation."""
    worn = copy.deepcopy(model).eval()
    worn.load_state_dict(weights)
    return worn
