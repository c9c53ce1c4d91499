"""The request that a run stop: ``<run>.stop``, with the finding it is for, which the run's own recorder looks for."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import catalogue
from trainwatch.run import Run
from trainwatch.schema import SEVERITIES, Finding, Severity
from trainwatch.text.wording import clean, strict

DEAD = "lifecycle"
"""The family of rules that say how a run ended, or hangs: there is nothing to stop, or nobody to hear of it."""


class StopOn:
    """Asks a run to stop, once for each of its processes, when it shows a finding of ``severity`` or worse.

    The finding has to hold now, of rows that this very process wrote: not one that is over, not one from before a
    resume, and none of a run that does not run.
    """

    def __init__(self, severity: Severity) -> None:
        self._least, self._asker = SEVERITIES.index(severity), f"trainwatch watch --stop-on {severity}"
        self._dead = {name for name, rule in catalogue().items() if rule().family == DEAD}
        self._asked: set[tuple[str, int]] = set()
        self._said: dict[str, str] = {}

    @property
    def notices(self) -> list[str]:
        """What was done, and what could not be."""
        return list(self._said.values())

    def look(self, run: Run, said: Diagnosis, ended: bool) -> None:
        """A run has changed."""
        process = str(run.header.raw.get("id") or run.source), len(run.headers)
        if ended or said.status != "running" or process in self._asked:
            return
        finding = next((one for one in said.findings if self._counts(run, one)), None)
        if finding is None:
            return
        name = clean(run.name, 80)
        if run.format != "trainwatch":
            self._said[name] = f"--stop-on: {name} has no recorder that would look for a stop file"
            return
        path = run.source.with_suffix(".stop")
        try:
            self._write(path, run, finding)
        except OSError as error:
            self._said[name] = f"--stop-on: {path} cannot be written ({error.strerror}); it is tried again"
            return
        self._asked.add(process)
        self._said[name] = f"asked {name} to stop: {clean(finding.message)}"

    def close(self, patience: float) -> None:
        """Nothing waits."""

    def _counts(self, run: Run, finding: Finding) -> bool:
        resumed = run.header.resumed_from
        fresh = resumed is None or finding.last_step > resumed
        return finding.rank >= self._least and finding.state == "active" and fresh and finding.rule not in self._dead

    def _write(self, path: Path, run: Run, finding: Finding) -> None:
        """All of it or nothing: the recorder may look at any moment."""
        request = {
            "version": 1,
            "by": f"{self._asker} (process {os.getpid()} on {socket.gethostname()})",
            "asked": time.time(),
            "run": run.name,
            **({"id": run.header.raw["id"]} if "id" in run.header.raw else {}),
            "finding": finding.to_dict(),
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps(strict(request), allow_nan=False, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
