"""What a run's page tells below its plots, as plain data: what happened when, what the model said, how the log ends."""

from __future__ import annotations

from dataclasses import dataclass

from trainwatch.diagnosis import Diagnosis
from trainwatch.header import mapping, number, text
from trainwatch.report import place
from trainwatch.report.moments import Moment, good_checkpoint, moments
from trainwatch.report.moments import checkpoints as written_checkpoints
from trainwatch.run import Run

SAMPLES = 12  # outputs of the newest sample that are shown
OUTPUT = 300  # characters of one
CHECKPOINTS = 100


@dataclass(frozen=True)
class Story:
    """``checkpoints`` are (step, path, metric, best), the newest first; ``samples`` the newest outputs."""

    moments: tuple[Moment, ...] = ()
    checkpoints: tuple[tuple[str, str, str, bool], ...] = ()
    good_checkpoint: str = ""
    sampled: int | None = None
    samples: tuple[str, ...] = ()
    traceback: str = ""
    tail: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, run: Run, diagnosis: Diagnosis) -> Story:
        """The story of a run as it stands; the caller holds its lock."""
        sampled, samples = _newest_outputs(run)
        return cls(
            tuple(moments(run, diagnosis)),
            tuple(_checkpoints(run)),
            good_checkpoint(run, diagnosis.root_cause),
            sampled,
            samples,
            place.traceback(run),
            tuple(place.tail(run.source)),
            tuple(place.environment(run)),
        )


def _checkpoints(run: Run) -> list[tuple[str, str, str, bool]]:
    written = written_checkpoints(run)
    rows = []
    for event in written[: -CHECKPOINTS - 1 : -1]:
        step, metric = number(event.get("step")), number(event.get("metric"))
        if metric is None:
            metric = next(iter(value for value in mapping(event.get("metric")).values() if number(value)), None)
        shown = f"{metric:.4g}" if isinstance(metric, int | float) else ""
        rows.append((f"{int(step or 0):,}", text(event.get("path")) or "", shown, bool(event.get("best"))))
    return rows


def _newest_outputs(run: Run) -> tuple[int | None, tuple[str, ...]]:
    """Step and texts of the newest sample that has outputs."""
    outputs = run.sample.text.get("outputs", {})
    row = max((row for row, value in outputs.items() if value and run.sample.live[row]), default=None)
    if row is None:
        return None, ()
    listed = outputs[row] if isinstance(outputs[row], list) else [outputs[row]]
    return int(run.sample.step[row]), tuple(str(one)[:OUTPUT] for one in listed[:SAMPLES])
