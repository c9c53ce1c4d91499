"""The reader of our own run files: whole, growing, torn, foreign and hostile."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwatch.readers import ReadError, find, open_run, read, read_all, recorder

HEADER = {"kind": "run", "schema": 1, "run": "exp", "id": "a1", "time": 0.0, "elapsed": 0.0, "total_steps": 100}


def line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"


def step(number: int, **channels) -> dict:
    return {
        "kind": "step",
        "time": float(number),
        "elapsed": float(number),
        "step": number,
        "loss": 1.0 / number,
        **channels,
    }


def write(path: Path, *records: dict) -> Path:
    path.write_bytes(b"".join(line(record) for record in records))
    return path


def test_values_are_exact_and_non_finite_ones_stay_apart_from_absent_ones(tmp_path):
    """null with a code is NaN or infinity; no key is absence; both are told apart in every view."""
    bad = step(2, loss=None, grad_norm=None, nonfinite={"loss": "nan", "grad_norm": "-inf"})
    run = read(
        write(tmp_path / "r.jsonl", HEADER, step(1, grad_norm=0.1), bad, step(3), {"kind": "end", "status": "finished"})
    )
    assert run.train.step.tolist() == [1, 2, 3]
    assert run.train["loss"][[0, 2]].tolist() == [1.0, 1 / 3]
    assert run.train.codes("loss").tolist() == [0, 1, 0]
    assert run.train.codes("grad_norm").tolist() == [0, 3, 0]
    assert run.train.nonfinite("grad_norm")[0].tolist() == [2]
    assert run.frame()["grad_norm"][1] == -np.inf
    assert (run.name, run.status(), run.records) == ("exp", "finished", 5)


def test_unknown_keys_kinds_and_texts_are_kept(tmp_path):
    """The format grows without breaking readers."""
    run = read(
        write(tmp_path / "r.jsonl", HEADER, step(1, mood="good", flag=True, new=3), {"kind": "omen", "colour": "red"})
    )
    assert run.frame().loc[0, ["mood", "flag", "new"]].tolist() == ["good", 1.0, 3.0]
    assert run.events == [{"kind": "omen", "colour": "red"}]


def test_what_cannot_be_read_is_counted_with_its_first_line_and_costs_nothing_else(tmp_path):
    """Torn, foreign, NUL and stepless lines: each is named, every good row is there."""
    path = tmp_path / "r.jsonl"
    rubbish = [
        b"Epoch 1: 10%\n",
        b'{"kind": "step", "st\n',
        b"\0\0\0\n",
        line({"kind": "step", "loss": 1.0}),
        b"[1, 2]\n",
    ]
    path.write_bytes(
        line(HEADER) + line(step(1)) + b"".join(rubbish) + line(step(2)) + b'{"kind": "step", "step": 3, "lo'
    )
    run = read(path)
    assert run.train.step.tolist() == [1, 2]
    notes = " | ".join(run.notes)
    assert "2 lines cut off" in notes
    assert "first at line 4" in notes
    assert "2 lines no record" in notes
    assert "NUL" in notes
    assert "without a usable step" in notes


def test_a_whole_last_line_without_newline_counts(tmp_path):
    """An editor may have taken the last newline away."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(line(HEADER) + line(step(1)).rstrip())
    assert read(path).train.size == 1


