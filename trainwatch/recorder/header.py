"""What a run says about itself once: the header's checks (loud, before the loop) and what it finds out by itself."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import psutil

from trainwatch.recorder.plain import as_mapping, command, plain
from trainwatch.schema import NAME, SCHEDULE_KINDS, VERSION

DECLARED: Final = (
    *(
        "config",
        "config_source",
        "config_defaults",
        "total_steps",
        "horizon",
        "curriculum",
        "curriculum_running",
        "schedules",
        "clocks",
    ),
    *("components", "max_grad_norm", "dtypes", "parameters", "modules", "gradient_at", "classes", "checkpoint_every"),
)
"""What the training code tells, by the names of the Recorder's arguments."""

_ROLES = ("task", "auxiliary", "regulariser")
_SCHEDULE = {"kind", "start", "end", "begin", "over_steps", "warmup", "floor", "restarts", "rate", "clock"}


def environment(rank: int, world_size: int) -> dict[str, Any]:
    """Where and as what this process runs."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return {
        "schema": VERSION,
        "started": started.replace("+00:00", "Z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "rank": rank,
        "world_size": world_size,
        "command": command(sys.orig_argv),
        "python": platform.python_version(),
        "packages": packages(),
        "device": device(),
        "git": git(),
    }


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {str(dist.metadata["Name"]): dist.version for dist in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def device() -> dict[str, Any]:
    """The accelerator, if torch uses one by now; asking earlier would start it on the wrong one."""
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        if torch is not None and torch.cuda.is_initialized():
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            return {"name": properties.name, "memory": properties.total_memory}
        if torch is not None and torch.cuda.is_available():
            return {"name": "cuda"}
    return {"name": "cpu", "memory": psutil.virtual_memory().total}


def git() -> dict[str, Any] | None:
    """The commit that the working directory is at, and whether tracked files differ from it; None outside of git."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def declared(
    total_steps: object,
    curriculum: object,
    curriculum_running: object,
    schedules: object,
    components: object,
    modules: object,
    max_grad_norm: object,
    checkpoint_every: object,
    **rest: object,
) -> dict[str, Any]:
    """The header's declared half, checked: a wrong one raises, and names the thing, its value and the remedy."""
    fields = {
        "total_steps": positive("total_steps", total_steps, whole=True),
        "components": _components(components),
        "curriculum": curriculum_form("curriculum", curriculum, total_steps),
        "curriculum_running": curriculum_form("curriculum_running", curriculum_running, total_steps),
        "schedules": _schedules(schedules),
        "max_grad_norm": positive("max_grad_norm", max_grad_norm),
        "checkpoint_every": positive("checkpoint_every", checkpoint_every, whole=True),
        "modules": modules_form(modules),
        "clocks": _names("clocks", rest.pop("clocks")),
        **{name: plain(value) for name, value in rest.items()},
    }
    if fields["parameters"] is None and hasattr(modules, "parameters"):
        fields["parameters"] = sum(parameter.numel() for parameter in modules.parameters())
    for name in ("horizon", "dtypes", "classes", "config_source", "config_defaults"):
        if fields[name] is not None and not isinstance(fields[name], dict):
            raise TypeError(f"Recorder: {name}={rest[name]!r} is no mapping; give a dict")
    return {name: value for name, value in fields.items() if value is not None}


