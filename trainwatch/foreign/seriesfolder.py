"""A folder in which a tracker keeps each metric in a file of its own; read anew whenever one of them grew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainwatch.foreign.assembly import About, Assembler
from trainwatch.foreign.points import Point, ordered, rows
from trainwatch.run import Run

Parsed = Callable[[str, str], Point | None]  # (name, line) -> point, None for a line that is none


class SeriesFolder:
    """One run, which the file at ``path`` stands for.

    Its metrics are whatever matches ``pattern`` below the folder ``metrics``, each named by its place there; ``about``
    says its name, its config and its end, if its writer leaves one (``tells_end``).
    """

    def __init__(
        self, path: Path, format_: str, metrics: Path, pattern: str, parsed: Parsed, about: Callable[[], About]
    ) -> None:
        self.path, self.format, self.metrics, self.pattern = path, format_, metrics, pattern
        self.runs: list[Run] = []
        self.tells_end = False
        self._parsed, self._about = parsed, about
        self._seen: dict[Path, tuple[int, int]] = {}

    def poll(self) -> bool:
        """Read the metrics if one of them changed, or the file; True if so. Raises OSError."""
        files = sorted(file for file in self.metrics.rglob(self.pattern) if file.is_file())
        stats = {file: file.stat() for file in (self.path, *files)}
        seen = {file: (stat.st_mtime_ns, stat.st_size) for file, stat in stats.items()}
        if seen == self._seen:
            return False
        self._seen = seen
        assembler, about = Assembler(self.path, self.format), self._about()
        assembler.name, assembler.config = about.name, about.config
        assembler.add(rows(ordered(self._series(file) for file in files)))
        if about.end is not None and assembler.runs:
            assembler.add([about.end])
        assembler.close()
        self.runs = assembler.runs
        for run in self.runs:
            run.touched, run.tells_end = max(stat.st_mtime for stat in stats.values()), self.tells_end
        return True

    def _series(self, file: Path) -> list[Point]:
        name = file.relative_to(self.metrics).as_posix().removesuffix(self.pattern.lstrip("*"))
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        return [point for line in lines if (point := self._parsed(name, line)) is not None]

    def close(self) -> None:
        """The files are whole, or were read as far as they go."""
