"""What other tools read of an exported run is what the run holds, absent and not finite values among it."""

import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwatch import cli
from trainwatch.export import write

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

VALUE = st.none() | st.floats()


def same(ours, theirs):
    """Equal, and NaN where the other is."""
    return ours is theirs or ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(values=st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=30))
def test_parquet_holds_what_was_written(values, play, tmp_path):
    rows = [
        {
            "kind": "step",
            "step": i,
            **{name: v for name, v in zip(("loss", "lr/0"), pair, strict=True) if v is not None},
        }
        for i, pair in enumerate(values, 1)
    ]
    write(play([{"kind": "run", "run": "a", "config": {"x": 1}}, *rows]), tmp_path / "run.parquet")
    table = parquet.read_table(tmp_path / "run.parquet")
    for name, place in (("loss", 0), ("lr/0", 1)):
        told = [pair[place] for pair in values]
        found = table[name].to_pylist() if name in table.column_names else [None] * len(values)
        assert all(a is b or (a is not None and b is not None and same(a, b)) for a, b in zip(told, found, strict=True))
    assert table["step"].to_pylist() == list(range(1, len(values) + 1))


@pytest.fixture
def resumed(play):
    """Three rows, of which a resume superseded the last, an evaluation, and a NaN."""
    rows = [{"kind": "step", "time": 5.0 + i, "step": i, "loss": 1.5 / i} for i in (1, 2, 3)]
    again = [{"kind": "step", "time": 9.0, "step": 3, "loss": math.nan, "loss/mass": math.inf}]
    judged = {"kind": "eval", "time": 9.5, "step": 3, "split": "valid", "loss": 0.25}
    return play([{"kind": "run", "id": "r"}, *rows, {"kind": "run", "id": "r", "resumed_from": 2}, *again, judged])


def test_csv(resumed, tmp_path):
    write(resumed, tmp_path / "run.csv")
    header, *lines = (tmp_path / "run.csv").read_text().splitlines()
    assert header.replace('"', "").split(",")[:6] == ["rank", "table", "step", "superseded", "time", "loss"]
    assert [line.split(",")[2:6] for line in lines] == [
        ["1", "false", "6", "1.5"],
        ["2", "false", "7", "0.75"],
        ["3", "true", "8", "0.5"],
        ["3", "false", "9", "nan"],
        ["3", "false", "9.5", "0.25"],
    ]


def test_tensorboard_reads_it(resumed, tmp_path):
    write(resumed, tmp_path / "events")
    curve = event_accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    points = [(point.step, point.wall_time, point.value) for point in curve.Scalars("loss")]
    assert points[:2] == [(1, 6.0, 1.5), (2, 7.0, 0.75)]
    assert (points[2][0], math.isnan(points[2][2])) == (3, True)
    assert [point.value for point in curve.Scalars("loss/mass")] == [math.inf]
    judged = event_accumulator.EventAccumulator(str(tmp_path / "events" / "valid")).Reload()
    assert [(point.step, point.value) for point in judged.Scalars("loss")] == [(3, 0.25)]


def test_values_in_event_files_are_float32(play, tmp_path):
    write(play([{"kind": "run"}, {"kind": "step", "step": 1, "loss": 0.1}]), tmp_path / "events")
    curve = event_accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    assert curve.Scalars("loss")[0].value == struct.unpack("f", struct.pack("f", 0.1))[0] == float(np.float32(0.1))


def test_the_command(write_run, healthy, tmp_path, capsys):
    path = write_run(healthy(30))
    for name in ("run.parquet", "run.csv", "events"):
        assert cli.main(["export", str(path), "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).exists()
    assert cli.main(["export", str(path), "-o", str(tmp_path / "run.xlsx")]) == 2
    assert cli.main(["export", str(path), "-o", str(tmp_path / "no" / "run.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err
