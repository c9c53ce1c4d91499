"""Event files as columns: the same run as row by row, point by point."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwatch.foreign import assembly, eventlog
from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.eventlog import EventFile, Tags
from trainwatch.foreign.grid import Grid
from trainwatch.readers.tfevents import open_file


def varint(value):
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def part(number, content):
    return bytes([number << 3 | 2, *varint(len(content))]) + content


def event(step, tag, value):
    """As SummaryWriter writes it: a step of 0 is left out."""
    scalar = part(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
    counted = bytes([0x10, *varint(step % (1 << 64))]) if step else b""
    return b"\x09" + struct.pack("<d", 1.0) + counted + part(5, part(1, scalar))


def framed(payload):
    return len(payload).to_bytes(8, "little") + bytes(4) + payload + bytes(4)


START = framed(b"\x09" + bytes(8) + part(3, b"brain.Event:2"))


def shown(runs):
    return [
        (run.headers, [(table.step.tolist(), [(n, table[n].tolist(), table.codes(n).tolist()) for n in table.channels],
                        table.text) for table in (run.train, run.eval)], run.named, run.records)
        for run in runs
    ]  # fmt: skip


POINTS = st.lists(
    st.tuples(
        st.integers(-3, 3) | st.integers(0, 1 << 40),
        st.sampled_from(["loss", "loss/kl", "val/loss", "lr", "epoch", "x" * 140, "µ", "hp_metric", "a\0"]),
        st.floats(width=32) | st.just(float("nan")),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(points=POINTS)
def test_points_are_those_that_were_written(tmp_path_factory, points):
    """Any step, any tag, any value: the quick way and the long one say the same."""
    path = tmp_path_factory.mktemp("events") / "events.out.tfevents.1.h"
    path.write_bytes(START + b"".join(framed(event(*point)) for point in points))
    tags = Tags()
    found = EventFile(path, tags).points()
    names = list(tags.names)
    kept = [point for point in points if point[1] != "hp_metric"]
    assert found.step.tolist() == [step for step, _, _ in kept]
    assert [names[tag] for tag in found.tag] == [tag for _, tag, _ in kept]
    assert repr(found.value.tolist()) == repr([value for _, _, value in kept])


@pytest.mark.parametrize("block", [200, 1000])
def test_records_go_over_blocks(tmp_path, monkeypatch, block):
    """A block ends anywhere; a record that is larger is passed over."""
    monkeypatch.setattr(eventlog, "BLOCK", block)
    monkeypatch.setattr(eventlog, "LARGEST", block)
    path = tmp_path / "events.out.tfevents.1.h"
    records = [framed(event(step, "loss", step / 2)) for step in range(40)]
    path.write_bytes(START + b"".join(records[:20]) + framed(bytes(2000)) + b"".join(records[20:]))
    file = EventFile(path, Tags())
    assert (file.points().value.tolist(), file.broken) == ([step / 2 for step in range(40)], "")


ROWS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.dictionaries(
            st.sampled_from(["loss", "kl loss", "lr", "val/loss", "epoch", "speed"]),
            st.sampled_from([1.0, 2.5, float("nan"), float("inf")]),
            min_size=1,
        ),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[0],
)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, cut=st.integers(1, 60))
def test_a_table_is_read_as_its_rows_are(tmp_path_factory, rows, cut):
    """What is stored at once is what is stored row by row, also where the table grows."""
    path = tmp_path_factory.getbasetemp() / "log"
    rows.sort(key=lambda row: row[0])
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    one, other = Assembler(path, "a"), Assembler(path, "a")
    for some in (rows[:cut], rows[cut:]):
        points = [(step, names.index(name), value) for step, values in some for name, value in values.items()]
        if not points:
            continue
        step, name, value = (np.array(column) for column in zip(*points, strict=True))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assembly, "SHOWING", len(some))  # what counters mean is seen from the same rows
            patch.setattr(assembly, "FEW", 1)
            one.add_grid(Grid.of(step, name, value.astype(np.float64), names))
        other.naming.learn((name, "") for name in names)
        ordered = [(step, {name: values[name] for name in names if name in values}) for step, values in some]
        other.add([Row({"step": float(step), **values}) for step, values in ordered])
    one.close()
    other.close()
    assert repr(shown(one.runs)) == repr(shown(other.runs))


def test_tags_by_epoch_get_the_step_that_was_reached(tmp_path):
    """Validation that counts epochs stands beside training that counts steps."""
    path = tmp_path / "events.out.tfevents.1.h"
    records = []
    for step in range(1, 101):
        records.append(event(step, "loss", 1.0))
        if step % 25 == 0:
            records.append(event(step // 25, "val/loss", 2.0))
    path.write_bytes(START + b"".join(framed(record) for record in records))
    source = open_file(path)
    source.poll()
    source.close()
    assert source.runs[-1].eval.step.tolist() == [25, 50, 75, 100]
