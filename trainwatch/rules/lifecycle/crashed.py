"""See the rule's docstring: it is the page that `trainwatch rules crashed` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from trainwatch.header import Header, mapping, number, text
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event, Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk


class Cause(NamedTuple):
    """A kind of crash: what it is called, how it is known, and what to do about it."""

    name: str
    pattern: str
    advice: str
    severity: Severity = "critical"


CAUSES = (  # the first that fits counts: a checkpoint's shapes before shapes, NCCL before CUDA
    Cause("an interruption by hand", r"^KeyboardInterrupt", "Nothing is broken; resume if it should go on.", "info"),
    Cause(
        "the scheduler",
        r"SIGTERM|SIGUSR[12]|got signal: 15|DUE TO (?:TIME LIMIT|PREEMPTION)|\bpreempted\b",
        "Resume from the last checkpoint; write one when SIGTERM comes.",
        "info",
    ),
    Cause(
        "a setting of the wrong type",
        r"not supported between instances of .*'str'|unsupported operand type.*'str'|must be real number, not str"
        r"|'str' object cannot be interpreted|can't multiply sequence by non-int|could not convert string to float",
        "YAML 1.1 reads 5e-5 as text: write 5.0e-5, or convert the setting where it is read.",
    ),
    Cause(
        "device memory that ran out",
        r"OutOfMemoryError|(?:CUDA|HIP|MPS|XPU)\b.*out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "Halve the batch and double the accumulation, or checkpoint activations; see whether memory/* had grown.",
    ),
    Cause(
        "host memory that ran out",
        r"^MemoryError|Cannot allocate memory|can't allocate memory|killed by signal: Killed|bus error",
        "Use fewer loader workers or a larger shared memory, and look for lists that grow with every step.",
    ),
    Cause("a full disk", r"No space left on device|Disk quota exceeded", "Free space, keep fewer checkpoints."),
    Cause(
        "a missing module",
        r"^ModuleNotFoundError|^ImportError|No module named|cannot import name",
        "Install it into the environment that the job uses, or correct the name in the config.",
    ),
    Cause(
        "a checkpoint that does not fit the model",
        r"loading state_dict|Missing key\(s\)|Unexpected key\(s\)|PytorchStreamReader|invalid load key",
        "Load the checkpoint into the architecture that wrote it; compare both configs.",
    ),
    Cause(
        "a missing file",
        r"^FileNotFoundError|No such file or directory|^NotADirectoryError|does not exist",
        "Correct the path, or make it absolute: the job may run in another directory.",
    ),
    Cause(
        "a collective that failed",
        r"NCCL|ProcessGroup|DistBackendError|DistStoreError|Gloo|collective|Watchdog caught",
        "Look at the rank that stopped first; one that crashed or waits for data makes all others time out.",
    ),
    Cause(
        "a CUDA error",
        r"device-side assert|illegal memory access|CUDA error|CUDNN_STATUS|CUBLAS_STATUS|CUDA driver",
        "Run it again with CUDA_LAUNCH_BLOCKING=1: an index out of range is the usual reason, a bad card the next.",
    ),
    Cause(
        "shapes that do not fit",
        r"size mismatch|shapes? .*(?:cannot be multiplied|mismatch|invalid for input)|must match the size"
        r"|size of tensor|mat1 and mat2|could not be broadcast|Sizes of tensors",
        "Print the shapes one line above; compare the model's sizes with the data's and the checkpoint's.",
    ),
    Cause(
        "a missing setting or key",
        r"^KeyError|ConfigAttributeError|ConfigKeyError|MissingMandatoryValue|unexpected keyword argument",
        "Add the key, or correct its name.",
    ),
    Cause(
        "a value that is no number",
        r"^FloatingPointError|\b(?:nan|inf)\b.*loss|loss.*\b(?:nan|inf)\b|non-?finite",
        "See which component or gradient went bad first, and resume from a checkpoint before that.",
    ),
    Cause("an assertion", r"^AssertionError", "Read the line that asserts: it says what was taken for granted."),
)
OTHER = Cause("an exception", "", "Read the last line of the traceback that lies in your own code.")

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
LONGEST = 4000  # characters of a message that are searched
MOST = 20  # settings that are named


@dataclass
class Crashed(Rule):
    """The run ended with an exception.

    What it sees:
        An `end` record that says failed, or an exception after which no step came; sorted by its cause. Where a number
        was compared with text, every setting of the config that is a number written as text is named.

    Why it matters:
        The run is over, and its machine is idle. Most crashes are one wrong setting that shows only when it is used,
        and comes back at the next start.

    What to do:
        What the advice says for this cause; then resume from the last checkpoint.

    When it is wrong:
        A run that was interrupted by hand or by the scheduler did not crash: that is reported as info.

    References:
        LlamaFactory #4149, DeepForest #881: `5e-5` read as text by YAML 1.1, the latter after six hours of training.
    """

    causes: ClassVar[tuple[str, ...]] = ("killed",)

    _step: int = field(default=0, init=False)
    _written_as_text: list[tuple[str, float | int]] = field(default_factory=list, init=False)
    _exception: Event | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """Which settings are numbers written as text."""
        self._step = header.resumed_from or 0
        self._written_as_text = _written_as_text(header.config)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Whatever was raised before a step was survived."""
        if len(chunk):
            self._step, self._exception = int(chunk.step[-1]), None
        return ()

    def event(self, event: Event) -> Iterator[Finding]:
        """The run's last word, if it is a bad one."""
        if event.get("event") in ("exception", "oom"):
            self._exception = {name: event.get(name) for name in ("event", "step", "type", "message", "traceback")}
        elif event.get("kind") == "end" and event.get("status") == "failed":
            said = mapping(event.get("exception")) or self._exception or {}
            yield self._finding({"message": event.get("reason"), **said}, event.get("step"))

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """An exception that nothing followed, in a process that is dead without having said so."""
        if self._exception is not None and run.end is None and run.status() in ("killed", "never-started"):
            yield self._finding(self._exception, self._exception.get("step"))

    def _finding(self, said: dict[str, Any], step: Any) -> Finding:
        kind = text(said.get("type")) or ("OutOfMemoryError" if said.get("event") == "oom" else "")
        message = str(said.get("message") or "")[:LONGEST]
        spoken = ": ".join(part for part in (kind, message.strip()) if part) or "no exception was recorded"
        cause = next((cause for cause in CAUSES if re.search(cause.pattern, spoken, re.IGNORECASE)), OTHER)
        at = number(step)
        at = self._step if at is None else int(at)
        settings = (
            self._settings(str(said.get("traceback") or "")) if cause.name == "a setting of the wrong type" else {}
        )
        listed = ", ".join(f"{path} ({value:g})" for path, value in settings.items())
        first = spoken.splitlines()[0][:300]
        return self.finding(
            cause.severity,
            "run",
            (at, at),
            f"The run ended at step {at:,} by {cause.name}: {first.rstrip('.')}."
            + (f" Numbers that the config holds as text: {listed}." if settings else ""),
            evidence={"step": at, "exception": kind or "unknown", "cause": cause.name},
            advice=cause.advice,
            patch=settings,
            confidence=0.7 if cause is OTHER else 0.95,
        )

    def _settings(self, traceback: str) -> dict[str, float | int]:
        """Settings that may be the culprit: those whose name stands in the traceback, else all."""
        named = [item for item in self._written_as_text if re.search(rf"\b{re.escape(_leaf(item[0]))}\b", traceback)]
        return dict(named or self._written_as_text)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _written_as_text(config: dict[str, Any]) -> list[tuple[str, float | int]]:
    """Dotted path and value of every setting that is a number written as text."""
    found: list[tuple[str, float | int]] = []
    waiting = [("", config)]
    while waiting and len(found) < MOST:
        prefix, branch = waiting.pop(0)
        for key, item in branch.items():
            if isinstance(item, dict):
                waiting.append((f"{prefix}{key}.", item))
            elif isinstance(item, str) and len(item) < 40 and NUMBER.fullmatch(item.strip()):
                whole = item.strip().lstrip("+-").isdigit()
                found.append((f"{prefix}{key}", int(item) if whole else float(item)))
    return found[:MOST]
