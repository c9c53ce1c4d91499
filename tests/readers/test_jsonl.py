"""JSON lines of other trainers: flat, nested, concatenated, with the numbers that strict JSON forbids."""
# ruff: noqa: E501

import math

import pytest

from trainwatch.readers import ReadError, read, read_all

LLAMA_FACTORY = """{"current_steps": 10, "total_steps": 100, "loss": 2.5, "lr": 4e-05, "epoch": 0.1, "percentage": 10.0, "elapsed_time": "0:00:10"}
{"current_steps": 20, "total_steps": 100, "loss": 2.25, "lr": 3e-05, "epoch": 0.2, "percentage": 20.0, "elapsed_time": "0:00:20"}
{"current_steps": 20, "total_steps": 100, "eval_loss": 2.3, "epoch": 0.2, "percentage": 20.0, "elapsed_time": "0:00:22"}
"""
MMDETECTION = """{"env_info": "sys.platform: linux", "seed": 0, "exp_name": "mask_rcnn.py"}
{"mode": "train", "epoch": 1, "iter": 50, "lr": 0.002, "memory": 3500, "data_time": 0.05, "loss_cls": 1.5, "loss": 2.5, "time": 0.5}
{"mode": "train", "epoch": 1, "iter": 100, "lr": 0.004, "memory": 3500, "data_time": 0.05, "loss_cls": 1.25, "loss": 2.0, "time": 0.5}
{"mode": "val", "epoch": 1, "iter": 625, "lr": 0.004, "bbox_mAP": 0.25}
{"mode": "train", "epoch": 2, "iter": 50, "lr": 0.004, "memory": 3500, "data_time": 0.05, "loss_cls": 1.0, "loss": 1.5, "time": 0.5}
"""
DETECTRON2 = """{"data_time": 0.01, "iteration": 19, "loss_box_reg": 0.25, "loss_cls": 4.5, "lr": 0.0001, "total_loss": 5.5}
{"data_time": 0.01, "iteration": 39, "loss_box_reg": 0.24, "loss_cls": 3.5, "lr": 0.0002, "total_loss": 4.5}
"""
NESTED = """{"step": 1, "train": {"loss": 2.5, "losses": {"ce": 2.0, "kl": 0.5}}, "val": {"loss": 2.75, "accuracy": 0.5}}
{"step": 2, "train": {"loss": 1.5, "losses": {"ce": 1.25, "kl": 0.25}}, "val": {"loss": 1.75, "accuracy": 0.75}}
"""


