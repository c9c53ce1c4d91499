"""A run for other tools: Parquet, CSV, or TensorBoard's event files. Nobody is locked in.

Parquet and CSV hold one table, a row each record: ``rank``, ``table`` (train, eval, sample), ``step``, ``superseded``
(a resume took it out of the curve), then every channel. A value that was not recorded is null, an empty field in CSV; a
NaN or an infinity that was recorded is one. Parquet's metadata has the headers under ``trainwatch``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainwatch.run import Run
from trainwatch.schema import NONFINITE
from trainwatch.table import Floats, Table, TableName

if TYPE_CHECKING:
    import pyarrow as pa

TABLES: tuple[TableName, ...] = ("train", "eval", "sample")
SUFFIXES = (".parquet", ".csv", "")
"""What :func:`write` knows; without a suffix it is TensorBoard's folder."""


def write(run: Run, path: Path) -> None:
    """Write ``run``, all ranks of it, in the format of ``path``'s suffix. Raises OSError where that cannot be done."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(_joined(run), path)
    elif path.suffix == ".csv":
        from pyarrow import csv

        csv.write_csv(_joined(run), path)
    else:
        _write_events(run, path)


def _ranks(run: Run) -> Iterator[tuple[int, Run]]:
    yield run.header.rank, run
    yield from run.ranks.items()


def _joined(run: Run) -> pa.Table:
    import pyarrow as pa

    parts = [
        _columns(rank, name, one.table(name)) for rank, one in _ranks(run) for name in TABLES if one.table(name).size
    ]
    headers = json.dumps([header.raw for header in run.headers], default=str)
    joined = (
        pa.concat_tables(parts, promote_options="default") if parts else pa.table({"step": pa.array([], pa.int64())})
    )
    return joined.replace_schema_metadata({"trainwatch": headers})


def _columns(rank: int, name: str, rows: Table) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "rank": pa.array(np.full(rows.size, rank)),
        "table": pa.array([name] * rows.size),
        "step": pa.array(rows.step),
        "superseded": pa.array(~rows.live),
    }
    for channel in rows.channels:
        values, absent = written(rows, channel)
        columns[channel] = pa.array(values, mask=absent)
    for channel, texts in rows.text.items():
        free = channel if channel not in columns else f"{channel}.text"
        columns[free] = pa.array([_text(texts.get(row)) for row in range(rows.size)], pa.string())
    return pa.table(columns)


def written(rows: Table, channel: str) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]]]:
    """A channel as it was written, NaN and infinities included, and where it was not written. [rows], [rows]"""
    values, codes = rows[channel].copy(), rows.codes(channel)
    absent = np.isnan(values) & (codes == 0)
    values[codes == NONFINITE["inf"]], values[codes == NONFINITE["-inf"]] = np.inf, -np.inf
    return values, absent


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _write_events(run: Run, folder: Path) -> None:
    """A run of TensorBoard for training, and one beside it for each split; its values are float32, by its format."""
    for rank, one in _ranks(run):
        place = folder / f"rank{rank}" if rank else folder
        _write_table(one, "train", np.ones(one.train.size, dtype=bool), place)
        splits = one.eval.text.get("split", {})
        names = [splits.get(row, "eval") for row in range(one.eval.size)]
        for split in dict.fromkeys(names):
            _write_table(one, "eval", np.array([name == split for name in names]), place / str(split))


def _write_table(run: Run, table: TableName, chosen: np.ndarray[Any, np.dtype[np.bool_]], folder: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    rows = run.table(table)
    columns = {channel: written(rows, channel) for channel in rows.channels if channel not in ("time", "elapsed")}
    times, writer = rows["time"], EventFileWriter(str(folder))
    for row in np.flatnonzero(chosen & rows.live):
        told = {name: values[row] for name, (values, absent) in columns.items() if not absent[row]}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in told.items()])
        when = float(times[row]) if np.isfinite(times[row]) else run.touched
        writer.add_event(Event(wall_time=when, step=int(rows.step[row]), summary=summary))
    writer.close()