def test_bare_nan_and_infinity_tokens_are_values(tmp_path):
    """Not strict JSON, but somebody's file."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(line(HEADER) + b'{"kind": "step", "step": 1, "loss": NaN, "x": Infinity, "y": 2}\n')
    run = read(path)
    assert run.train.codes("loss").tolist() == [1]
    assert run.train.codes("x").tolist() == [2]
    assert run.train["y"].tolist() == [2.0]


def test_a_resume_supersedes_later_rows_and_keeps_them_apart(tmp_path):
    """The curve has each step once; the abandoned rows are still there."""
    resumed = {**HEADER, "resumed_from": 2}
    path = write(tmp_path / "r.jsonl", HEADER, *map(step, (1, 2, 3, 4)), resumed, step(3, loss=9.0), step(4, loss=9.0))
    run = read(path)
    assert run.train.curve("loss")[1].tolist() == [1.0, 0.5, 9.0, 9.0]
    assert run.frame(superseded=True)["step"].tolist() == [3, 4]
    assert (run.first_step, run.last_step, len(run.headers)) == (1, 4, 2)


def test_a_second_header_with_another_id_is_another_run(tmp_path):
    """Several runs in one file are told apart; the newest is what `read` gives."""
    path = write(tmp_path / "r.jsonl", HEADER, step(1), {**HEADER, "id": "b2", "run": "other"}, step(1), step(2))
    first, second = read_all(path)
    assert (first.name, first.train.size, second.name, second.train.size) == ("exp", 1, "other", 2)
    assert "several" in second.notes[0]


def test_the_same_id_without_resume_is_a_new_attempt(tmp_path):
    """It starts over: the earlier rows are superseded."""
    run = read(write(tmp_path / "r.jsonl", HEADER, step(1), step(2), {**HEADER, "attempt": 2}, step(1)))
    assert run.train.live.tolist() == [False, False, True]


def test_rank_files_belong_to_their_run(tmp_path):
    """Together they are one run, also in a search."""
    main = write(tmp_path / "r.jsonl", HEADER, step(1))
    write(tmp_path / "r.rank1.jsonl", {**HEADER, "rank": 1}, step(1), step(2))
    assert read(main).ranks[1].train.size == 2
    assert list(find(tmp_path)) == [main]


def test_what_a_run_printed_belongs_to_it(tmp_path):
    """The console's output beside a recording of its name is no run of its own; where none was recorded, it is."""
    main = write(tmp_path / "r.jsonl", HEADER, step(1))
    (tmp_path / "r.log").write_text("step 1 loss 2.5\nstep 2 loss 2.4\n")
    assert list(find(tmp_path)) == [main]
    assert read(tmp_path / "r.log").train.size == 2
    main.write_text("")
    assert list(find(tmp_path)) == [tmp_path / "r.log"]


@given(cuts=st.lists(st.integers(min_value=0, max_value=2000), max_size=8))
def test_following_in_any_pieces_gives_the_same_run(tmp_path_factory, cuts):
    """A growing file and a finished one take the same way."""
    folder = tmp_path_factory.mktemp("follow")
    records = [HEADER, step(1), step(2, loss=None, nonfinite={"loss": "inf"}), {"kind": "event", "event": "note"}]
    records += [step(3, extra=1.0), {"kind": "eval", "step": 3, "split": "val", "loss": 2.0}, step(4)]
    content = b"".join(line(record) for record in records)
    whole, growing = folder / "whole.jsonl", folder / "growing.jsonl"
    whole.write_bytes(content)
    edges = sorted({len(line(HEADER)), len(content), *(cut for cut in cuts if len(line(HEADER)) < cut < len(content))})
    growing.write_bytes(content[: edges[0]])
    source = open_run(growing)
    source.poll()
    for start, stop in pairwise(edges):
        with growing.open("ab") as file:
            file.write(content[start:stop])
        assert source.poll()
    assert not source.poll()
    expected, seen = read(whole), source.runs[-1]
    assert seen.frame().equals(expected.frame())
    assert seen.frame("eval").equals(expected.frame("eval"))
    assert seen.events == expected.events
    assert seen.train.codes("loss").tolist() == expected.train.codes("loss").tolist()


ROW = st.builds(
    lambda number, loss, more: {"kind": "step", "step": number, "loss": loss} | more,
    st.sampled_from([1, 2, 3.0, 2.5, -1, 2**60, "soon", None]) | st.integers(1, 9),
    st.sampled_from([1.0, 2, 0.5, None, True, "text", float("nan"), 2**70]) | st.floats(0, 9),
    st.sampled_from([{}, {}, {}, {"kl": 1.5}, {"nonfinite": {"loss": "inf"}}]),
)
WRITTEN = st.one_of(
    *(ROW.map(lambda row: json.dumps(row).encode()),) * 3,
    st.sampled_from(
        [
            *(
                b'{"kind":"step","step":1',
                b'"loss":2}',
                b'{"kind":"step","step":1,"a":[{}',
                b"{}]}",
                b"{},{}",
                b"{},0,{}",
            ),
            *(b"", b"hello", b"3", b'"x', b'y"', b"[1]", b"null", b'{"kind":3}', b'{"kind":["step"],"step":1}'),
            *(
                b'{"kind":"step"}',
                b'{"kind":"eval","step":1,"split":"val","loss":2}',
                b'{"kind":"end","status":"failed"}',
            ),
            *(
                b'{"kind":"run","id":"b"}',
                b'{"kind":"run","id":"b","resumed_from":1}',
                b'{"kind":"heartbeat","step":2}',
            ),
        ]
    ),
)


