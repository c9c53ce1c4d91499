"""Settings with their places: what a config says, and where in which file it says it.

Whatever it was written in, a config is a tree of nodes here; a check looks at nodes and never at files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trainwatch.header import number


class Place(NamedTuple):
    """Where something is written; lines and columns count from 1."""

    file: str
    line: int = 1
    column: int = 1


class LintError(Exception):
    """A file that cannot be judged; the text is one sentence that names it, the place and the remedy."""


@dataclass(frozen=True)
class Node:
    """A setting: ``value`` is a scalar, a ``dict`` of nodes by name or a ``list`` of nodes.

    ``place`` is where the value stands and ``key`` where its name does; ``written`` is a scalar as it was written, and
    ``quoted`` says whether in quotes.
    """

    path: tuple[str, ...]
    value: Any
    place: Place
    key: Place
    written: str = ""
    quoted: bool = False

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path[-1] if self.path else ""

    @property
    def dotted(self) -> str:
        """Its path as overrides and patches write it."""
        return ".".join(self.path)

    @property
    def children(self) -> dict[str, Node]:
        """The settings in a mapping; none in anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The entries of a list; none of anything else."""
        return self.value if isinstance(self.value, list) else []

    @property
    def scalar(self) -> bool:
        """Whether it is neither a mapping nor a list."""
        return not isinstance(self.value, dict | list)

    @property
    def number(self) -> float | None:
        """The number that it is, or that it was meant to be."""
        if isinstance(self.value, str) and not self.quoted:
            try:
                return number(float(self.value))
            except ValueError:
                return None
        return number(self.value)

    def walk(self) -> Iterator[Node]:
        """Itself and everything below, in the order of the file."""
        yield self
        for child in (*self.children.values(), *self.items):
            yield from child.walk()

    def plain(self) -> Any:
        """Its value as plain data."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def at(self, path: tuple[str, ...]) -> Node | None:
        """The node at a path below this one."""
        node: Node | None = self
        for part in path:
            if node is None:
                return None
            index = int(part) if part.isdigit() else -1
            inside = node.items[index] if 0 <= index < len(node.items) else None
            node = node.children.get(part, inside)
        return node


@dataclass(frozen=True)
class Repeated:
    """A key that a mapping has twice: the later one wins."""

    first: Node
    last: Node


@dataclass(frozen=True)
class Config:
    """A config file; ``schema`` is what its comment names as the place of its known names, ``package`` is Hydra's.

    ``processes`` are as many as the launch command starts, where one is known.
    """

    file: str
    format: str
    root: Node
    repeated: list[Repeated] = field(default_factory=list)
    schema: str = ""
    package: str = ""
    processes: int = 1

    def above(self, node: Node) -> Iterator[Node]:
        """The mappings around a node, from the nearest to the root."""
        for length in range(len(node.path) - 1, -1, -1):
            around = self.root.at(node.path[:length])
            if around is not None and around.children:
                yield around
