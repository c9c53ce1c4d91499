"""Other people's logs as their writers write them: read exactly, by one reader alone, whole and while they grow."""

import contextlib
import json
import math
import re
import shutil
import sqlite3
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwatch.foreign.recordlog import RecordLog
from trainwatch.readers import ReadError, find, open_run, read, read_all, readers

LOGS = Path(__file__).parents[1] / "data" / "logs"
TRUTH = json.loads((LOGS / "truth.json").read_text())
FILES = sorted(str(path.relative_to(LOGS)) for path in LOGS.rglob("*") if path.is_file() and path.name != "truth.json")
FORMATS = {
    "baselines_log.txt": "console output",
    "baselines_progress.csv": "columns (CSV, TSV)",
    "baselines_progress.json": "JSON lines",
    "dvclive/metrics.json": "DVCLive folder",
    "dvclive/params.yaml": None,
    "dvclive/plots/metrics/grad_norm.tsv": "DVCLive folder",
    "dvclive/plots/metrics/train/loss.tsv": "DVCLive folder",
    "dvclive/plots/metrics/val/loss.tsv": "DVCLive folder",
    "hugging_face.log": "console output",
    "hugging_face/checkpoint-300/trainer_state.json": "Hugging Face trainer_state.json",
    "keras.csv": "columns (CSV, TSV)",
    "keras.log": "console output",
    "lightning/metrics.csv": "columns (CSV, TSV)",
    "lightning/hparams.yaml": None,
    "long.parquet": "Parquet file",
    "mlflow.db": "MLflow database",
    **{
        f"mlruns/0/{run}/{file}": "MLflow folder" if file == "meta.yaml" else None
        for run in ("first", "second")
        for file in (
            *("meta.yaml", "metrics/grad_norm", "metrics/train/loss", "metrics/val/loss"),
            *("params/layers", "params/lr"),
        )
    },
    "run-a1b2c3d4.wandb": "W&B run file",
    "swanlab/files/config.yaml": None,
    "swanlab/run-a1b2c3d4.swanlab": "SwanLab run file",
    **{
        f"tensorboard_parts/{folder}events.out.tfevents.1700000000.host.1.0": "TensorBoard event file"
        for folder in ("", "Loss_train_ce/", "Loss_train_kl/", "loss_train/", "loss_val/")
    },
    "tensorboard_simple/events.out.tfevents.1700000000.host.1.0": "TensorBoard event file",
    "tensorboard_tensor/events.out.tfevents.1700000000.host.1.0": "TensorBoard event file",
    "tqdm.log": "console output",
    "trackio.db": "Trackio database",
    "ultralytics.log": "console output",
    "wide.parquet": "Parquet file",
}
"""How each file is read; None where it belongs to a run, and is none by itself."""
PARTS = [name for name in FORMATS if "/plots/" in name or re.match("tensorboard_parts/.*/", name)]

RECORDED = b'{"kind": "run", "schema": 1, "run": "ours", "id": "a"}\n{"kind": "step", "step": 1, "loss": 1.0}\n'


def column(run, table, name):
    """Steps and values of what was written in a channel, exact: NaN and infinities too."""
    table, _, split = table.partition(":")
    frame = run.frame(table)
    if split:
        frame = frame[frame["split"] == split]
    rows = run.table(table)
    written = ~np.isnan(rows[name]) | (rows.codes(name) > 0)
    frame = frame[[bool(written[index]) for index in frame.index]]
    return frame["step"].tolist(), frame[name].tolist()


