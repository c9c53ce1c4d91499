"""One JSON document that holds a whole training: its rows, and whether a file is such a document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainwatch.foreign.channels import SPLITS, TRAIN, recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.layout import dvclive
from trainwatch.foreign.numbers import as_number, flattened

LARGEST = 64 << 20  # bytes; a million numbers take 20 MB
SHOWING = 200  # rows that are looked at for a loss: the first one may tell of the model
DEEPEST = 4  # levels of nesting in which lists are looked for
BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*[\[{]")
LISTED = re.compile(rb"\"[^\"]{1,200}\"\s*:\s*\[\s*[-\dNI]|[\[,:]\s*\{\s*\"")
SIDES = TRAIN | SPLITS.keys() - {"metrics"}
SAID = SIDES | {"history", "training_history", "metrics", "logs"}
"""Keys of an object that holds lists: the splits, and what says nothing of what is in it."""
FIGURES = {"accuracy", "acc", "reward", "rewards", "f1", "auc", "mse", "mae", "rmse"}


def is_history(path: Path, head: bytes) -> bool:
    """One JSON document that holds lists of numbers, among them a loss or a counter."""
    if path.suffix.lower() != ".json" or not BEGINS.match(head) or not LISTED.search(head):
        return False
    if dvclive(path) or b'"log_history"' in head or b'"best_model_checkpoint"' in head:
        return False
    try:
        document = document_in(path)
    except (ValueError, OSError):
        return False
    names = {name for row in rows_of(document)[:SHOWING] for name in row.values}
    roles = {recognise(name).role for name in names}
    listed = isinstance(document, Mapping) and not _records(document)
    return "loss" in roles or (any(map(_tells, names)) and (listed or not roles.isdisjoint(("step", "epoch"))))


def _tells(name: str) -> bool:
    return recognise(name).role == "loss" or bool(FIGURES.intersection(re.split(r"[\W_]+", name.lower())))


def document_in(path: Path) -> Any:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: is larger than a history of epochs is.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is cut off or no JSON ({error}); write it anew.") from None


def rows_of(document: Any) -> list[Row]:
    """The rows of a document: of its list of objects, or of its lists of numbers."""
    records = _records(document)
    if records:
        return [Row(dict(flattened(record))) for record in records]
    lists = dict(_lists(document)) if isinstance(document, Mapping) else {}
    length = max((len(values) for name, values in lists.items() if _tells(name)), default=0)
    return [row for index in range(length) if (row := _row(lists, index, length)).values]


def _records(document: Any) -> list[Mapping[str, Any]]:
    """The objects, where the document is a list of them or holds one such list and no more."""
    if isinstance(document, Mapping):
        held = [value for value in document.values() if isinstance(value, list) and _objects(value)]
        return held[0] if len(held) == 1 else []
    return document if isinstance(document, list) and _objects(document) else []


def _objects(values: list[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, Mapping) for value in values)


def _lists(document: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """Every list of numbers under its path. Several objects whose keys say no split are several trainings, and none
    is read: nothing tells which of them is meant.
    """
    inner = {str(key): dict(_lists(value, depth + 1)) for key, value in _nested(document, depth)}
    inner = {key: lists for key, lists in inner.items() if lists}
    for key, lists in inner.items():
        if key.lower() in SAID or len(inner) == 1:
            side = f"{key}/" if key.lower() in SIDES else ""
            yield from ((side + name, held) for name, held in lists.items())
    for key, value in document.items():
        if isinstance(value, list) and value and all(item is None or as_number(item) is not None for item in value):
            yield key, value


def _nested(document: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if depth < DEEPEST:
        yield from ((key, value) for key, value in document.items() if isinstance(value, Mapping))


def _row(lists: Mapping[str, list[Any]], index: int, length: int) -> Row:
    """The numbers of one row. A shorter list that parts the rows evenly has a number for each part's end."""
    values = {}
    for name, numbers in lists.items():
        part = length // len(numbers) if length % len(numbers) == 0 and len(numbers) > 1 else 0
        if part and (index + 1) % part == 0 and (number := as_number(numbers[index // part])) is not None:
            values[name] = number
    return Row(values)
