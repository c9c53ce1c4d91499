"""One JSON document that holds a whole training: its rows, and whether a file is such a document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from trainwatch.foreign.channels import SPLITS, TRAIN, recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.layout import dvclive
from trainwatch.foreign.numbers import as_number, flattened

LARGEST = 8 << 20  # bytes; a thousand epochs with fifty lists take 1 MB
SHOWING = 200  # rows that are looked at for a loss: the first one may tell of the model
DEEPEST = 4  # levels of nesting in which lists are looked for
SEVERAL = 10  # rewards that are no setting
BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*[\[{]")
LISTED = re.compile(rb"\"[^\"]{1,200}\"\s*:\s*\[\s*[-\dNI]|[\[,:]\s*\{\s*\"")
LOSSES = re.compile(rb"\"[^\"]{0,200}loss(?:es)?\"\s*:\s*\[\s*[-\dNI]", re.IGNORECASE)
SIDES = TRAIN | SPLITS.keys() - {"metrics"}
WHOLE = {"history", "training_history", "metrics", "logs"}
SAID = SIDES | WHOLE
"""Keys of an object that holds lists: the splits, and what says nothing of what is in it."""
FIGURES = {"accuracy", "acc", "reward", "rewards", "f1", "auc", "mse", "mae", "rmse", "wer", "cer"}
REWARDS = {"reward", "rewards"}


def is_history(path: Path, head: bytes) -> bool:
    """One JSON document that holds lists of numbers, among them a loss or a counter; also one that cannot be read, if
    it begins with a list of losses.
    """
    if path.suffix.lower() != ".json" or not BEGINS.match(head) or not LISTED.search(head):
        return False
    if dvclive(path) or b'"log_history"' in head or b'"best_model_checkpoint"' in head:
        return False
    try:
        stat = path.stat()
        return _is_history(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return False
    except ValueError:
        return bool(LOSSES.search(head)) and not _several(head)


@lru_cache(maxsize=64)
def _is_history(path: Path, modified: int, size: int) -> bool:  # noqa: ARG001  (of this state of the file)
    """Raises ValueError for what is no JSON document."""
    document = document_in(path)
    rows = list(islice(rows_of(document), SHOWING))
    names = {name for row in rows for name in row.values}
    roles = {recognise(name).role for name in names}
    counts = not roles.isdisjoint(("step", "epoch"))
    if counts:
        return any(map(_tells, names))
    if _records(document):
        return "loss" in roles and (_whole(document) or ("rate" not in roles and _both_sides(names)))
    return "loss" in roles or (len(rows) >= SEVERAL and any(_words(name) & REWARDS for name in names))


def _several(head: bytes) -> bool:
    """Whether an object ends in the head, and more follows: the file is no single document."""
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return bool(text[end:].strip())


def _whole(document: Any) -> bool:
    """Whether the key of the records says that they are one training."""
    return isinstance(document, Mapping) and any(
        key.lower() in WHOLE for key, value in document.items() if isinstance(value, list) and _objects(value)
    )


def _both_sides(names: set[str]) -> bool:
    """Whether a loss of training stands beside one of an evaluation."""
    sides = {bool(recognise(name).split) for name in names if recognise(name).role == "loss"}
    return len(sides) > 1


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def _tells(name: str) -> bool:
    return recognise(name).role == "loss" or bool(FIGURES & _words(name))


def document_in(path: Path) -> Any:
    """The document at ``path``. Raises ValueError, and OSError."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: is larger than a history of epochs is; write one number for each epoch.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is cut off or no JSON ({error}); write it anew.") from None


def trainings(document: Any) -> dict[str, Any]:
    """The trainings in a document by their names, "" for a single one.

    ``cnn_loss, cnn_val_loss`` of 30 epochs beside ``rnn_loss, rnn_val_loss`` of 20 are two: each first word has a loss
    and its validation, and no rows hold both. Of one length they would be components of one training.
    """
    families: dict[str, dict[str, list[Any]]] = {}
    for name, numbers in _listed(document)[0].items() if not _records(document) else ():
        family, _, own = name.partition("_")
        families.setdefault(family, {})[own] = numbers
    lengths = [{len(numbers) for numbers in family.values()} for family in families.values()]
    apart = all(len(own) == 1 for own in lengths) and len(set().union(*lengths)) > 1
    return dict(families) if apart and all(_both_sides(set(family)) for family in families.values()) else {"": document}


