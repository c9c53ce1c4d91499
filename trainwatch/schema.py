"""The telemetry format, version 1: what a run file may say, and what is said about it.

A run file is JSON Lines. Every line is one strict JSON object with a ``kind`` (see :data:`KINDS`), ``time`` (Unix
seconds), ``elapsed`` (monotonic seconds since the process began to record) and, wherever one exists, ``step``.
A value that is no finite number is written as ``null`` and named in the record's ``nonfinite`` object
(``{"loss/precursor": "nan"}``), so a column stays numeric for every tool and *absent* stays apart from *not a number*.

Readers must keep and show keys and kinds that are not listed here: the format grows without breaking them.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    pass

VERSION: Final = 1

KINDS: Final[dict[str, str]] = {
    "run": "the header: first line of a run, and again on each resume",
    "step": "one attempted optimiser step",
    "eval": "one evaluation of one split",
    "sample": "outputs that the model generated, and their quality",
    "checkpoint": "a checkpoint was written",
    "event": "something happened: stage, resume, skip, exception, signal, oom, warning, intervention, monitor, note",
    "heartbeat": "the process lives, though no row was written for ten seconds",
    "end": "the run's last word: finished, stopped or failed",
}

RECORD: Final = re.compile(
    rb'^[\s\0\xef\xbb\xbf]*\{.{0,4096}?"kind"\s*:\s*"(?:' + "|".join(KINDS).encode() + rb')"', re.MULTILINE
)
"""A line of a run file; a reader of another format leaves a file with one among its first lines alone."""

NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""What one part of a channel's name may consist of; parts are joined by ``/``, pairs by ``~``."""

NONFINITE: Final[dict[str, int]] = {"nan": 1, "inf": 2, "-inf": 3}
"""The codes of ``Chunk.nonfinite``; 0 means the value is finite or absent."""

NONFINITE_NAMES: Final[dict[int, str]] = {code: name for name, code in NONFINITE.items()}

Severity = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")

Status = Literal["running", "finished", "stopped", "failed", "killed", "stalled", "never-started"]

SCHEDULE_KINDS: Final = ("constant", "linear", "cosine", "exponential")
"""What a declared schedule may be; ``trainwatch.schedule`` has each kind's formula."""

HEADER: Final[dict[str, str]] = {
    "schema": "version of this format",
    "run": "name of the run",
    "id": "identity of the run; a resume keeps it",
    "attempt": "1 for the first process, kept by a resume",
    "started": "RFC 3339, UTC",
    "host": "name of the machine",
    "pid": "process id",
    "process_started": "Unix seconds at which that process began",
    "rank": "rank of this process, from 0",
    "world_size": "number of processes",
    "command": "the command line, as a list",
    "python": "version of Python",
    "packages": "{name: version}",
    "device": "{name, memory in bytes}",
    "git": "{commit, dirty}",
    "config": "the configuration as resolved; secrets are redacted",
    "config_source": "{path, sha256, overrides}",
    "config_defaults": "{dotted path: the program's own default} of the settings that are off it",
    "total_steps": "optimiser steps that are planned",
    "horizon": "{epochs, samples, batch_size, accumulation, drop_last, processes}",
    "components": "{name: {unit, role: task | auxiliary | regulariser, description}}",
    "curriculum": "what the config declares: {name, source, sha256, stages: [{start, end, name, weights, data}]}",
    "curriculum_running": "the curriculum that the loop really uses, same form; absent means not known",
    "schedules": "{channel or bare name: {kind, start, end, begin, over_steps, warmup, floor, restarts, rate, clock}}",
    "clocks": "names of the counters that are recorded as clock/<name>",
    "max_grad_norm": "the clipping limit",
    "dtypes": "{declared, observed} in torch's names; a tensor that is told apart likewise: {<tensor>: {...}}",
    "parameters": "number of parameters",
    "modules": "[{name, depth, parameters, trainable, fresh: of the frozen, as an initialisation leaves them}]",
    "gradient_at": "the tensor at which the components' gradients are taken",
    "classes": "{class name: count in the training data}",
    "checkpoint_every": "steps between two checkpoints",
    "outside_at": "components that do not depend on the tensor at gradient_at",
    "resumed_from": "step of the checkpoint that this process continued from; later rows above it are superseded",
}


