"""Python sources and notebooks, read with ``ast``: never imported, never run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainwatch.lint.names import words
from trainwatch.lint.sources.files import read_text
from trainwatch.lint.tree import LintError, Place

CONFIGS = (".yaml", ".yml", ".toml")  # a JSON file that a script names is most often data
MAGIC = re.compile(r"^\s*[%!?]|\?\s*$")


@dataclass(frozen=True)
class Flag:
    """A flag of an argparse parser: what ``add_argument`` says of it."""

    names: tuple[str, ...]
    kind: str
    takes: bool
    required: bool
    choices: tuple[Any, ...]
    default: Any
    place: Place


@dataclass(frozen=True)
class Constant:
    """A name that is set to a number in a script."""

    name: str
    value: float
    place: Place


@dataclass(frozen=True)
class HydraMain:
    """What ``@hydra.main`` says."""

    folder: str | None
    name: str | None
    place: Place


@dataclass(frozen=True)
class Script:
    """What a script says about its settings; ``configs`` are the names of config files that are written in it."""

    file: str
    imports: dict[str, Place] = field(default_factory=dict)
    names: dict[str, Place] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    closed: bool = False
    constants: list[Constant] = field(default_factory=list)
    hydra: HydraMain | None = None
    configs: dict[str, Place] = field(default_factory=dict)

    def flag(self, name: str) -> Flag | None:
        """The flag of that name; one that is abbreviated as argparse allows it, if only one begins so."""
        exact = [flag for flag in self.flags if name in flag.names]
        begins = [flag for flag in self.flags if any(own.startswith(name) for own in flag.names)]
        return exact[0] if exact else begins[0] if len(begins) == 1 and name.startswith("--") else None


def read_script(path: Path) -> Script:
    """A script or a notebook. Raises LintError."""
    return _merge(str(path), parts(path))


def parts(path: Path) -> list[Part]:
    """A script, or the code cells of a notebook, parsed. Raises LintError."""
    text = read_text(path)
    if path.suffix.lower() == ".ipynb":
        return [_parse(code, str(path), offset, cell) for cell, offset, code in _cells(text, path)]
    return [_parse(text, str(path), 0)]


def read_schema(path: Path, name: str) -> dict[str, str]:
    """The fields of a dataclass and of those that it is made of: {dotted name: type}. Raises LintError."""
    tree = _parse(read_text(path), str(path), 0).tree
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise LintError(f"{path}: has no class {name}; there are {', '.join(sorted(classes)[:8]) or 'none'}.")
    return dict(_fields(classes, name, "", 0))


def imports_of(path: Path) -> set[str]:
    """The packages that a source imports. Raises LintError."""
    return {name.partition(".")[0] for name in read_script(path).imports}


def _fields(classes: dict[str, ast.ClassDef], name: str, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes and depth < 10:
            yield from _fields(classes, base.id, prefix, depth + 1)
    for line in classes[name].body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kind = ast.unparse(line.annotation).strip("'\"")
            inner = kind in classes and kind != name
            yield f"{prefix}{line.target.id}", f"={kind}" if inner else kind
            if inner and depth < 10:
                yield from _fields(classes, kind, f"{prefix}{line.target.id}.", depth + 1)


@dataclass(frozen=True)
class Part:
    """A script or a notebook's code cell; ``cell`` counts from 1 and is 0 for a script."""

    tree: ast.Module
    file: str
    offset: int
    cell: int = 0

    def place(self, node: ast.AST) -> Place:
        """Where a node stands in the file; a notebook's lines are counted through all of its code."""
        return Place(self.file, getattr(node, "lineno", 1) + self.offset, getattr(node, "col_offset", 0) + 1)

    def where(self, node: ast.AST) -> str:
        """The same for people: ``train.py:12``, or ``train.ipynb, code cell 3, line 2``."""
        line = getattr(node, "lineno", 1)
        return f"{self.file}, code cell {self.cell}, line {line}" if self.cell else f"{self.file}:{line}"


