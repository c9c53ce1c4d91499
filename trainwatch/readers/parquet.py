"""Parquet: a column for each metric (Trackio, pandas, our own export), or a row for each value (Neptune's exporter).

Several runs may stand in one file, told apart by a column. Parquet is read with pyarrow, which is an extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Number
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.channels import SPLITS, recognise
from trainwatch.foreign.counters import LIMIT, Row
from trainwatch.foreign.numbers import as_number
from trainwatch.foreign.points import Point, ordered, rows
from trainwatch.foreign.rewritten import Rewritten
from trainwatch.readers import ReadError
from trainwatch.run import Run

NAME = "Parquet file"

Record = dict[str, Any]

RUNS = ("run_name", "run_id", "run", "run_uuid")  # columns that tell runs apart, the best name first
NAMES = ("attribute_path", "metric", "key", "tag")  # of the metric, where each value has a row
VALUES = ("float_value", "value")
ASIDE = {"id", "rank", "time", "elapsed", "timestamp", "_timestamp", "_runtime", "log_id", "space_id"}


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """It begins with Parquet's mark."""
    return head.startswith(b"PAR1")


class ParquetFile(Rewritten):
    """One such file."""

    def read(self) -> list[Run]:
        """Its runs, told apart by a column. Raises ReadError."""
        found: list[Run] = []
        for said, records in _runs(self._records()).items():
            assembler = Assembler(self.path, NAME)
            assembler.name = next((name for name in said if name), self.path.stem)
            assembler.add(_long(records) if _columns(records[0]) else _wide(records))
            assembler.close()
            found += assembler.runs
        return found

    def _records(self) -> Iterator[Record]:
        """Its rows; an absent value is None, a NaN is one. Raises ReadError."""
        try:
            from pyarrow import parquet

            for batch in parquet.ParquetFile(self.path).iter_batches():
                yield from batch.to_pylist()
        except ImportError:
            raise ReadError(f"{self.path}: needs pyarrow; `pip install pyarrow` brings it.") from None
        except Exception as error:  # pyarrow has many kinds of its own
            said = str(error).split("\n")[0][:200]
            raise ReadError(f"{self.path}: cannot be read as Parquet ({said}); write it again.") from None


def _runs(records: Iterator[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Each run's rows, by its name and id."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(str(record.get(column) or "") for column in RUNS), []).append(record)
    return found


def _columns(record: Record) -> tuple[str, str] | None:
    """Where the name and the value stand, in a table with a row for each value."""
    name = next((column for column in NAMES if column in record), None)
    value = next((column for column in VALUES if column in record), None)
    return (name, value) if name and value and "step" in record else None


def _long(records: list[Record]) -> Iterator[Row]:
    """Text, files and settings, which an exporter writes too, have no step or no number."""
    name, value = _columns(records[0]) or ("", "")
    series: dict[str, list[Point]] = {}
    for record in records:
        step, number, said = _number(record["step"]), _number(record[value]), str(record[name])
        if step is not None and number is not None and abs(step) < LIMIT:
            series.setdefault(said, []).append(Point(int(step), said, number))
    return rows(ordered(series.values()))


def _wide(records: list[Record]) -> Iterator[Row]:
    names = [name for name in records[0] if name not in RUNS and name not in ASIDE]
    if not any(recognise(name).role != "measure" for name in names):
        return
    for record in records:
        values = {name: number for name in names if (number := _number(record[name])) is not None}
        if record.get("table") != "sample" and values:
            yield Row(values, _split(record))


def _split(record: Record) -> str:
    said = record.get("split")
    if isinstance(said, str) and said:
        return SPLITS.get(said, said)
    return "validation" if record.get("table") == "eval" else ""  # our own export


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Number) and not isinstance(value, bool | complex) else as_number(value)  # type: ignore[arg-type]  # complex is the one number that is no float


def open_file(path: Path) -> ParquetFile:
    """The file at ``path``, nothing read yet."""
    return ParquetFile(path)