def resumed(step: object) -> int:
    """The step of the checkpoint that a run goes on from."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"Recorder: resume={step!r} is no step; give the step of the checkpoint, such as 8000")
    return step


def positive(name: str, value: object, whole: bool = False) -> object:
    """A positive number, or None."""
    kind = "a positive whole number" if whole else "a positive number"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and value > 0
    if value is not None and not right:
        raise (ValueError if isinstance(value, int | float) else TypeError)(
            f"Recorder: {name}={value!r} is not {kind}; give {kind}, or leave it out if it is not known"
        )
    return value


def _names(what: str, names: object) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"Recorder: {what}={names!r} is no list of names; write [{names!r}]")
    return [_name(what, name) for name in names]


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not all(NAME.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"Recorder: {what}: the name {name!r} is not allowed; use letters, digits and _ . - only")
    return name


def _components(components: object) -> dict[str, Any] | None:
    """{name: {unit, role, description}}; a list of names will do, and so will {name: unit}."""
    if components is None:
        return None
    if not isinstance(components, Mapping):
        return {name: {} for name in _names("components", components) or []}
    form: dict[str, Any] = {}
    for name, told in components.items():
        about = {"unit": told} if isinstance(told, str) else plain(as_mapping(told) if told is not None else {})
        if not isinstance(about, dict) or about.get("role", "task") not in (*_ROLES, None):
            raise ValueError(f"Recorder: components[{name!r}]={told!r}: role must be one of {', '.join(_ROLES)}")
        form[_name("components", name)] = about
    return form


def _schedules(schedules: object) -> dict[str, Any] | None:
    if schedules is None:
        return None
    fields = as_mapping(schedules)
    if fields is None:
        raise TypeError(f"Recorder: schedules={schedules!r} is no mapping; give {{channel: {{kind, start, end, ...}}}}")
    return {_name("schedules", name): _schedule(name, value) for name, value in fields.items()}


def _schedule(name: object, value: object) -> dict[str, Any]:
    where, form = f"Recorder: schedules[{name!r}]", as_mapping(value)
    if form is None:
        raise TypeError(f"{where}={value!r} is no mapping; give {{kind, start, end, over_steps, ...}}")
    if form.get("kind") not in SCHEDULE_KINDS:
        raise ValueError(f"{where}: kind={form.get('kind')!r} is unknown; use one of {', '.join(SCHEDULE_KINDS)}")
    if unknown := sorted(set(form) - _SCHEDULE):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(_SCHEDULE))}")
    for key in _SCHEDULE - {"kind", "clock"}:
        number = form.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise TypeError(f"{where}: {key}={number!r} is no number; give a number, or leave it out")
    if form.get("start") is None:
        raise ValueError(f"{where}: start is missing; give the value after the warm-up")
    return {str(key): plain(number) for key, number in form.items() if number is not None}


def curriculum_form(name: str, curriculum: object, total_steps: object) -> dict[str, Any] | None:
    """The schema's form, made of that form, a list of stages, an object with ``stages``, or {component: weight}."""
    if curriculum is None:
        return None
    form = as_mapping(curriculum)
    if form is None and hasattr(curriculum, "stages"):
        form = {
            key: getattr(curriculum, key) for key in ("name", "source", "sha256", "stages") if hasattr(curriculum, key)
        }
    if form is None and isinstance(curriculum, list | tuple):
        form = {"stages": curriculum}
    if form and "stages" not in form and all(isinstance(weight, int | float) for weight in form.values()):
        form = {"stages": [{"start": 0, "weights": form}]}
    if form is None or "stages" not in form:
        raise TypeError(
            f"Recorder: {name}={curriculum!r} has no stages; give {{'stages': [{{start, end, weights}}, ...]}}"
        )
    return {**{str(k): plain(v) for k, v in form.items()}, "stages": _stages(name, list(form["stages"]), total_steps)}


def _stages(name: str, stages: list[Any], total_steps: object) -> list[dict[str, Any]]:
    """The stages in order; an end that is not given is the next one's start, and the last one's is ``total_steps``."""
    forms = [plain(as_mapping(stage) if as_mapping(stage) is not None else _attributes(stage)) for stage in stages]
    for index, form in enumerate(forms):
        where = f"Recorder: {name}.stages[{index}]"
        start = form.setdefault("start", 0) if index == 0 else form.get("start")
        if isinstance(start, bool) or not isinstance(start, int | float):
            raise ValueError(f"{where}: start={start!r} is no step; give the applied step at which the stage begins")
        if index and start <= forms[index - 1]["start"]:
            raise ValueError(f"{where}: start={start} is not after the stage before it; sort the stages by start")
        if index and forms[index - 1].get("end") is None:
            forms[index - 1]["end"] = start
    if forms and forms[-1].get("end") is None and total_steps is not None:
        forms[-1]["end"] = total_steps
    return forms


def _attributes(stage: object) -> dict[str, Any]:
    names = ("start", "end", "name", "weights", "data")
    return {name: getattr(stage, name) for name in names if hasattr(stage, name)}


def unwrapped(model: Any) -> Any:
    """The model itself, out of DDP (``module``) and torch.compile (``_orig_mod``)."""
    while [name for name, _ in model.named_children()] in (["module"], ["_orig_mod"]):
        model = next(model.children())
    return model


def modules_form(modules: object) -> list[dict[str, Any]] | None:
    """[{name, depth, parameters, trainable}], from that form or from the model itself; `fresh` in it where frozen."""
    if modules is None or not hasattr(modules, "named_modules"):
        return plain(modules)  # type: ignore[no-any-return]
    from trainwatch.recorder.fresh import fresh  # it is a torch model: torch is there

    table: list[dict[str, Any]] = []
    for name, module in unwrapped(modules).named_modules():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        if name and sizes:
            trainable = sum(size for size, learns in sizes if learns)
            row = {"name": name, "depth": name.count(".") + 1, "parameters": sum(size for size, _ in sizes)}
            row["trainable"] = trainable
            if not trainable:  # seldom: nothing is looked at where all is trained
                row["fresh"] = sum(fresh(own) for own in module.modules())
            table.append(row)
    return table
