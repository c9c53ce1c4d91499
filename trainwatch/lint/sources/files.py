"""A config file by its name: read with distrust, as the tree of what it says."""

from __future__ import annotations

from pathlib import Path

from trainwatch.lint.sources.toml_file import read_toml
from trainwatch.lint.sources.yaml_file import read_json, read_yaml
from trainwatch.lint.tree import Config, LintError

LARGEST = 1 << 19  # bytes: the longest config of a public project that was met has 60,000
READERS = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json, ".toml": read_toml}


def read_text(path: Path) -> str:
    """The text of a file. Raises LintError for one that is no text, or too much of it."""
    try:
        if path.is_dir():
            raise LintError(f"{path}: is a folder; name a file in it.")
        if not path.is_file():
            raise LintError(f"{path}: is no regular file, or is not there; check the name.")
        if path.stat().st_size > LARGEST:
            raise LintError(f"{path}: has more than {LARGEST >> 10} kB, which is no config; name the config itself.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LintError(f"{path}: is no UTF-8 text; save it as such.") from None
    except (OSError, ValueError) as error:
        raise LintError(f"{path}: cannot be read ({error}); check its name and permissions.") from None


def read_config(path: Path) -> list[Config]:
    """The settings in a file, a tree for each of its documents. Raises LintError."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise LintError(f"{path}: lint reads {', '.join(READERS)}, .py and .ipynb; rename it, or name another.")
    try:
        found = list(reader(read_text(path), str(path)))
    except RecursionError:
        raise LintError(f"{path}: is nested too deep to be a config; flatten it.") from None
    if not found:
        raise LintError(f"{path}: holds no settings; name a file with a mapping in it.")
    return found
