"""Following a file: nothing is read twice, nothing is told twice, and what cannot be read says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwatch import following
from trainwatch.diagnosis import diagnose
from trainwatch.engine import Settings
from trainwatch.following import Folder, Followed
from trainwatch.readers import read

LOGS = Path(__file__).parent / "data" / "logs"


@pytest.fixture
def whole(write_run, healthy):
    """A run file with a NaN in one component, from step 300 on."""
    records = healthy(400)
    for record in records:
        if record.get("kind") == "step" and record["step"] >= 300:
            record["loss/precursor"] = float("nan")
    return write_run(records, "whole.jsonl")


def test_a_growing_file_is_judged_as_the_whole_and_each_finding_is_told_once(whole, tmp_path):
    path, told = tmp_path / "grown.jsonl", []
    followed = Followed(path)
    lines = whole.read_bytes().splitlines(keepends=True)
    for start in range(0, len(lines), 90):
        with path.open("ab") as file:
            file.writelines(lines[start : start + 90])
        assert followed.look()
        told += [(finding.key, finding.rank) for finding in followed.news]
    assert followed.diagnosis.findings == diagnose(read(whole)).findings
    assert followed.over
    assert len(set(told)) == len(told)
    assert {finding.key for finding in followed.diagnosis.findings} <= {key for key, _ in told}


def test_a_file_that_stands_still_costs_a_stat(whole, monkeypatch):
    followed = Followed(whole)
    assert followed.look()
    monkeypatch.setattr(followed._source, "poll", lambda: pytest.fail("read a run that is over"))
    assert not followed.look()
    assert followed.news == ()


def test_a_run_that_waits_is_opened_now_and_then(write_run, healthy, monkeypatch):
    followed = Followed(write_run(healthy()[:300]))
    assert followed.look()
    assert not followed.over
    polls = []
    poll = followed._source.poll
    monkeypatch.setattr(followed._source, "poll", lambda: polls.append(1) or poll())
    monkeypatch.setattr(following, "QUIET_SECONDS", 3600.0)
    followed.look()
    assert polls == []
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.0)
    assert not followed.look()
    assert polls == [1]


def test_a_file_that_comes_and_goes_and_comes_again(whole, tmp_path):
    path = tmp_path / "later.jsonl"
    followed = Followed(path)
    assert followed.look()
    assert "there is no such file" in followed.error
    assert not followed.look()
    path.write_bytes(whole.read_bytes())
    assert followed.look()
    assert (followed.error, followed.runs) == ("", 1)
    path.unlink()
    assert followed.look()
    assert followed.run is None
    path.write_bytes(whole.read_bytes())
    assert followed.look()
    assert followed.news, "it may be another run"


def test_a_last_look_takes_what_stands_after_the_last_newline(whole, tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_bytes(whole.read_bytes().rstrip(b"\n"))
    followed = Followed(path)
    followed.look()
    assert not followed.over
    followed.look(last=True)
    assert followed.over
    assert followed.diagnosis.findings == diagnose(read(whole)).findings


def test_a_rule_that_is_off_stays_off(whole):
    followed = Followed(whole, Settings(off=frozenset({"non-finite-loss", "hidden-nan"})))
    followed.look()
    assert not {finding.rule for finding in followed.diagnosis.findings} & {"non-finite-loss", "hidden-nan"}


def test_a_reader_that_breaks_is_an_error_and_no_traceback(whole, monkeypatch):
    monkeypatch.setattr(following, "conclude", lambda *_: 1 / 0)
    followed = Followed(whole)
    assert followed.look()
    assert "could not be judged (ZeroDivisionError" in followed.error


def test_a_folder_holds_each_run_once_whatever_wrote_it(tmp_path):
    found = Folder(LOGS).files()
    assert "lightning/metrics.csv" in found
    assert len([key for key in found if key.startswith("dvclive/")]) == 1
    assert len([key for key in found if key.startswith("tensorboard_simple/")]) == 1
    assert Folder(tmp_path).files() == {}


def test_a_folder_is_listed_anew_only_after_a_while(tmp_path, write_run, healthy, monkeypatch):
    folder = Folder(tmp_path)
    assert folder.files() == {}
    write_run(healthy()[:2], "new.jsonl")
    assert folder.files() == {}
    monkeypatch.setattr(following, "SCAN_SECONDS", 0.0)
    assert list(folder.files()) == ["new.jsonl"]
