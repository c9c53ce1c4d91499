"""The table of runs without a browser: its lines, what is sent of it, and the notes beside the runs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("dash")

import dash

from dashboards.listing import Listing, Seen
from dashboards.live import Live
from dashboards.notes import NAME, Note, Notes, NotesError
from dashboards.pages import runs as runs_page
from dashboards.spark import HEIGHT, WIDTH, Spark
from tests.dashboards.conftest import broken
from trainwatch.run import Run

Write = Callable[..., Path]


def curve(values: list[float], name: str = "loss") -> Run:
    run = Run(Path("a.jsonl"))
    told = np.array(values, dtype=float)
    first = run.add_rows("train", np.arange(1, len(values) + 1), {name: np.where(np.isfinite(told), told, np.nan)})
    for row, value in enumerate(values):
        if not np.isfinite(value):
            run.train.mark(first + row, name, 1 if np.isnan(value) else (2 if value > 0 else 3))
    return run


def points(line: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in (point.split(",") for point in line.split())]


@given(st.lists(st.floats(-1e300, 1e300) | st.sampled_from([float("nan"), float("inf"), -float("inf")]), max_size=300))
def test_a_line_stays_in_its_box_and_marks_all_that_is_not_finite(values: list[float]) -> None:
    spark = Spark.of(curve(values), "loss")
    told = [point for line in spark.lines for point in points(line)]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in told)
    assert len(told) <= 2 * (2 * 22 + 2)
    kinds = {kind for _, kind in spark.bad}
    assert kinds == {str(value) for value in values if not np.isfinite(value)}


def test_a_line_breaks_where_the_loss_was_no_number() -> None:
    spark = Spark.of(curve([3.0, 2.0, float("nan"), 1.5, 1.0]), "loss")
    assert [len(points(line)) for line in spark.lines] == [2, 2]
    before, after = (points(line) for line in spark.lines)
    assert before[-1][0] < spark.bad[0][0] < after[0][0]
    assert "NaN at step 3" in spark.said


def test_a_spike_of_one_step_is_seen_among_many() -> None:
    values = [1.0] * 100_000
    values[43_210] = 9.0
    spark = Spark.of(curve(values), "loss")
    assert min(y for line in spark.lines for _, y in points(line)) == 4  # the top of the box


def test_a_loss_over_decades_is_drawn_on_a_log_scale() -> None:
    spark = Spark.of(curve([1000.0, 100.0, 10.0, 1.0]), "loss")
    heights = [y for _, y in points(spark.lines[0])]
    assert "log scale" in spark.said
    assert max(np.diff(heights)) - min(np.diff(heights)) <= 1


def settled(listing: Listing, count: int) -> dict[str, Any]:
    for _ in range(400):
        news = listing.news(None)
        if len(news["rows"]) == count and all(row["state"] != "reading" for row in news["rows"]):
            return news
        time.sleep(0.05)
    raise AssertionError("the runs were never read")


def test_a_tick_sends_only_the_rows_that_changed(tmp_path: Path, write: Write, row: Any, header: Any, end: Any) -> None:
    for name in ("a", "b", "c"):
        write(
            tmp_path / f"{name}.jsonl", header(name), *(row(step) for step in range(1, 30)), *([end()] * (name != "b"))
        )
    listing = Listing(Live(tmp_path))
    seen = settled(listing, 3)["seen"]
    *_, pace, _ = runs_page.update(listing, seen, 0, {})
    with pytest.raises(dash.exceptions.PreventUpdate):
        runs_page.update(listing, seen, pace, {})
    write(tmp_path / "b.jsonl", row(30))
    news, seen, *_ = runs_page.update(listing, seen, pace, {})
    assert [(one["key"], one["steps"]) for one in news["rows"]] == [("b.jsonl", 30)]
    assert len(json.dumps(news)) < 3000
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path / "d.jsonl", header("d"), row(1), end())
    until = time.monotonic() + 20  # the folder is listed anew every two seconds
    while {one["key"] for one in listing.rows()} != {"b.jsonl", "c.jsonl", "d.jsonl"} and time.monotonic() < until:
        time.sleep(0.05)
    told = settled(listing, 3)
    after = listing.news(Seen.of(seen))
    assert [one["key"] for one in after["rows"]] == ["d.jsonl"]
    assert after["gone"] == ["a.jsonl"]
    assert told["seen"] == after["seen"]


@pytest.mark.parametrize("odd", [None, {}, {"revision": "x"}, {"server": "other", "revision": 9**9}, [1]])
def test_a_tab_of_another_server_is_told_everything(
    tmp_path: Path, write: Write, row: Any, header: Any, odd: Any
) -> None:
    write(tmp_path / "a.jsonl", header(), row(1))
    listing = Listing(Live(tmp_path))
    settled(listing, 1)
    news = listing.news(Seen.of(odd))
    assert news["all"]
    assert len(news["rows"]) == 1


def test_no_row_says_running_when_its_process_is_gone(tmp_path: Path, write: Write, row: Any, header: Any) -> None:
    write(tmp_path / "a.jsonl", header(host=os.uname().nodename, pid=2**22 + 1), *(row(step) for step in range(1, 30)))
    rows = settled(Listing(Live(tmp_path)), 1)["rows"]
    assert rows[0]["state"] == "killed"


def test_the_tab_tells_the_worst_of_what_runs(tmp_path: Path, write: Write, row: Any, header: Any, end: Any) -> None:
    bad = [broken(row(step), loss="nan") for step in range(20, 30)]
    write(tmp_path / "a.jsonl", header("a"), *(row(step) for step in range(1, 20)), *bad)
    write(tmp_path / "b.jsonl", header("b"), *(row(step) for step in range(1, 20)), end())
    rows = settled(Listing(Live(tmp_path)), 2)["rows"]
    assert runs_page.face(rows)["title"].startswith("◆ Critical: 1 of 1 running")
    assert runs_page.face([one for one in rows if one["state"] == "finished"])["icon"] == "none"


def test_a_folder_that_went_away_is_said_so(tmp_path: Path, write: Write, header: Any, row: Any) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    write(folder / "a.jsonl", header(), row(1))
    listing = Listing(Live(folder))
    settled(listing, 1)
    (folder / "a.jsonl").unlink()
    folder.rmdir()
    assert "is not there any more" in listing.news(None)["trouble"]


def test_a_note_is_kept_in_a_hidden_file_and_no_log_is_touched(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "logs"))
    logs = {path: path.read_bytes() for path in folder.iterdir()}
    listing = Listing(Live(folder))
    settled(listing, 1)
    change = {"rowId": "peptide.jsonl", "colId": "tags", "value": "good,  to  publish,good", "oldValue": ""}
    answer = runs_page.edited(listing, [change, {**change, "colId": "note", "value": "<b>look</b>"}])
    assert answer["said"].startswith("Kept")
    assert (answer["rows"][-1]["tags"], answer["rows"][-1]["note"]) == ("good, to publish", "<b>look</b>")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != NAME} == logs
    again = settled(Listing(Live(folder)), 1)["rows"]  # the notes file is no run
    assert again[0]["tags"] == "good, to publish"


def test_two_tabs_do_not_write_over_each_other(tmp_path: Path) -> None:
    here, there = Notes(tmp_path), Notes(tmp_path)
    here.edit("a", "note", "mine", "")
    with pytest.raises(NotesError, match="somebody else wrote “mine”"):
        there.edit("a", "note", "theirs", "")
    there.edit("b", "tags", "x, y", "")
    assert here.all(["a", "b", "c"]) == {"a": Note((), "mine"), "b": Note(("x", "y"))}
    here.edit("b", "tags", "", "x, y")
    assert here.all(["a", "b"]) == {"a": Note((), "mine")}


def test_notes_of_many_tabs_at_once_are_all_kept(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    with ThreadPoolExecutor(8) as tabs:
        list(tabs.map(lambda index: notes.edit(f"run {index}", "note", f"note {index}", ""), range(40)))
    assert len(Notes(tmp_path).all(f"run {index}" for index in range(40))) == 40
    assert [path.name for path in tmp_path.iterdir()] == [NAME]  # nothing half-written is left


def test_a_folder_that_cannot_be_written_to_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    else:  # root may write everywhere

        def refuse(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NotesError, match=r"cannot be written to \(Permission denied\)"):
        Notes(tmp_path).edit("a", "note", "x", "")
    tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"runs": 3}', b"\xff\xfe", b"loss: 1\n"])
def test_a_file_that_is_not_ours_is_never_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    notes = Notes(tmp_path)
    assert notes.all(["a"]) == {}
    assert "not a notes file" in notes.error
    with pytest.raises(NotesError):
        notes.edit("a", "note", "x", "")
    assert (tmp_path / NAME).read_bytes() == content


def test_a_link_in_its_place_does_not_lead_a_note_into_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text('{"runs": {}}')
    (tmp_path / NAME).symlink_to(log)
    Notes(tmp_path).edit("a", "note", "x", "")
    assert log.read_text() == '{"runs": {}}'
    assert not (tmp_path / NAME).is_symlink()


def test_notes_of_single_files_lie_beside_each(tmp_path: Path) -> None:
    files = [tmp_path / "one" / "a.jsonl", tmp_path / "two" / "a.jsonl"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    Notes(files).edit(str(files[0]), "note", "x", "")
    assert Notes(files[0]).all(["a.jsonl"]) == {"a.jsonl": Note((), "x")}
    assert Notes(tmp_path / "two").all(["a.jsonl"]) == {}


@pytest.mark.parametrize(
    ("name", "value"), [("tags", ",".join(map(str, range(21)))), ("tags", "x" * 41), ("note", "x" * 2001)]
)
def test_what_is_too_long_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(NotesError, match="at most"):
        Notes(tmp_path).edit("a", name, value, "")
    assert list(tmp_path.iterdir()) == []


ODD = [
    None,
    {},
    [{}],
    [{"rowId": "../../x", "colId": "note", "value": "x"}],
    [{"rowId": "peptide.jsonl", "colId": "run"}],
]


@pytest.mark.parametrize("changes", ODD)
def test_only_notes_of_known_runs_are_kept(finished: Path, changes: Any) -> None:
    listing = Listing(Live(finished))
    before = sorted(finished.iterdir())
    assert runs_page.edited(listing, changes)["rows"] == []
    assert sorted(finished.iterdir()) == before
