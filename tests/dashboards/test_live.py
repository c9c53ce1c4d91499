"""The state behind the pages: read once, judged as a whole would be, safe for many tabs and from odd files."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dash")

from dashboards.listing import row_of
from dashboards.live import Live, View
from dashboards.notes import Note
from dashboards.pages.verdict import verdict
from dashboards.take import numbers
from trainwatch.diagnosis import diagnose
from trainwatch.engine import Engine, catalogue
from trainwatch.figures import FIGURES
from trainwatch.figures.look import WHOLE, Look
from trainwatch.index import WORTH
from trainwatch.readers import read
from trainwatch.readers.recorder import RunFile

Write = Callable[..., Path]


def settled(live: Live, key: str) -> View:
    """The view once its first reading is over."""
    for _ in range(200):
        view = live.view(key)
        if view is not None and (view.diagnosis or view.error):
            return view
        time.sleep(0.05)
    raise AssertionError(f"{key} was never read")


def test_a_long_run_is_not_read_again_by_a_new_server(
    tmp_path: Path, write: Write, header: Any, row: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [row(step, 12_000) for step in range(1, 12_001)]
    path = write(tmp_path / "long.jsonl", header("long", 12_000), *some, end())
    assert path.stat().st_size > WORTH
    first = settled(Live(tmp_path), "long.jsonl")
    monkeypatch.setattr(Engine, "feed", lambda *_: pytest.fail("judged again"))
    monkeypatch.setattr(RunFile, "_take", lambda *_, **__: pytest.fail("read again"))
    again = settled(Live(tmp_path), "long.jsonl")
    assert again.diagnosis == first.diagnosis
    assert again.facts == first.facts
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_read_in_pieces_is_judged_as_a_whole(finished: Path, tmp_path: Path) -> None:
    lines = (finished / "peptide.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "grown.jsonl"
    live = Live(tmp_path)
    for piece in itertools.batched(lines, 97) if hasattr(itertools, "batched") else [lines[:300], lines[300:]]:
        with path.open("ab") as file:
            file.writelines(piece)
        settled(live, "grown.jsonl")
    grown = settled(live, "grown.jsonl").diagnosis
    whole = diagnose(read(path))
    assert grown is not None
    assert grown.findings == whole.findings
    assert (grown.root_cause, grown.last_step, grown.status) == (whole.root_cause, whole.last_step, whole.status)
    assert grown.findings, "the fixture is sick"


def test_nothing_new_is_no_new_version(finished: Path) -> None:
    live = Live(finished)
    first = settled(live, "peptide.jsonl")
    assert first.over
    assert live.view("peptide.jsonl") is first


def test_a_finished_file_is_not_opened_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(finished)
    settled(live, "peptide.jsonl")
    file = live.file("peptide.jsonl")
    assert file is not None
    monkeypatch.setattr(file.followed._source, "poll", lambda: pytest.fail("polled a finished run"))
    assert settled(live, "peptide.jsonl").error == ""


def test_a_new_row_is_a_new_version(tmp_path: Path, write: Write, row: Any, header: Any) -> None:
    path = write(tmp_path / "a.jsonl", header(), *(row(step) for step in range(1, 20)))
    live = Live(tmp_path)
    before = settled(live, "a.jsonl")
    write(path, row(20))
    after = settled(live, "a.jsonl")
    assert after.version > before.version
    assert after.facts is not None
    assert after.facts.last_step == 20
    assert not after.over


def test_many_tabs_see_one_state(finished: Path) -> None:
    live = Live(finished)
    with ThreadPoolExecutor(8) as tabs:
        list(tabs.map(lambda _: live.view("peptide.jsonl"), range(40)))
        view = settled(live, "peptide.jsonl")
        file = live.file("peptide.jsonl")
        assert file is not None
        drawn = list(tabs.map(lambda _: file.draw("loss", WHOLE), range(16)))
    assert view.version == 1
    assert len({one.digest for one in drawn if one}) == 1


def test_a_growing_run_can_be_drawn_while_it_is_read(tmp_path: Path, write: Write, row: Any, header: Any) -> None:
    path = write(tmp_path / "a.jsonl", header(), row(1))
    live = Live(tmp_path)
    settled(live, "a.jsonl")
    file = live.file("a.jsonl")
    assert file is not None
    with ThreadPoolExecutor(4) as tabs:
        work = [tabs.submit(file.draw, name, WHOLE) for name in ("loss", "share", "weights") * 10]
        for step in range(2, 60):
            write(path, row(step))
            work.append(tabs.submit(live.view, "a.jsonl"))
        assert all(one.result() is not None for one in work)


@pytest.mark.parametrize("key", ["../secret.jsonl", "/etc/passwd", "..", "", "a/../../secret.jsonl", "peptide.jsonl\0"])
def test_only_what_lies_in_the_folder_is_known(finished: Path, key: str) -> None:
    assert Live(finished).view(key) is None


def test_a_link_that_leads_out_of_the_folder_is_not_followed(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "out.jsonl").symlink_to(finished / "peptide.jsonl")
    assert Live(folder).views() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\x89PNG\r\n\0\0", "PNG"), (b'{"a": 1}\n', "no rows with a step, an epoch or a loss")],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "odd.jsonl").write_bytes(content)
    view = settled(Live(tmp_path), "odd.jsonl")
    assert said in view.error


def test_a_forbidden_file_says_why(tmp_path: Path, write: Write, header: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = write(tmp_path / "a.jsonl", header())
    path.chmod(0)
    assert "permissions" in settled(Live(tmp_path), "a.jsonl").error


def test_a_run_that_somebody_opens_does_not_wait_for_a_folder(
    tmp_path: Path, write: Write, row: Any, header: Any
) -> None:
    write(tmp_path / "a.jsonl", header(), row(1))
    live = Live(tmp_path)
    long = threading.Event()
    for _ in range(2):
        live._pool.submit(long.wait, 60)  # as long first readings do
    assert live.views()[0].diagnosis is None
    view = live.view("a.jsonl", 20.0)
    long.set()
    assert view is not None
    assert view.diagnosis is not None


def test_an_unreadable_file_is_read_once_it_is_a_run(tmp_path: Path, write: Write, row: Any, header: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    live = Live(tmp_path)
    assert settled(live, "a.jsonl").error
    write(path, header(), row(1))
    for _ in range(100):
        view = live.view("a.jsonl")
        if view and view.diagnosis:
            return
        time.sleep(0.02)
    raise AssertionError("the file was not read again")


def test_a_file_that_was_written_anew_is_another_run(tmp_path: Path, write: Write, row: Any, header: Any) -> None:
    path = write(tmp_path / "a.jsonl", header("first"), *(row(step) for step in range(1, 50)))
    live = Live(tmp_path)
    assert settled(live, "a.jsonl").facts.last_step == 49  # type: ignore[union-attr]
    path.unlink()
    write(path, header("second"), row(1))
    view = settled(live, "a.jsonl")
    assert view.diagnosis is not None
    assert (view.diagnosis.run, view.facts.last_step) == ("second", 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("rows", [1, 80])
def test_a_tab_left_open_follows_a_file_that_was_replaced(
    tmp_path: Path, write: Write, row: Any, header: Any, end: Any, rows: int
) -> None:
    """As when the demo is run again; the new file may be longer than the old one when somebody looks."""
    path = write(tmp_path / "a.jsonl", header("first"), *(row(step) for step in range(1, 50)), end())
    live = Live(tmp_path)
    before = settled(live, "a.jsonl")
    assert before.over
    path.unlink()
    write(path, header("second"), *(row(step) for step in range(1, rows + 1)))
    view = settled(live, "a.jsonl")
    assert view.diagnosis is not None
    assert view.facts is not None
    assert (view.diagnosis.run, view.facts.last_step, view.over) == ("second", rows, False)
    assert view.run is not before.run
    assert view.version > before.version
    alone = diagnose(read(path))
    assert view.diagnosis.findings == alone.findings


def test_a_file_that_was_written_over_in_place_is_another_run(
    tmp_path: Path, write: Write, row: Any, header: Any, end: Any
) -> None:
    path = write(tmp_path / "a.jsonl", header("first"), *(row(step) for step in range(1, 20)), end())
    live = Live(tmp_path)
    settled(live, "a.jsonl")
    path.write_bytes(b"")
    write(path, header("second"), *(row(step) for step in range(1, 60)))
    view = settled(live, "a.jsonl")
    assert view.diagnosis is not None
    assert (view.diagnosis.run, view.runs) == ("second", 1)


def test_the_newest_of_several_runs_is_shown_and_the_others_are_mentioned(
    tmp_path: Path, write: Write, row: Any, header: Any, end: Any
) -> None:
    write(tmp_path / "a.jsonl", header("first"), row(1), end(), header("second"), row(1), row(2))
    view = settled(Live(tmp_path), "a.jsonl")
    assert view.runs == 2
    for page in (verdict(view), row_of(view, Note())):
        assert "a.jsonl, the newest of 2 runs in this file" in str(page)


def test_a_rule_that_broke_is_not_called_nothing_found(
    tmp_path: Path, write: Write, row: Any, header: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in catalogue().values():
        monkeypatch.setattr(rule, "start", lambda *_: 1 / 0)
    write(tmp_path / "a.jsonl", header(), row(1))
    view = settled(Live(tmp_path), "a.jsonl")
    assert view.diagnosis is not None
    assert view.diagnosis.worst is None
    for page in (verdict(view), row_of(view, Note())):
        assert "broke on this run" in str(page)
        assert "Nothing found" not in str(page)
        assert "No finding" not in str(page)


def test_a_finding_about_the_header_is_shown_on_the_whole_run(finished: Path) -> None:
    live = Live(finished)
    view = settled(live, "peptide.jsonl")
    finding = replace(view.diagnosis.findings[0], first_step=0, last_step=0)  # type: ignore[union-attr]
    assert live.file("peptide.jsonl").spot(finding)[0] == (1, 600)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("started", "shown"), [("2026-11-21T05:40:09.411Z", "2026-11-21 05:40 UTC"), ("yesterday", "yesterday")]
)
def test_the_start_is_told_to_the_minute(
    tmp_path: Path, write: Write, row: Any, header: Any, started: str, shown: str
) -> None:
    write(tmp_path / "a.jsonl", header(started=started), row(1))
    assert settled(Live(tmp_path), "a.jsonl").facts.about["started"] == shown  # type: ignore[union-attr]


def test_other_files_are_no_runs(tmp_path: Path, write: Write, header: Any) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "a.jsonl", header())
    write(tmp_path / "a.rank1.jsonl", header())
    assert Live(tmp_path).views() == []


def test_a_figure_that_breaks_says_so(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(finished)
    settled(live, "peptide.jsonl")
    broken = FIGURES["loss"]._replace(draw=lambda *_, **__: 1 / 0)
    monkeypatch.setitem(FIGURES, "loss", broken)
    drawn = live.file("peptide.jsonl").draw("loss", WHOLE)  # type: ignore[union-attr]
    assert drawn is not None
    assert "could not be drawn (ZeroDivisionError)" in drawn.json


def test_who_asked_a_run_to_stop_is_in_its_story(tmp_path: Path, write: Any, header: Any, row: Any, end: Any) -> None:
    asked = {
        "kind": "event",
        "event": "intervention",
        "time": 1.8e9,
        "step": 20,
        "action": "stop",
        "rule": "lr-too-high",
    }
    told = {**asked, "message": "x.stop asks the run to stop", "by": "trainwatch watch", "why": "it\x1b[31m diverges"}
    rows = [row(step) for step in range(1, 21)]
    write(tmp_path / "a.jsonl", header(), *rows, told, end("stopped", reason="stop file"))
    live = Live(tmp_path)
    file = live.file("a.jsonl")
    assert file is not None
    file.refresh()
    (moment,) = (one for one in file.story().moments if one.kind == "intervention")
    assert (moment.step, moment.text) == (20, "stop asked by trainwatch watch, for lr-too-high: it diverges")
    with file.lock:
        assert "intervention" not in numbers(file.figure("loss", Look(points=None)))