@dataclass(frozen=True)
class Channel:
    """One column of a table, or a family of columns: ``loss/<component>``."""

    pattern: str
    unit: str
    about: str


CHANNELS: Final[tuple[Channel, ...]] = (
    Channel("time", "s", "Unix time at which the row was recorded"),
    Channel("elapsed", "s", "monotonic time since this process began to record"),
    Channel("step", "step", "attempted optimiser steps, from 1"),
    Channel("applied", "step", "optimiser steps that were not skipped; every schedule is driven by it"),
    Channel("applied/<optimizer>", "step", "the same for one of several optimisers"),
    Channel("epoch", "epoch", "passes over the data, from 0; may be a fraction"),
    Channel("samples", "sample", "samples seen so far by all processes"),
    Channel("tokens", "token", "tokens seen so far by all processes"),
    Channel("loss", "", "the weighted sum that is differentiated"),
    Channel("loss/<component>", "", "a component's raw value, in its own unit"),
    Channel("weight/<component>", "", "the component's weight as applied; contribution = weight x raw"),
    Channel("stage", "", "0-based index of the curriculum's stage"),
    Channel("grad_norm", "", "norm of the whole gradient before clipping"),
    Channel("grad_norm/<module>", "", "norm of one module's gradient before clipping; absent when it is frozen"),
    Channel("grad_norm_at_step", "", "gradient norm as the optimiser saw it, so after any clipping"),
    Channel("grad_carried", "0 or 1", "this step's backward began on the last step's gradient; 0 is told now and then"),
    Channel("grad_carried/<optimizer>", "0 or 1", "the same for one of several optimisers"),
    Channel("clip", "0 or 1", "whether this step's gradient was clipped"),
    Channel("component_grad/<component>", "", "norm of the weighted component's gradient at gradient_at"),
    Channel("grad_share/<component>", "fraction", "that norm as a share of the sum of the components' norms"),
    Channel("grad_cosine/<a>~<b>", "", "cosine between two weighted components' gradients at gradient_at"),
    Channel("param_grad/<component>", "", "norm of the weighted component's gradient over the parameters, sampled"),
    Channel("param_share/<component>", "fraction", "that norm as a share of their sum"),
    Channel("param_cosine/<a>~<b>", "", "cosine between two weighted components' gradients over the parameters"),
    Channel("lr/<group>", "", "learning rate of a parameter group"),
    Channel(
        "update_ratio/<group>", "", "norm of the update over norm of the weights, 0 without gradients; every 50 steps"
    ),
    Channel("weight_norm/<group>", "", "norm of the group's weights; every 50 steps"),
    Channel("state_steps/<optimizer>", "step", "steps that its state counts, before this one; every 50 steps"),
    Channel("amp/scale", "", "the gradient scaler's factor"),
    Channel("amp/skipped", "0 or 1", "the scaler skipped this step"),
    Channel("clock/<name>", "", "a counter that the training code keeps by itself"),
    Channel("schedule/<name>", "", "a scheduled value as this step used it"),
    Channel(
        "codebook/<name>", "", "a VQ codebook: perplexity (effective number of codes in use), used (share of the codes)"
    ),
    Channel("data/<name>/min", "", "smallest value in this step's batch"),
    Channel("data/<name>/mean", "", "mean in this step's batch"),
    Channel("data/<name>/max", "", "largest value in this step's batch"),
    Channel("data/fingerprint", "", "hash of this step's batch"),
    Channel("data/batches", "count", "batches of this step, where there are several"),
    Channel("data/again", "count", "those of them that are the one just before"),
    Channel("data/new", "count", "those of them that are none of the 64 before"),
    Channel("data/label_kinds", "count", "how many different labels this step's batch has, as far as was looked"),
    Channel("data/label", "", "the label of all samples, where it is one"),
    Channel("data/labels_ignored", "fraction", "share of this step's batches of which every label is ignored (-100)"),
    Channel("data/index", "sample", "index of the first sample of this step"),
    Channel("data/masked/<component>", "fraction", "share of positions masked out of a loss"),
    Channel("data/class/<name>", "count", "samples of a class in this step's batch"),
    Channel("data/input_mean", "", "mean of the inputs"),
    Channel("data/input_std", "", "standard deviation of the inputs"),
    Channel("data/input_absmax", "", "largest magnitude in the inputs"),
    Channel("data/read_mean", "", "mean of what the first layer reads, of some of its numbers"),
    Channel("data/read_std", "", "standard deviation of what the first layer reads, of some of its numbers"),
    Channel("data/read_absmax", "", "largest magnitude in what the first layer reads, of some of its numbers"),
    Channel("absmax/<tensor>", "", "largest magnitude in an activation"),
    Channel("bad/weights", "count", "parameters that are not finite"),
    Channel("bad/input", "count", "inputs that are not finite"),
    Channel("time/data", "s", "wait for data"),
    Channel("time/compute", "s", "work before the first collective"),
    Channel("time/comm", "s", "wait in collectives"),
    Channel("time/step", "s", "from one step() to the next, without evaluation and checkpoints"),
    Channel("time/monitor", "s", "spent in the recorder itself"),
    Channel("memory/<what>", "byte", "memory in use"),
    Channel("param_hash", "", "integer below 2^53 that all ranks must agree on"),
    Channel(
        "metric/<name>", "", "a figure of merit of an evaluation; <name>_length_7_10: of the samples of 7 to 10 tokens"
    ),
    Channel("weights_step", "step", "the step whose weights were evaluated"),
    Channel("repeat", "", "index of a repeated evaluation of the same weights"),
    Channel(
        "training_mode/<kind>", "count", "modules (dropout, batch_norm) that were in training mode in an evaluation"
    ),
    Channel(
        "overlap/<what>",
        "count",
        "samples of this split that are known and there once, copies beside them; training samples that were looked at "
        "since, hits among them; found: samples of the split that were hit",
    ),
    Channel("quality/<name>", "", "validity, diversity, longest_run, entropy (nat), length_mean, length_std"),
)


@lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"<[a-z]+>", pattern)
    return re.compile(r"[A-Za-z0-9_.-]+".join(re.escape(part) for part in parts))


def matches(pattern: str, name: str) -> bool:
    """Whether a channel belongs to a family, as ``loss/mass`` belongs to the pattern ``loss/<component>``."""
    return _regex(pattern).fullmatch(name) is not None


def describe(name: str) -> Channel | None:
    """The catalogue's entry for a channel, or None for one that the format does not know."""
    return next((channel for channel in CHANNELS if matches(channel.pattern, name)), None)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about a run. Plain data: no face is drawn here.

    ``subject`` is what is sick: ``component:precursor``, ``module:encoder``, ``clock:dqn``, ``rank:3``,
    ``config:optimizer.lr`` or ``run``. ``evidence`` holds numbers, or ``"nan"``, ``"inf"``, ``"-inf"``. ``patch`` maps
    dotted config paths to the values that would cure it.
    """

    rule: str
    severity: Severity
    subject: str
    first_step: int
    last_step: int
    state: Literal["active", "over"]
    message: str
    evidence: dict[str, float | int | str] = field(default_factory=dict)
    advice: str = ""
    patch: dict[str, Any] = field(default_factory=dict)
    confidence: float = 1.0

    @property
    def key(self) -> tuple[str, str, int]:
        """The finding's identity: the same key again replaces it."""
        return (self.rule, self.subject, self.first_step)

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical."""
        return SEVERITIES.index(self.severity)

    def to_dict(self) -> dict[str, Any]:
        """The finding as strict JSON: a number that is not finite becomes its name."""
        return {**asdict(self), "evidence": {name: json_number(value) for name, value in self.evidence.items()}}


def json_number(value: float | int | str) -> float | int | str:
    """``value``, or ``"nan"``, ``"inf"``, ``"-inf"`` where JSON has no number for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def worst(findings: list[Finding]) -> Severity | None:
    """The highest severity among the findings, None if there are none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=None)