@given(lines=st.lists(WRITTEN, max_size=80), odd=st.integers(1, 7))
def test_lines_that_are_read_together_say_what_each_says_alone(tmp_path_factory, lines, odd):
    """Whatever stands before and behind a line, and wherever a batch ends."""
    path = tmp_path_factory.getbasetemp() / "together.jsonl"
    path.write_bytes(b"\n".join([line(HEADER), *lines]))
    shown = []
    for at_once in (1, odd, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recorder, "AT_ONCE", at_once)
            runs = read_all(path)
        shown.append(repr([said(run) for run in runs]))
    assert shown[0] == shown[1] == shown[2]


def said(run):
    tables = [(table.step.tolist(), table.live.tolist(), table.text,
               [(name, table[name].tolist(), table.codes(name).tolist()) for name in table.channels])
              for table in (run.train, run.eval)]  # fmt: skip
    return run.headers, run.events, run.end, run.heartbeat, run.records, sorted(run.notes), tables


def test_a_run_that_was_written_over_is_forgotten(tmp_path):
    """Two runs never become one, also when the new one is longer."""
    source = open_run(write(tmp_path / "r.jsonl", HEADER, step(1)))
    source.poll()
    write(tmp_path / "r.jsonl", {**HEADER, "id": "b2", "run": "new"}, step(1), step(2), step(3))
    assert source.poll()
    assert [(run.name, run.train.size) for run in source.runs] == [("new", 3)]


def test_hostile_values_are_survived(tmp_path):
    """Numbers beyond any float, nested rows, other types in the header, and a row of 10,000 channels."""
    path = tmp_path / "r.jsonl"
    wild = {"kind": "run", "components": 5, "curriculum": [1], "schedules": {"a": 1}, "total_steps": -3}
    rows = [b'{"kind": "step", "step": 1, "loss": 1' + b"0" * 400 + b"}\n"]
    rows += [line({"kind": "step", "step": 2**80, "loss": 1.0}), line(step(3, deep={"a": [1]}, nonfinite="what"))]
    rows += [line(step(4, nonfinite={"loss": "odd"}, **{f"c{i}": i for i in range(10_000)}))]
    path.write_bytes(line(wild) + b"".join(rows))
    run = read(path)
    assert run.header.total_steps is None
    assert 4 in run.train.step
    assert any("4,096" in note for note in run.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "nothing but blanks"),
        (b"\xff\xd8\xff\xe0 JFIF", "JPEG"),
        (b'[{"kind": "run"}]', "JSON array"),
        (b"[1.5, 2]", "JSON array"),
        (b"[05/06 12:00:01 d2.engine]: Starting training from iteration 0\n", "text of another format"),
        (b'{"name": 1}\n', "no rows with a step, an epoch or a loss"),
        (b"hello\n", "another format"),
        (b"0.5,0.25,0.125\n0.75,0.5,0.25\n", "without a header, 3 in the first row"),
        (line({**HEADER, "schema": 2}), "update trainwatch"),
        (line({**HEADER, "schema": "2"}), "update trainwatch"),
    ],
)
def test_what_is_no_run_file_is_refused_in_one_sentence(tmp_path, content, said):
    """Thing, value, remedy: and no traceback."""
    path = tmp_path / "e.jsonl"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    """A slip of the finger is the usual cause."""
    write(tmp_path / "demo.jsonl", HEADER)
    with pytest.raises(ReadError, match=r"did you mean .*demo\.jsonl"):
        read(tmp_path / "dmeo.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path):
    """The remedy is a permission."""
    path = write(tmp_path / "r.jsonl", HEADER)
    path.chmod(0)
    with pytest.raises(ReadError, match="permissions"):
        read(path)
