"""From files and `key=value` to a config; and one helpful sentence for every mistake in them.

Later files win over earlier ones, `key=value` wins over files, and what a fault sets (faults.py) is below all of them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from trainer import faults
from trainer.checks import check
from trainer.config import Config, UsageError

Layers = list[tuple[str, dict[str, Any]]]
"""Settings, each group with the words for where it stands; later ones win."""
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Source:
    """Where a config came from: the last file, a hash of all files, and the overrides."""

    path: str | None
    sha256: str
    overrides: list[str]


def load(files: list[str], overrides: list[str]) -> tuple[Config, Source]:
    """The config of files and `key=value` overrides. Raises UsageError with one sentence for whoever wrote them."""
    texts = [_read(Path(name)) for name in files]
    layers = [(name, _parse(name, text)) for name, text in zip(files, texts, strict=True)]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return _resolve(layers, overrides), Source(files[-1] if files else None, digest, overrides)


def again(where: str, stored: dict[str, Any], overrides: list[str]) -> Config:
    """The config that a checkpoint or a record holds, and overrides. Raises UsageError, which names `where`."""
    config = _resolve([(where, stored)], overrides)
    if config.fault != stored.get("fault", ""):  # what it would set lies beneath what is stored: it would only be named
        raise UsageError(f"fault={config.fault}: {where} has settings of its own; write those that the fault changes.")
    return config


def _resolve(layers: Layers, overrides: list[str]) -> Config:
    layers = [*layers, *((f"'{item}'", _override(item)) for item in overrides)]
    try:
        asked = str(_merge(layers).get("fault", ""))
        config = OmegaConf.to_object(_merge(faults.layers(asked) + layers))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UsageError(f"{getattr(error, 'full_key', None) or 'the config'}: {_first_line(error)}.") from error
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    assert isinstance(config, Config)
    config.curriculum, config.curriculum_entry = config.curriculum.upper(), config.curriculum_entry.upper()
    check(config)
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES]
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.3)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; name one that does."
        raise UsageError(f"config file {path} does not exist{hint}") from error
    except IsADirectoryError as error:
        raise UsageError(f"config file {path} is a folder; name a file in it.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {path} is no text in UTF-8; name another.") from error
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}.") from error


def _parse(name: str, text: str) -> dict[str, Any]:
    parsed = _json(name, text) if Path(name).suffix == ".json" else _yaml(name, text)
    if not isinstance(parsed, dict) or any(value is None and set(parsed) == {key} for key, value in parsed.items()):
        example = '`{"steps": 1000}`' if Path(name).suffix == ".json" else "`key: value` lines"
        raise UsageError(f"config file {name} holds no settings; write {example}.")
    return {str(key): value for key, value in parsed.items()}


def _yaml(name: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"config file {name} is no YAML{place}: {_problem(error)}.") from error


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=partial(_object, name))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"config file {name} is no JSON in {place}: {error.msg}.") from error
    except RecursionError as error:
        raise UsageError(f"config file {name} is nested too deeply; write plain groups of settings.") from error


def _object(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets the last of two equal keys win; here it is the mistake that it is in YAML."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise UsageError(f"config file {name} sets '{twice}' twice; leave one of them.")
    return found


def _override(item: str) -> dict[str, Any]:
    key, equals, _ = item.partition("=")
    if not equals or not key:
        raise UsageError(f"'{item}' is no setting; write key=value, such as steps=1000.")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"'{item}' cannot be read: {_first_line(error)}.") from error
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _merge(layers: Layers) -> Any:
    merged: Any = OmegaConf.structured(Config)
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, _whole(merged, layer, where))
        except ConfigKeyError as error:
            raise UsageError(f"{where}: {_unknown(str(error.full_key))}") from error
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UsageError(f"{where}: {_first_line(error)}.") from error
    return merged


def _whole(known: Any, layer: dict[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """The layer with keys and kinds checked, and whole floats where integers are asked for (`steps=1e5`)."""
    checked = {}
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if key not in known:
            raise UsageError(f"{where}: {_unknown(path)}")
        now = known[key]
        if OmegaConf.is_dict(now):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {path} is a group of settings; set one of {', '.join(now)}.")
            checked[key] = _whole(now, value, where, f"{path}.")
        else:
            checked[key] = _value(now, value, where, path)
    return checked


def _value(now: Any, value: Any, where: str, path: str) -> Any:
    """A value of the kind that its default has; a string is no number, however it looks."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(now, bool):
        if not isinstance(value, bool):
            raise UsageError(f"{where}: {path} is true or false, not {value!r}.")
    elif isinstance(now, int | float):
        if not number:
            raise UsageError(f"{where}: {path} is a number, not {value!r}{_unquoted(value)}.")
        if not math.isfinite(value):
            raise UsageError(f"{where}: {path} is a finite number, not {value!r}.")
        if isinstance(now, int) and float(value) != int(value):
            raise UsageError(f"{where}: {path} is a whole number, not {value!r}.")
        return int(value) if isinstance(now, int) else float(value)
    elif isinstance(now, str):
        if isinstance(value, dict | list):
            raise UsageError(f"{where}: {path} is text, not {value!r}.")
        return "" if value is None else str(value)  # `fault=` says none
    else:
        _check_list(value, where, path)
    return value


def _check_list(value: Any, where: str, path: str) -> None:
    """A list's items are of the kind of those in its default."""
    default = list(OmegaConf.select(OmegaConf.structured(Config), path))
    kind, kinds = type(default[0]), "whole numbers" if isinstance(default[0], int) else "words"
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        example = ", ".join(map(str, default))
        raise UsageError(f"{where}: {path} is a list of {kinds} such as [{example}], not {value!r}.")


def _unquoted(value: Any) -> str:
    """The remedy for a number that was written as text."""
    try:
        number = float(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return f"; write {value} without quotes" if math.isfinite(number) else ""


def _unknown(path: str) -> str:
    """What is wrong with a key: its nearest in the same group, else a like one elsewhere, else what the group has."""
    known, (group, _, leaf) = _paths(OmegaConf.structured(Config)), path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    leaves = {name.rpartition(".")[2]: name for name in known}
    for there in (siblings, leaves):
        if near := difflib.get_close_matches(leaf, there, n=1, cutoff=0.7):
            return f"unknown key '{path}'; did you mean '{there[near[0]]}'?"
    has = f"{group} has {', '.join(siblings)}" if group and siblings else "trainer/config.py has them all"
    return f"unknown key '{path}'; {has}."


def _paths(node: Any, prefix: str = "") -> list[str]:
    names = []
    for key in node:
        names.append(f"{prefix}{key}")
        if OmegaConf.is_dict(node[key]):
            names += _paths(node[key], f"{prefix}{key}.")
    return names


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
