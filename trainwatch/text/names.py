"""What runs are called beside each other: by their names, and by their files where names are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from trainwatch.compare import Comparison
from trainwatch.text.wording import clean


def labels(said: Comparison) -> list[str]:
    """A short name for each run; see :func:`named`."""
    return named([(run["run"], run["source"]) for run in said.runs])


def named(runs: Sequence[tuple[str, str]]) -> list[str]:
    """Each run by its name; where others have the same by its file's, with the folder where that is the same too.

    Whatever is the same even then has a number.
    """
    names = [name for name, _ in runs]
    shared = {source: PurePath(source) for name, source in runs if names.count(name) > 1}
    ends = {source: _end(file, list(shared.values())) for source, file in shared.items()}
    return numbered(ends.get(source, name) for name, source in runs)


def _end(file: PurePath, files: Sequence[PurePath]) -> str:
    """As much of the end of a path as tells it from the others, without what the file ends in."""
    others = [one.parts for one in files if one != file]
    depth = next((n for n in range(1, len(file.parts) + 1) if all(one[-n:] != file.parts[-n:] for one in others)), 1)
    name = file.stem if file.suffix[1:].isalpha() else file.name
    return "/".join((*file.parts[-depth:-1], name))


def numbered(names: Iterable[str]) -> list[str]:
    """Names on one line, with a number where two are the same."""
    names = [clean(name, 40) for name in names]
    return [name if names.count(name) == 1 else f"{name} #{index}" for index, name in enumerate(names, 1)]
