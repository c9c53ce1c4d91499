"""Settings in a YAML file that somebody else's trainer left beside its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20  # bytes; more is no config, and an alias may make much of little


def read_settings(path: Path) -> dict[str, Any]:
    """What a YAML file says; nothing where there is none, or where it asks for more than plain values."""
    try:
        if path.stat().st_size > LARGEST:
            return {}
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