def same(found, expected):
    return len(found) == len(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", TRUTH)
def test_values_are_those_that_were_written(name):
    """Every step, every loss, every norm: to the last digit that the writer left."""
    run = read(LOGS / name)
    for table, columns in TRUTH[name].items():
        for channel, values in columns.items():
            if channel == "step":
                continue
            steps, found = column(run, table, channel)
            assert steps == columns["step"], (table, channel)
            assert same(found, [float(value) for value in values]), (table, channel)


def test_every_file_is_in_the_list():
    """Whoever adds a writer to make_logs.py says here how it is read."""
    assert sorted(FORMATS) == FILES


@pytest.mark.parametrize("name", FILES)
def test_one_reader_knows_it_and_no_other(name):
    """Sniffing is exclusive, so that the order of the readers says nothing."""
    path = LOGS / name
    head = path.read_bytes()[: 64 << 10]
    assert [reader.NAME for reader in readers() if reader.sniff(path, head)] == [*filter(None, [FORMATS[name]])]


def test_a_run_file_is_known_to_its_own_reader_alone(tmp_path):
    """Also where another program wrote into it first."""
    path = tmp_path / "run.log"
    for before in (b"", b"loading took 3 s, loss: 0.3\n"):
        path.write_bytes(before + RECORDED)
        assert [reader.NAME for reader in readers() if reader.sniff(path, path.read_bytes())] == ["trainwatch run file"]


def test_a_folder_of_all_formats_is_searched():
    """One path a run."""
    assert sorted(str(path.relative_to(LOGS)) for path in find(LOGS)) == [
        name for name in FILES if FORMATS[name] and name not in PARTS
    ]


def test_a_foreign_log_is_never_called_killed():
    """Its writer leaves no last word, so silence says nothing."""
    run = read(LOGS / "keras.csv")
    assert run.status(now=run.touched + 1e6) == "finished"
    assert run.status(now=run.touched) == "running"


def rows(run):
    return {
        table: {name: column(run, table, name) for name in run.table(table).channels} for table in ("train", "eval")
    }


TEXTS = [name for name in FILES if FORMATS[name] in ("console output", "columns (CSV, TSV)", "JSON lines")]


@pytest.mark.parametrize(
    "name",
    [
        *TEXTS,
        "run-a1b2c3d4.wandb",
        "swanlab/run-a1b2c3d4.swanlab",
        "tensorboard_simple/events.out.tfevents.1700000000.host.1.0",
    ],
)
def test_a_growing_file_becomes_what_the_whole_one_is(tmp_path, name):
    """Cut anywhere, also in the middle of a line or a record."""
    whole = (LOGS / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(whole[: len(whole) // 2 + 7])
    source = open_run(path)
    for share in (0.5, 0.7, 0.95, 1.0):
        path.write_bytes(whole[: int(len(whole) * share) + 7])
        source.poll()
    source.close()
    assert repr(rows(source.runs[-1])) == repr(rows(read(LOGS / name)))


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    """Lightning rewrites its table when a new column comes."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,3.0\n2,2.0\n")
    source = open_run(path)
    source.poll()
    path.write_text("step,loss,val_loss\n1,3.0,\n2,2.0,\n3,1.0,1.5\n")
    source.poll()
    source.close()
    run = source.runs[-1]
    assert run.train["loss"].tolist() == [3.0, 2.0, 1.0]
    assert run.eval["loss"].tolist() == [1.5]


def test_a_trainer_state_is_read_again_with_the_next_checkpoint(tmp_path):
    """It is written whole, and says to the user that its losses were filtered."""
    name = "hugging_face/checkpoint-300/trainer_state.json"
    path = tmp_path / "trainer_state.json"
    state = json.loads((LOGS / name).read_text())
    state["log_history"] = state["log_history"][:5]
    path.write_text(json.dumps(state))
    source = open_run(path)
    assert source.poll()
    assert not source.poll()
    assert source.runs[-1].last_step == 50
    shutil.copy(LOGS / name, path)
    assert source.poll()
    assert source.runs[-1].last_step == 300
    assert any("logging_nan_inf_filter" in note for note in source.runs[-1].notes)


def test_a_wandb_file_tells_name_config_and_end(tmp_path):
    """An exit record is the last word; a file without one is alive, or was killed."""
    whole = (LOGS / "run-a1b2c3d4.wandb").read_bytes()
    run = read(LOGS / "run-a1b2c3d4.wandb")
    assert (run.name, run.header.config) == ("a name", {"lr": 0.1, "model": {"layers": 3}})
    assert run.status() == "finished"
    path = tmp_path / "run-x.wandb"
    path.write_bytes(whole[:-40])
    assert read(path).status(now=2e10) == "killed"


def test_a_trackio_database_has_several_runs(tmp_path):
    """Each with its name and config; rows that come later are added; nothing is written."""
    path = tmp_path / "trackio.db"
    shutil.copy(LOGS / "trackio.db", path)
    before = path.read_bytes()
    source = open_run(path)
    assert source.poll()
    assert not source.poll()
    assert [(run.name, run.train.size, run.header.config) for run in source.runs] == [
        ("first", 30, {"lr": 0.1}),
        ("second", 30, {"lr": 0.1}),
    ]
    assert path.read_bytes() == before
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics)"
            " SELECT run_id, timestamp, run_name, 310, metrics FROM metrics WHERE run_name = 'first' LIMIT 1"
        )
    assert source.poll()
    source.close()
    assert source.runs[0].last_step == 310


@pytest.mark.parametrize("name", ["trackio.db", "mlflow.db"])
@pytest.mark.parametrize("texts", [(b"CREATE TABLE", b"metrics"), (b"first",)])
def test_a_database_with_broken_text_is_refused(tmp_path, name, texts):
    """In its schema, where what SQLite says of it is no text either, or in a value."""
    path, content = tmp_path / name, (LOGS / name).read_bytes()
    for text in texts:
        content = content.replace(text, b"\x83" + text[1:])
    path.write_bytes(content)
    with pytest.raises(ReadError):
        read(path)


def test_an_mlflow_database_grows_and_ends(tmp_path):
    """Each run with its name, parameters and status; a NaN is no 0; values that come later are added."""
    path = tmp_path / "mlflow.db"
    shutil.copy(LOGS / "mlflow.db", path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE runs SET status = 'RUNNING' WHERE name = 'second'")
    source = open_run(path)
    assert source.poll()
    assert not source.poll()
    assert [(run.name, run.train.size, run.header.config) for run in source.runs] == [
        ("first", 30, {"lr": 0.1, "layers": 3}),
        ("second", 30, {"lr": 0.1, "layers": 3}),
    ]
    assert [run.status(now=2e10) for run in source.runs] == ["finished", "killed"]
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        second = "(SELECT run_uuid FROM runs WHERE name = 'second')"
        database.execute(f"INSERT INTO metrics VALUES ('train/loss', 0.25, 0, {second}, 310, 0)")
        database.execute("UPDATE runs SET status = 'FAILED'")
    assert source.poll()
    source.close()
    assert (source.runs[1].last_step, source.runs[1].status()) == (310, "failed")


def test_an_mlflow_folder_is_read_again_when_it_grew(tmp_path):
    """Its parameters are the config, its status the end."""
    shutil.copytree(LOGS / "mlruns" / "0" / "first", tmp_path / "run")
    path = tmp_path / "run" / "meta.yaml"
    source = open_run(path)
    assert source.poll()
    assert not source.poll()
    (run,) = source.runs
    assert (run.name, run.header.config, run.status()) == ("first", {"lr": 0.1, "layers": 3}, "finished")
    with (tmp_path / "run" / "metrics" / "train" / "loss").open("a") as file:
        file.write("1800000000000 0.25 310\nno metric\n")
    assert source.poll()
    assert source.runs[0].last_step == 310


def test_dvclive_and_swanlab_tell_their_settings():
    """From the files beside them."""
    run = read(LOGS / "dvclive" / "metrics.json")
    assert (run.name, run.header.config) == ("logs", {"lr": 0.1})
    run = read(LOGS / "swanlab" / "run-a1b2c3d4.swanlab")
    assert (run.name, run.header.config, run.status()) == ("a name", {"lr": 0.1, "model": {"layers": 3}}, "finished")


def test_lightning_leaves_its_config_beside_the_metrics():
    """hparams.yaml, plain values alone."""
    assert read(LOGS / "lightning" / "metrics.csv").header.config == {"batch_size": 32, "optimizer": {"lr": 0.001}}


def test_our_own_export_is_read_again(tmp_path):
    """Training and evaluation apart, NaN and absent too."""
    from trainwatch.export import write

    run = read(LOGS / "wide.parquet")
    write(run, tmp_path / "x.parquet")
    again = read(tmp_path / "x.parquet")
    for table, name in (("train", "loss"), ("train", "grad_norm"), ("eval:validation", "loss")):
        assert repr(column(again, table, name)) == repr(column(run, table, name))


def test_records_go_over_blocks(tmp_path):
    """A record of a hundred thousand bytes has a first, middle and last parts; a damaged one ends the reading."""

    def framed(payload, room):
        parts = [payload[:room], *(payload[at : at + 32761] for at in range(room, len(payload), 32761))]
        for index, part in enumerate(parts):
            kind = bytes([2 if index == 0 else 4 if index == len(parts) - 1 else 3])
            yield (
                zlib.crc32(part, zlib.crc32(kind)).to_bytes(4, "little") + len(part).to_bytes(2, "little") + kind + part
            )

    payload = bytes(range(256)) * 400
    path = tmp_path / "long.wandb"
    path.write_bytes(b":W&B\xe1\xbe\0" + b"".join(framed(payload, 32768 - 14)))
    assert list(RecordLog(path).records()) == [payload]
    broken = bytearray(path.read_bytes())
    broken[50_000] ^= 1
    path.write_bytes(broken)
    log = RecordLog(path)
    assert (list(log.records()), "damaged" in log.broken) == ([], True)


def test_event_files_of_one_folder_are_one_run(tmp_path):
    """In the order of their names; the first stands for the run."""
    name = "tensorboard_simple/events.out.tfevents.1700000000.host.1.0"
    whole = (LOGS / name).read_bytes()
    (tmp_path / "events.out.tfevents.1.host").write_bytes(whole)
    (tmp_path / "events.out.tfevents.2.host").write_bytes((LOGS / name.replace("simple", "tensor")).read_bytes())
    assert [path.name for path in find(tmp_path)] == ["events.out.tfevents.1.host"]
    assert sum(run.train.size for run in read_all(tmp_path / "events.out.tfevents.1.host")) == 60


def test_event_files_that_were_gathered_under_other_names_are_runs_of_their_own(tmp_path):
    """Whoever keeps the runs of a study in one folder has renamed them."""
    names = [f"{study}-events.out.tfevents.{start}.h" for study in ("a", "b") for start in (1, 20)]
    for name in names:
        write_events(tmp_path / name, "loss", range(int(name.split(".")[3]), int(name.split(".")[3]) + 19))
    assert [path.name for path in find(tmp_path)] == names[::2]
    for name in names[::2]:
        [run] = read_all(tmp_path / name)
        assert (run.name, run.train.size) == (Path(name).stem, 38)


PARTED = LOGS / "tensorboard_parts"


def test_sub_folders_of_add_scalars_are_one_run(tmp_path):
    """Also where they come into being, and grow, one after the other."""
    whole = read(PARTED / "events.out.tfevents.1700000000.host.1.0")
    assert (whole.name, len(whole.headers)) == ("tensorboard_parts", 1)
    files = sorted(path for path in PARTED.rglob("*") if path.is_file())
    shutil.copy(files[-3], tmp_path)
    source = open_run(tmp_path / files[-3].name)
    for share in (0.0, 0.3, 0.8, 1.0):
        source.poll()
        for file in files:
            content, copy = file.read_bytes(), tmp_path / file.relative_to(PARTED)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(content[: int(len(content) * (share if "kl" in file.parent.name else share**2))])
    assert source.poll()
    assert not source.poll()
    source.close()
    assert len(source.runs) == 1
    assert repr(rows(source.runs[0])) == repr(rows(whole))


def test_a_resumed_run_with_sub_folders_is_one_run(tmp_path):
    """The second process writes its own file into each folder, from the step on that it resumed at."""
    for folder, tag in (("", "lr"), ("loss_a", "loss"), ("loss_b", "loss")):
        (tmp_path / folder).mkdir(exist_ok=True)
        for start in (1, 31):
            write_events(tmp_path / folder / f"events.out.tfevents.{start}.h", tag, range(start, start + 40))
    [path] = find(tmp_path)
    [run] = read_all(path)
    assert [header.resumed_from for header in run.headers] == [None, 30]
    for name in ("lr/main", "loss/a", "loss/b"):
        assert run.train.curve(name)[0].tolist() == list(range(1, 71)), name


def test_two_trainings_side_by_side_are_two_runs(tmp_path):
    """Names and tags that do not fit, or no event file in the folder above: each is a run of its own."""
    for folder in ("apart/loss_a", "apart/loss_b", "lr_1", "lr_2"):
        (tmp_path / folder).mkdir(parents=True)
        write_events(tmp_path / folder / "events.out.tfevents.1.h", "loss", range(1, 20))
    write_events(tmp_path / "events.out.tfevents.1.h", "loss", range(1, 20))
    assert [path.parent.name for path in find(tmp_path)] == ["loss_a", "loss_b", tmp_path.name, "lr_1", "lr_2"]
    assert all(run.train.size == 19 for path in find(tmp_path) for run in read_all(path))


def write_events(path, tag, steps):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    began = float(path.name.split(".")[3]) * 1e6
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        for step in steps:
            scalar = Summary(value=[Summary.Value(tag=tag, simple_value=1 / step)])
            writer.write(Event(wall_time=began + step, step=step, summary=scalar).SerializeToString())


@settings(max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", [name for name in FILES if FORMATS[name]])
def test_damage_is_one_sentence_or_fewer_rows(tmp_path, name, data):
    """Flipped bits, cut ends, bytes put in: never a traceback, never a hang."""
    content = bytearray((LOGS / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    content[0:0] = data.draw(st.binary(max_size=4))
    path = tmp_path / Path(name).name
    path.write_bytes(content)
    with contextlib.suppress(ReadError):
        assert all(run.train.size + run.eval.size <= len(content) for run in read_all(path))
