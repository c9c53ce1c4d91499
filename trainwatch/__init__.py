"""trainwatch: the flight recorder and the doctor of PyTorch training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwatch.diagnosis import diagnose
    from trainwatch.readers import read
    from trainwatch.recorder.recorder import Recorder
    from trainwatch.run import Run
    from trainwatch.schema import Finding

__all__ = ["Finding", "Recorder", "Run", "diagnose", "read"]
__version__ = "0.1.0"

_HOMES = {
    "Finding": "trainwatch.schema",
    "Recorder": "trainwatch.recorder.recorder",
    "Run": "trainwatch.run",
    "diagnose": "trainwatch.diagnosis",
    "read": "trainwatch.readers",
}


def __getattr__(name: str) -> Any:
    """Load a public name where it is first used, so that a training process pays only for the recorder."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainwatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
