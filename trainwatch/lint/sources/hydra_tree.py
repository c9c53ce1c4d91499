"""A Hydra config as its defaults list composes it, from the files alone: which keys there are, and which groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trainwatch.lint.sources.files import read_config, read_text
from trainwatch.lint.tree import LintError, Node, Place

DEEPEST = 20  # defaults lists within defaults lists
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Missing:
    """A config that a defaults list or a command asks for and that is not there."""

    group: str
    option: str
    folder: Path
    place: Place


@dataclass
class HydraTree:
    """What is composed: ``keys`` by dotted path, ``groups`` that the defaults list chooses from.

    ``open`` says that there is more than the files tell: structured configs, options that are interpolated.
    """

    folder: Path
    keys: dict[str, Node] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    open: bool = False

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        place = self.folder / group
        return sorted(file.stem for file in place.glob(f"*{SUFFIX}")) if place.is_dir() else []

    def is_group(self, name: str) -> bool:
        """Whether there is a folder of options by that name."""
        return ".." not in name and not name.startswith("/") and bool(self.options(name))


def compose(folder: Path, name: str, asked: Place, chosen: dict[str, str]) -> HydraTree:
    """The config ``name`` of a folder with its defaults, ``chosen`` options in place of the listed ones."""
    tree = HydraTree(folder)
    _add(tree, "", name.removesuffix(SUFFIX), asked, "", chosen, 0)
    return tree


def _add(
    tree: HydraTree, group: str, option: str, asked: Place, package: str, chosen: dict[str, str], depth: int
) -> None:
    path = tree.folder / group / f"{option}{SUFFIX}"
    if depth > DEEPEST:
        raise LintError(f"{path}: its defaults lists lead in a circle; break it.")
    if not path.is_file():
        tree.missing.append(Missing(group, option, tree.folder / group, asked))
        tree.open = True
        return
    try:
        [config, *_] = read_config(path)
    except LintError:
        tree.open = tree.open or bool(read_text(path).strip())  # an empty file is a config without settings
        return
    if config.package:
        package = "" if config.package == "_global_" else config.package.replace("_group_", group.replace("/", "."))
    defaults = config.root.children.get("defaults")
    for entry in defaults.items if defaults else ():
        _default(tree, entry, group, package, chosen, depth)
    for node in config.root.walk():
        if node.path and node.path[0] != "defaults":
            tree.keys[".".join([*([package] if package else []), *node.path])] = node
    for index in range(len(package.split("."))) if package else ():
        tree.keys.setdefault(".".join(package.split(".")[: index + 1]), config.root)


def _default(tree: HydraTree, entry: Node, around: str, package: str, chosen: dict[str, str], depth: int) -> None:
    """One line of a defaults list: a config, or `group: option`."""
    if isinstance(entry.value, str):
        if entry.value != "_self_":
            within = f"{around}/" if around and not entry.value.startswith("/") else ""
            group, _, option = f"{within}{entry.value.lstrip('/')}".partition("@")[0].rpartition("/")
            _add(tree, group, option, entry.place, package, chosen, depth + 1)
        return
    for name, node in entry.children.items():
        words = name.split()
        overriding, optional = "override" in words[:-1], "optional" in words[:-1]
        local, _, target = (words[-1] if words else "").partition("@")
        group = local.lstrip("/") if local.startswith("/") or not around else f"{around}/{local}"
        listed = [item.value for item in node.items] if node.items else [node.value]
        if overriding or group.startswith("hydra"):
            if isinstance(node.value, str) and overriding and not group.startswith("hydra"):
                chosen.setdefault(group, node.value)
            continue
        tree.groups[group] = str(chosen.get(group, node.value))
        below = ".".join([*([package] if package and not local.startswith("/") else []), *local.strip("/").split("/")])
        if target:
            below = {"_global_": "", "_here_": package}.get(target, ".".join(filter(None, (package, target))))
        for option in [chosen[group]] if group in chosen else listed:
            if not isinstance(option, str) or option in ("null", "???") or "${" in option:
                tree.open = tree.open or option is not None
            elif not optional or (tree.folder / group / f"{option}{SUFFIX}").is_file():
                _add(tree, group, option.removesuffix(SUFFIX), node.place, below, chosen, depth + 1)