def rows_of(document: Any) -> Iterator[Row]:
    """The rows of a document: of its list of objects, or of its lists of numbers."""
    records = _records(document)
    if records:
        yield from (Row(dict(flattened(record))) for record in records)
        return
    lists, length = _listed(document)
    placed = {name: place for name, numbers in lists.items() if (place := _place(name, numbers, length))}
    for index in range(-1, length):
        if (row := _row(placed, index)).values:
            yield row
    if placed and (tested := Row(dict(_tested(document)))).values:
        yield tested


def _tested(document: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures beside the lists that a test gave when the training had ended."""
    for name, value in document.items():
        if recognise(name).split == "test" and _tells(name) and (number := as_number(value)) is not None:
            yield name, number


def left_out(document: Any) -> Iterator[str]:
    """What is to be known of lists that tell of the training and fit none of its rows, or hold more than numbers."""
    if _records(document) or not isinstance(document, Mapping):
        return
    lists, length = _listed(document)
    for name, numbers in lists.items():
        if (_tells(name) or recognise(name).split) and _place(name, numbers, length) is None:
            yield f"{name} (length {len(numbers):,}) is left out: nothing tells which of the {length:,} rows it is of"
    for key, value in document.items():
        if isinstance(value, list) and _objects(value):
            yield f"{key} is left out: it holds an object for each row; write a list of numbers for each of its names"


def _listed(document: Any) -> tuple[dict[str, list[Any]], int]:
    """The lists of numbers, and how many rows they make: the training's losses say that, where there are any."""
    lists = dict(_lists(document)) if isinstance(document, Mapping) else {}
    told = [name for name in lists if _tells(name)]
    losses = [name for name in told if recognise(name).role == "loss" and not recognise(name).split]
    return lists, max((len(lists[name]) for name in losses or told), default=0)


def _records(document: Any) -> list[Mapping[str, Any]]:
    """The objects, where the document is a list of them or holds one such list and no more; beside a list that counts
    as many they are one column of its rows.
    """
    if isinstance(document, Mapping):
        held = [value for value in document.values() if isinstance(value, list) and _objects(value)]
        return held[0] if len(held) == 1 and len(held[0]) not in _counted(document) else []
    return document if isinstance(document, list) and _objects(document) else []


def _counted(document: Mapping[str, Any]) -> set[int]:
    """How many rows the lists of steps or epochs count."""
    counters = (held for key, held in document.items() if recognise(str(key)).role in ("step", "epoch"))
    return {len(held) for held in counters if isinstance(held, list) and _numbers(held)}


def _objects(values: list[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, Mapping) for value in values)


def _numbers(values: list[Any]) -> bool:
    return bool(values) and all(item is None or as_number(item) is not None for item in values)


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
        if isinstance(value, list) and _numbers(value):
            yield key, value


def _nested(document: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if depth < DEEPEST:
        yield from ((key, value) for key, value in document.items() if isinstance(value, Mapping))


class _Placed(NamedTuple):
    """A list among the rows: each number stands on the last of ``part`` rows, from row ``begin`` on."""

    numbers: list[Any]
    begin: int = 0
    part: int = 1


def _place(name: str, numbers: list[Any], length: int) -> _Placed | None:
    """An evaluation more than there are rows was made before training, one less is that of a training that was
    interrupted; a shorter list that parts the rows evenly has a number for each part's end.
    """
    count = len(numbers)
    if count == length + 1:
        return _Placed(numbers, begin=-1 if recognise(name).split else 0)
    if count == length or 1 < count == length - 1:
        return _Placed(numbers)
    return _Placed(numbers, part=length // count) if count > 1 and length and length % count == 0 else None


def _row(placed: Mapping[str, _Placed], index: int) -> Row:
    values = {}
    for name, (numbers, begin, part) in placed.items():
        position, between = divmod(index - begin + 1, part)
        if not between and 0 < position <= len(numbers) and (number := as_number(numbers[position - 1])) is not None:
            values[name] = number
    return Row(values)
