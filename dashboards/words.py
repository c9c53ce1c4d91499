"""What the pages say: severities, states, numbers and times in words. The words never rest on colour alone."""

from __future__ import annotations

import math
import time

from trainwatch.diagnosis import Diagnosis
from trainwatch.schema import Status
from trainwatch.text.wording import duration

SYMBOLS: dict[str, str] = {"critical": "◆", "warning": "▼", "info": "●", "ok": "✓", "unknown": "?"}  # as in the plots
WORDS: dict[str, str] = {
    "critical": "Critical",
    "warning": "Warning",
    "info": "Info",
    "ok": "No finding",
    "unknown": "Not judged",
}
STATES: dict[Status, str] = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
    "killed": "killed",
    "stalled": "stalled",
    "never-started": "never started",
}


def health(told: Diagnosis) -> str:
    """The key of a run's health in :data:`SYMBOLS` and :data:`WORDS`; not ok where a rule broke."""
    return told.worst or ("unknown" if told.failed else "ok")


def number(value: float | int | str) -> str:
    """A number as a person writes it; what is no number as it stands."""
    if isinstance(value, bool | str):
        return {"nan": "NaN", "inf": "∞", "-inf": "-∞"}.get(str(value), str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{value:.4g}"


def age(touched: float) -> str:
    """How long ago a run wrote last; coarse, so that it does not change with every tick."""
    since = time.time() - touched
    return "now" if since < 60 else f"{duration(since)} ago"


def broken(told: Diagnosis) -> str:
    """Which rules broke on a run, in words; empty where none did."""
    verb = "broke on this run and was" if len(told.failed) == 1 else "broke on this run and were"
    return f"{', '.join(told.failed)} {verb} left out" if told.failed else ""


def newest(runs: int) -> str:
    """``, the newest of 3 runs in this file``; empty for the only one."""
    return f", the newest of {runs} runs in this file" if runs > 1 else ""
