"""TOML files: the standard library reads the values, and the lines that set them give the places."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trainwatch.lint.tree import Config, LintError, Node, Place

TABLE = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
SETS = re.compile(r"""^(\s*)((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=\s*""")
PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
Where = dict[tuple[str, ...], tuple[Place, Place]]


def read_toml(text: str, file: str) -> Iterator[Config]:
    """A TOML file. Raises LintError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LintError(f"{file}: is no TOML ({error}); mend it there.") from None
    except (RecursionError, ValueError):
        raise LintError(f"{file}: is nested too deep to be a config; flatten it.") from None
    start = Place(file)
    yield Config(file, "toml", _node(values, (), (start, start), _places(text, file)))


def _places(text: str, file: str) -> Where:
    """Where each path is set: (place of the key, place of the value)."""
    found: Where = {}
    table: tuple[str, ...] = ()
    counted: Counter[tuple[str, ...]] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if head := TABLE.match(line):
            table = _parts(head.group(2))
            if head.group(1) == "[[":
                counted[table] += 1
                table = (*table, str(counted[table] - 1))
            found.setdefault(table, (Place(file, number), Place(file, number)))
        elif sets := SETS.match(line):
            places = Place(file, number, len(sets.group(1)) + 1), Place(file, number, sets.end() + 1)
            found.setdefault((*table, *_parts(sets.group(2))), places)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in PART.findall(dotted))


def _node(value: Any, path: tuple[str, ...], above: tuple[Place, Place], where: Where) -> Node:
    key, place = where.get(path, above)
    if isinstance(value, dict):
        inside = {name: _node(item, (*path, name), (key, place), where) for name, item in value.items()}
        return Node(path, inside, place, key)
    if isinstance(value, list):
        items = [_node(item, (*path, str(index)), (key, place), where) for index, item in enumerate(value)]
        return Node(path, items, place, key)
    return Node(path, value, place, key, str(value), isinstance(value, str))