def _parse(text: str, file: str, offset: int, cell: int = 0) -> Part:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape in somebody's string is not ours to judge
            return Part(ast.parse(text), file, offset, cell)
    except SyntaxError as error:
        line = (error.lineno or 1) + offset
        raise LintError(f"{file}:{line}:{error.offset or 1}: is no Python ({error.msg}); mend it there.") from None
    except (ValueError, RecursionError, MemoryError):
        raise LintError(f"{file}: cannot be read as Python; look at it with `python -m ast`.") from None


def _cells(text: str, path: Path) -> Iterator[tuple[int, int, str]]:
    """A notebook's code cells, with their number and the lines before them; magics are blanked."""
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LintError(f"{path}: is no notebook of version 4; save it again with Jupyter.") from None
    offset = 0
    for cell, source in enumerate(sources, 1):
        lines = ["" if MAGIC.search(line) else line for line in source.splitlines()]
        if not (lines and source.startswith("%%")):
            yield cell, offset, "\n".join(lines)
        offset += len(lines)


def _merge(file: str, parts: list[Part]) -> Script:
    script = Script(file)
    hydra, closed = None, False
    for part in parts:
        for node in ast.walk(part.tree):
            _look(node, part, script)
            hydra = hydra or _hydra(node, part)
            closed |= isinstance(node, ast.Call) and called(node) == "parse_args"
    open_ = any(called(node) in OPEN for part in parts for node in ast.walk(part.tree) if isinstance(node, ast.Call))
    return replace(script, closed=closed and not open_, hydra=hydra)


OPEN = words(
    "parse_known_args add_arguments add_argparse_args from_argparse_args add_subparsers "
    "add_parser add_config_arguments HfArgumentParser"
)
"""Calls after which a parser may know flags that are not written in the script."""


def _look(node: ast.AST, part: Part, script: Script) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            script.imports.setdefault(alias.name, part.place(node))
    elif isinstance(node, ast.ImportFrom):
        script.imports.setdefault(node.module or ".", part.place(node))
        for alias in node.names:
            script.names.setdefault(alias.name, part.place(node))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(CONFIGS):
        script.configs.setdefault(node.value, part.place(node))
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        script.names.setdefault(node.id, part.place(node))
    elif isinstance(node, ast.Call) and called(node) == "add_argument":
        flag = flag_of(node, part)
        if flag:
            script.flags.append(flag)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            script.constants.extend(_constants(target, node.value, part))
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            script.constants.extend(_constants(ast.Name(keyword.arg or ""), keyword.value, part))


def _constants(target: ast.expr, value: ast.expr | None, part: Part) -> Iterator[Constant]:
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
    said = literal(value)
    if name and isinstance(said, int | float) and not isinstance(said, bool) and value is not None:
        yield Constant(name, float(said), part.place(value))


def literal(node: ast.AST | None) -> Any:
    """A literal's value; None for what is none."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return None


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def flag_of(node: ast.Call, part: Part) -> Flag | None:
    """The flag that a call of ``add_argument`` adds; None for a positional one."""
    names = tuple(said for item in node.args if isinstance(said := literal(item), str))
    if not names or not names[0].startswith("-"):
        return None
    said = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    action = str(literal(said.get("action")) or ast.unparse(said["action"]) if "action" in said else "")
    if "BooleanOptional" in action:
        names = (*names, *(f"--no-{name.removeprefix('--')}" for name in names if name.startswith("--")))
    choices = literal(said.get("choices"))
    return Flag(
        names=names,
        kind=ast.unparse(said["type"]) if "type" in said else "",
        takes=action in ("", "store", "append", "extend") and literal(said.get("nargs")) not in ("?", "*"),
        required=literal(said.get("required")) is True,
        choices=tuple(choices) if isinstance(choices, list | tuple) else (),
        default=literal(said.get("default")),
        place=part.place(node),
    )


def _hydra(node: ast.AST, part: Part) -> HydraMain | None:
    for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("hydra.main", "hydra_main"):
            said = {keyword.arg: literal(keyword.value) for keyword in decorator.keywords}
            folder, name = said.get("config_path"), said.get("config_name")
            return HydraMain(
                folder if isinstance(folder, str) else None,
                name if isinstance(name, str) else None,
                part.place(decorator),
            )
    return None