def log(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    return path


def curve(run, channel, table="train"):
    rows = run.table(table)
    return [
        (step, value) for step, value in zip(rows.step.tolist(), rows[channel].tolist(), strict=True) if value == value
    ]


def test_llama_factory(tmp_path):
    """The plan is in every line; an evaluation is a line of its own."""
    run = read(log(tmp_path, LLAMA_FACTORY))
    assert run.format == "JSON lines"
    assert run.header.total_steps == 100
    assert curve(run, "loss") == [(10, 2.5), (20, 2.25)]
    assert curve(run, "lr/main") == [(10, 4e-5), (20, 3e-5)]
    assert curve(run, "loss", "eval") == [(20, 2.3)]


def test_mmdetection_counts_within_epochs(tmp_path):
    """`iter` falls where the epoch rises; the epoch's length is not told, and at least what was seen."""
    run = read(log(tmp_path, MMDETECTION))
    assert curve(run, "loss") == [(50, 2.5), (100, 2.0), (200, 1.5)]
    assert curve(run, "loss/cls") == [(50, 1.5), (100, 1.25), (200, 1.0)]
    assert curve(run, "metric/bbox_mAP", "eval") == [(100, 0.25)]
    assert len(read_all(tmp_path / "log.jsonl")) == 1


def test_detectron2(tmp_path):
    """total_loss is the sum, the others its components."""
    run = read(log(tmp_path, DETECTRON2))
    assert curve(run, "loss") == [(19, 5.5), (39, 4.5)]
    assert run.components() == ["box_reg", "cls"]


def test_nested_objects_are_flattened(tmp_path):
    """train and val are folders here; the sum is told from its parts."""
    run = read(log(tmp_path, NESTED))
    assert curve(run, "loss") == [(1, 2.5), (2, 1.5)]
    assert curve(run, "loss", "eval") == [(1, 2.75), (2, 1.75)]
    assert curve(run, "metric/accuracy", "eval") == [(1, 0.5), (2, 0.75)]
    assert sorted(run.components()) == ["ce", "kl"]


def test_numbers_that_strict_json_forbids(tmp_path):
    """Python's json writes NaN and Infinity bare; some write numbers as text."""
    text = '{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}\n{"step": 3, "loss": "9.5"}\n{"step": 4, "loss": "inf"}\n'
    run = read(log(tmp_path, text))
    assert run.train.codes("loss").tolist() == [1, 3, 0, 2]
    assert run.train["loss"][2] == 9.5


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1, "loss": 2.0}{"step": 2, "loss": 1.0}',
        '{"step": 1, "loss": 2.0} {"step": 2, "loss": 1.0}\n',
        '{\n  "step": 1,\n  "loss": 2.0\n}\n{\n  "step": 2,\n  "loss": 1.0\n}\n',
        '{"step": 1, "loss": 2.0},\r\n{"step": 2, "loss": 1.0},\r\n',
    ],
)
def test_objects_one_behind_the_other(tmp_path, text):
    """On one line, on many lines, with commas between."""
    assert curve(read(log(tmp_path, text)), "loss") == [(1, 2.0), (2, 1.0)]


def test_a_torn_line_costs_itself_alone(tmp_path):
    """And is counted."""
    text = '{"step": 1, "loss": 3.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\nhello\n{"step": 4, "loss": 0.5}\n{"step": 5,'
    run = read(log(tmp_path, text))
    assert curve(run, "loss") == [(1, 3.0), (3, 1.0), (4, 0.5)]
    assert any("skipped 3 lines" in note for note in run.notes)


def test_rows_of_one_step_are_one_row(tmp_path):
    """A logger that is called once for each value."""
    text = '{"step": 1, "loss": 3.0}\n{"step": 1, "lr": 0.5}\n{"step": 2, "loss": 2.0}\n{"step": 2, "lr": 0.25}\n'
    run = read(log(tmp_path, text))
    assert run.train.step.tolist() == [1, 2]
    assert run.train["lr/main"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("text", ['{"name": "x", "size": 3}\n', '{"learning_rate": 0.1, "layers": 3}\n', "{}\n"])
def test_settings_are_no_log(tmp_path, text):
    """A config.json in the same folder is left alone."""
    with pytest.raises(ReadError, match="no rows with a step, an epoch or a loss"):
        read(log(tmp_path, text))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "bomb",
    ["{" * 10**6, '{"a":' * 10**5, '{"step": 1' + "\n" * 10**5 + "}", '{"step":' + "9" * 10**6 + "}", "}\n" * 10**5],
)
def test_hostile_json(tmp_path, bomb):
    """Nesting, huge numbers, objects that never end."""
    run = read(log(tmp_path, f'{{"step": 1, "loss": 2.0}}\n{bomb}\n{{"step": 2, "loss": 1.0}}\n'))
    assert curve(run, "loss") == [(1, 2.0), (2, 1.0)]


def test_huge_counters_are_no_steps(tmp_path):
    """Beyond 2**53 a count has no neighbours."""
    run = read(log(tmp_path, '{"step": 1, "loss": 2.0}\n{"step": 1e300, "loss": 1.0}\n{"step": NaN, "loss": 1.0}\n'))
    assert curve(run, "loss") == [(1, 2.0)]
    assert not math.isnan(run.train["loss"][0])
