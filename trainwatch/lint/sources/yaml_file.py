"""YAML and JSON files: composed into nodes, and never constructed, so that no tag in them does anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from trainwatch.lint.tree import Config, LintError, Node, Place, Repeated

MOST = 20_000  # settings: beyond, it is data; aliases of aliases count as often as they are used
DEEPEST = 100  # levels
SCHEMA = re.compile(r"^\s*#\s*trainwatch:\s*schema=(\S+)", re.MULTILINE)
PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)
QUOTES = ("'", '"')
PLAIN = "tag:yaml.org,2002:"
CONSTRUCT: dict[str, Any] = {
    "int": yaml.SafeLoader.construct_yaml_int,
    "float": yaml.SafeLoader.construct_yaml_float,
    "bool": yaml.SafeLoader.construct_yaml_bool,
}


def read_yaml(text: str, file: str) -> Iterator[Config]:
    """Every document of a file that has settings. Raises LintError."""
    try:
        documents = list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise LintError(_broken(file, error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise LintError(f"{file}: is no YAML ({str(error).splitlines()[0]}); mend it.") from None
    except RecursionError:
        raise LintError(f"{file}: is nested too deep to be a config; flatten it.") from None
    schema, package = (found.group(1) if (found := comment.search(text)) else "" for comment in (SCHEMA, PACKAGE))
    for document in documents:
        if isinstance(document, yaml.MappingNode | yaml.SequenceNode):
            reading = _Reading(file, json_only=False)
            root = reading.node(document, (), None)
            yield Config(file, "yaml", root, reading.repeated, schema, package)


def read_json(text: str, file: str) -> Iterator[Config]:
    """A JSON file: its values as JSON reads them. Raises LintError."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise LintError(f"{file}:{error.lineno}:{error.colno}: is no JSON ({error.msg}); mend it there.") from None
    except (RecursionError, ValueError):
        raise LintError(f"{file}: is nested too deep, or has numbers too long, to be a config; mend it.") from None
    try:
        document = yaml.compose(text.replace("\t", " "), yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise LintError(f"{file}: is laid out so that its places cannot be told; reformat it with jq.") from None
    if isinstance(document, yaml.MappingNode | yaml.SequenceNode):
        reading = _Reading(file, json_only=True)
        root = reading.node(document, (), None)
        yield Config(file, "json", root, reading.repeated)


def value_of(text: str, place: Place, path: tuple[str, ...]) -> Node:
    """A value of a command line as YAML reads it; what is no YAML is text."""
    try:
        composed = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        composed = None
    if composed is None:
        return Node(path, text, place, place, text)
    node = _Reading(place.file, json_only=False).node(composed, path, None)
    return Node(path, node.value, place, place, text, node.quoted)


class _Reading:
    """Turns composed nodes into ours, and counts them: a file of a few lines may stand for billions."""

    def __init__(self, file: str, *, json_only: bool) -> None:
        self.file, self.json_only = file, json_only
        self.repeated: list[Repeated] = []
        self._count = 0

    def node(self, composed: yaml.Node, path: tuple[str, ...], key: yaml.Node | None) -> Node:
        self._count += 1
        if self._count > MOST or len(path) > DEEPEST:
            raise LintError(f"{self.file}: stands for more than {MOST:,} settings, or is too deep; it is no config.")
        place = self._place(composed)
        named = self._place(key) if key is not None else place
        if isinstance(composed, yaml.MappingNode):
            return Node(path, self._mapping(composed, path), place, named)
        if isinstance(composed, yaml.SequenceNode):
            items = [self.node(item, (*path, str(index)), None) for index, item in enumerate(composed.value)]
            return Node(path, items, place, named)
        assert isinstance(composed, yaml.ScalarNode)
        return Node(path, self._scalar(composed), place, named, str(composed.value), composed.style in QUOTES)

    def _mapping(self, composed: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in composed.value:
            if key.tag == f"{PLAIN}merge":
                merged = self._merged(value, path) | merged
                continue
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            node = self.node(value, (*path, name), key)
            if name in own:
                self.repeated.append(Repeated(own[name], node))
            own[name] = node
        return merged | own

    def _merged(self, value: yaml.Node, path: tuple[str, ...]) -> dict[str, Node]:
        """What `<<: *base` brings; of a list of them, the earlier ones win."""
        if isinstance(value, yaml.MappingNode):
            self._count += 1
            if len(path) > DEEPEST or self._count > MOST:
                raise LintError(f"{self.file}: merges keys without end; write them out.")
            return self._mapping(value, path)
        found: dict[str, Node] = {}
        for item in reversed(value.value if isinstance(value, yaml.SequenceNode) else []):
            found |= self._merged(item, (*path, "<<"))
        return {name: _moved(node, (*path, name)) for name, node in found.items()}

    def _scalar(self, composed: yaml.ScalarNode) -> Any:
        kind = str(composed.tag).removeprefix(PLAIN)
        if composed.style in QUOTES:
            return str(composed.value)
        if self.json_only:
            return json.loads(composed.value)
        if kind == "null":
            return None
        try:
            return CONSTRUCT[kind](yaml.SafeLoader(""), composed) if kind in CONSTRUCT else str(composed.value)
        except (ValueError, OverflowError):
            return str(composed.value)

    def _place(self, composed: yaml.Node) -> Place:
        mark = composed.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1)


def _moved(node: Node, path: tuple[str, ...]) -> Node:
    return Node(path, node.value, node.place, node.key, node.written, node.quoted)


def _broken(file: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
    why = error.problem or error.context or "it cannot be read"
    remedy = "indent with spaces" if "'\\t'" in why else "mend it there"
    return f"{where}: is no YAML ({why}); {remedy}."
