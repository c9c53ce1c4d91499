"""The settings that a script or a notebook is written with: constants, dict literals, defaults, keyword arguments.

Read with ``ast``, never imported or run. A name that stands for a constant of the same file counts as its value, and
so does simple arithmetic on numbers. Where a name is set again, the later one counts.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainwatch.lint.sources.python_file import Part, called, flag_of, literal, parts

LARGEST: Final = 1e300  # no arithmetic beyond: 10**10**10 would never end
ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: lambda base, power: float(base) ** power,
}


@dataclass(frozen=True)
class Written:
    """A setting as it is written: ``path`` are the names that lead to it, ``where`` tells people its place.

    ``passed``: it is an argument of a call, and so speaks of that call alone.
    """

    path: tuple[str, ...]
    value: Any
    where: str
    passed: bool = False


UNKNOWN: Final = object()


def read_settings(path: Path) -> list[Written]:
    """Every setting of a script or a notebook. Raises LintError."""
    found: dict[tuple[str, ...], Written] = {}
    names: dict[str, Any] = {}
    for part in parts(path):
        for written in _Reader(part, names).read(part.tree, ()):
            found[written.path] = written
    return list(found.values())


@dataclass
class _Reader:
    """Walks one part in the order in which it is written."""

    part: Part
    names: dict[str, Any]

    def read(self, node: ast.AST, scope: tuple[str, ...]) -> Iterator[Written]:
        """The settings below a node; ``scope`` is the class that they stand in."""
        if isinstance(node, ast.ClassDef):
            scope = (node.name,)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from self._defaults(node)
            scope = ()
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from self._assigned(target, node.value, scope)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        for child in ast.iter_child_nodes(node):
            yield from self.read(child, scope)

    def _defaults(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Written]:
        spec = node.args
        plain = [*spec.posonlyargs, *spec.args]
        pairs = [*zip(plain[len(plain) - len(spec.defaults) :], spec.defaults, strict=True)]
        pairs += [(name, value) for name, value in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if value]
        for name, value in pairs:
            yield from self._values((node.name, name.arg), value)

    def _assigned(self, target: ast.expr, value: ast.expr, scope: tuple[str, ...]) -> Iterator[Written]:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, said in zip(target.elts, value.elts, strict=True):
                yield from self._assigned(one, said, scope)
            return
        path = _path(target)
        if not path:
            return
        known = self._value(value)
        if len(path) == 1 and not scope:
            self.names.pop(path[0], None)
            self.names |= {path[0]: known} if known is not UNKNOWN else {}
        yield from self._values((*scope, *path), value)

    def _call(self, node: ast.Call) -> Iterator[Written]:
        if called(node) == "add_argument":
            flag = flag_of(node, self.part)
            if flag and flag.default is not None:
                longest = max(flag.names, key=len).lstrip("-").replace("-", "_")
                yield Written((longest,), flag.default, self.part.where(node))
            return
        for keyword in node.keywords if called(node) not in ("dict", "") else ():
            if keyword.arg:
                yield from self._values((called(node), keyword.arg), keyword.value, passed=True)

    def _values(self, path: tuple[str, ...], node: ast.expr, *, passed: bool = False) -> Iterator[Written]:
        """A value, or those of a dict literal one by one."""
        pairs = _pairs(node)
        for name, below in pairs:
            yield from self._values((*path, name), below, passed=passed)
        value = self._value(node)
        if not pairs and value is not UNKNOWN:
            yield Written(path, value, self.part.where(node), passed)

    def _value(self, node: ast.expr) -> Any:
        """What an expression is known to be; UNKNOWN for one that only running would tell."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return _computed(ARITHMETIC[type(node.op)], self._value(node.left), self._value(node.right))
        said = literal(node)
        return said if said is not None else UNKNOWN


def _computed(how: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    numbers = all(isinstance(one, int | float) and abs(one) < LARGEST for one in (left, right))
    try:
        return how(left, right) if numbers else UNKNOWN
    except ArithmeticError:
        return UNKNOWN


def _path(target: ast.expr) -> tuple[str, ...]:
    """``weights``, ``cfg.lr`` and ``cfg["lr"]`` as the names that lead there; nothing for anything else."""
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Attribute):
        above = _path(target.value)
        return (*above, target.attr) if above else ()
    if isinstance(target, ast.Subscript) and isinstance(key := literal(target.slice), str):
        above = _path(target.value)
        return (*above, key) if above else ()
    return ()


def _pairs(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """The entries of ``{"a": 1}`` and of ``dict(a=1)``."""
    if isinstance(node, ast.Dict):
        keyed = [(literal(key), value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
        return [(key, value) for key, value in keyed if isinstance(key, str)]
    if isinstance(node, ast.Call) and called(node) == "dict":
        return [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
    return []
