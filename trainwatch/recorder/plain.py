"""Anything -> what JSON can hold, with secrets left out."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

REDACTED = "[redacted]"
_DEEPEST = 32
_LONGEST = 100_000
_MANY = 10_000  # elements of an array that stays text

_SECRET_WORDS = {
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
    "credential",
    "credentials",
}
_SECRET_WORDS |= {"apikey", "authorization", "bearer"}
_SECRET_KEYS = re.compile(r"(?:api|access|private|secret|auth|account|signing|encryption|ssh)_?keys?")
_VOCABULARY = {
    "bos",
    "eos",
    "pad",
    "unk",
    "mask",
    "cls",
    "sep",
    "special",
    "start",
    "end",
    "stop",
    "image",
    "num",
    "max",
}
"""Words that make ``<word>_token`` a matter of vocabulary (``eos_token``), not of access (``hf_token``)."""

_URL_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@")
_URL_QUERY = re.compile(r"(?P<name>[?&;](?P<key>[\w.-]+)=)[^&;#\s]+")
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16})\b"
)
_ARGUMENT = re.compile(r"(?P<name>[-+~]*(?P<key>[A-Za-z_][\w.-]*)=)(?P<value>.+)", re.DOTALL)
_OPTION = re.compile(r"-{1,2}(?P<key>[A-Za-z_][\w.-]*)")


def is_secret(key: str, value: object = "") -> bool:
    """Whether a key such as ``hf_token``, ``db.password`` or ``apiKey`` names a secret; ``max_tokens`` does not."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", key)]
    if not words:
        return False
    if _SECRET_WORDS.intersection(words) or _SECRET_KEYS.search("_".join(words)):
        return True
    if words[-1] not in ("token", "tokens") or isinstance(value, int | float):
        return False
    return words[-1] == "token" and not _VOCABULARY.intersection(words)


def scrub(text: str) -> str:
    """A text without URL passwords, secret query values and tokens of well-known shape."""
    if "://" in text:
        text = _URL_LOGIN.sub(rf"\g<scheme>:{REDACTED}@", text)
        text = _URL_QUERY.sub(
            lambda m: m["name"] + REDACTED if is_secret(m["key"]) or m["key"] == "sig" else m[0], text
        )
    return _KNOWN_TOKEN.sub(REDACTED, text)


def command(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: ``--token=abc``, ``--token abc``, ``db.password=abc``, ``https://me:abc@host``."""
    safe: list[str] = []
    hide_next = False
    for argument in arguments:
        assigned, option = _ARGUMENT.fullmatch(argument), _OPTION.fullmatch(argument)
        if hide_next and not argument.startswith("-"):
            safe.append(REDACTED)
        elif assigned and is_secret(assigned["key"]):
            safe.append(assigned["name"] + REDACTED)
        else:
            safe.append(scrub(argument))
        hide_next = bool(option and is_secret(option["key"]))
    return safe


def message(error: BaseException) -> str:
    """What an exception says; its type where even that fails."""
    try:
        return scrub(_encodable(str(error)))
    except Exception:
        return type(error).__name__


def brief(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = message(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def plain(value: object, within: tuple[int, ...] = ()) -> Any:
    """``value`` as strict JSON: mappings, lists, numbers, text; everything else becomes text. It never raises."""
    try:
        return _plain(value, within)
    except Exception as fault:
        return f"{type(value).__qualname__} without a form ({type(fault).__name__})"


def _plain(value: object, within: tuple[int, ...]) -> Any:
    """``within`` are the ids of what contains ``value``: what contains itself ends there."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return scrub(_encodable(str(value)))[:_LONGEST]
    if isinstance(value, enum.Enum):
        return plain(value.value, (*within, id(value)))
    if isinstance(value, int | float):
        return _number(value)
    if len(within) > _DEEPEST or id(value) in within:
        return f"{type(value).__qualname__} {'within itself' if id(value) in within else 'too deep'}"
    within = (*within, id(value))
    fields = as_mapping(value)
    if fields is not None:
        named = [(_encodable(str(name)), item) for name, item in list(fields.items())]
        return {k: REDACTED if is_secret(k, v) and not _empty(v) else plain(v, within) for k, v in named}
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, bytes | bytearray | memoryview):
        items = sorted(value, key=str) if isinstance(value, AbstractSet) else value
        return [plain(item, within) for item in items]
    return _leaf(value, within)


def as_mapping(value: object) -> Mapping[Any, Any] | None:
    """The fields of a mapping, dataclass, namespace, OmegaConf or pydantic object; None if it has no such form."""
    if type(value).__module__.startswith("omegaconf"):
        return _omegaconf(value)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    for method in ("to_dict", "model_dump"):
        if callable(getattr(value, method, None)):
            fields = getattr(value, method)()
            return fields if isinstance(fields, Mapping) else None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return vars(value) if isinstance(value, argparse.Namespace) else None


def _omegaconf(value: object) -> Mapping[Any, Any] | None:
    """An OmegaConf object, its interpolations resolved where that is possible; omegaconf is loaded then."""
    omegaconf = sys.modules["omegaconf"].OmegaConf
    try:
        fields = omegaconf.to_container(value, resolve=True)
    except Exception:
        fields = omegaconf.to_container(value, resolve=False)
    return fields if isinstance(fields, Mapping) else None


def _empty(value: object) -> bool:
    """Whether there is nothing to hide; by type, since an array has no truth value."""
    return value is None or (
        isinstance(value, str | bytes | int | float | Mapping | Sequence | AbstractSet) and not value
    )


def _encodable(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _number(value: float) -> object:
    """A number that every JSON reader takes as it is; one it cannot hold becomes text."""
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _leaf(value: object, within: tuple[int, ...]) -> object:
    """A path, dtype, NumPy scalar, class or function, as a number or as text."""
    if isinstance(value, os.PathLike):
        return scrub(str(os.fspath(value)))
    if type(value).__module__ == "numpy" and hasattr(value, "tolist") and getattr(value, "size", _MANY) < _MANY:
        return plain(value.tolist(), within)
    return _text(value)


def _text(value: object) -> str:
    """What is no JSON, as text; ``torch.float16`` is ``float16``."""
    if isinstance(value, type) or callable(value):
        return str(getattr(value, "__qualname__", None) or type(value).__qualname__)
    try:
        return scrub(_encodable(str(value)))[:_LONGEST].removeprefix("torch.")
    except Exception as fault:
        return f"{type(value).__qualname__} without text ({type(fault).__name__})"
