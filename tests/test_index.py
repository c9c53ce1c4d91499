"""Runs that were read before: the same as if they were read anew, and never those of another file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from trainwatch import index as indexed
from trainwatch.engine import Engine, Settings
from trainwatch.following import Followed
from trainwatch.index import Index, cache_folder
from trainwatch.run import Run

HEADER = {
    "kind": "run",
    "schema": 1,
    "run": "long",
    "id": "a",
    "total_steps": 400,
    "time": 1.7e9,
    "components": {"x": {"unit": "nat"}},
    "config": {"optimizer": {"lr": 0.1}, "odd": [1e308, -0.0, 2**60]},
}


def row(step: int) -> dict[str, Any]:
    more = {"loss/x": None, "nonfinite": {"loss/x": "nan"}} if step in (150, 151) else {"loss/x": 1 / step}
    return {"kind": "step", "step": step, "time": 1.7e9 + step, "loss": 1 / step, "lr/main": 0.1, "note": "t", **more}


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def write(path: Path, *, steps: int = 300, end: bool = True) -> Path:
    last = [{"kind": "event", "event": "x", "step": 9}, {"kind": "eval", "step": 100, "split": "valid", "loss": 1.5}]
    ended = [{"kind": "end", "status": "finished", "time": 1.8e9}] if end else []
    path.write_bytes(lines(HEADER, *map(row, range(1, steps)), *last, *ended) + b"no record\n")
    return path


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "cache", worth=100)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return write(tmp_path / "logs" / "long.jsonl")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were judged, as they are."""
    found: list[Run] = []
    feed = Engine.feed
    monkeypatch.setattr(Engine, "feed", lambda self, run: (found.append(run), feed(self, run)))
    return found


def looked(path: Path, index: Index | None = None, settings: Settings | None = None) -> Followed:
    followed = Followed(path, settings, index)
    followed.look()
    assert not followed.error
    return followed


def same(one: Run, other: Run) -> None:
    assert one.records_kept() == other.records_kept()
    for name in ("train", "eval", "sample"):
        a, b = one.table(name), other.table(name)  # type: ignore[arg-type]
        assert (a.channels, a.nonfinite_channels(), a.text, a.reach) == (
            b.channels,
            b.nonfinite_channels(),
            b.text,
            b.reach,
        )
        for (part, mine), (_, theirs) in zip(a.arrays().items(), b.arrays().items(), strict=True):
            assert np.array_equal(mine, theirs, equal_nan=mine.dtype == np.float64), part


def test_a_run_that_ended_is_neither_read_nor_judged_again(log: Path, index: Index, fed: list[Run]) -> None:
    fresh = looked(log, index)
    assert len(fed) == 1
    again = looked(log, index)
    assert len(fed) == 1
    assert fresh.run is not None
    assert again.run is not None
    same(fresh.run, again.run)
    assert again.diagnosis == fresh.diagnosis
    assert again.diagnosis is not None
    assert any(finding.rule == "non-finite-loss" for finding in again.diagnosis.findings)
    assert again.news == fresh.news
    assert list((log.parent).iterdir()) == [log]  # nothing beside a log
    assert index.folder.stat().st_mode & 0o777 == 0o700


def test_what_was_appended_is_read_on(log: Path, index: Index, fed: list[Run]) -> None:
    write(log, end=False)
    looked(log, index)
    rest = lines(*map(row, range(300, 380)), {"kind": "end", "status": "finished", "time": 1.8e9})
    with log.open("ab") as file:
        file.write(rest)
    again, anew = looked(log, index), looked(log)
    assert again.run is not None
    assert anew.run is not None
    same(again.run, anew.run)
    assert again.diagnosis == anew.diagnosis
    assert len(fed) == 3  # judged anew: what the rules remember is not kept
    looked(log, index)
    assert len(fed) == 3


def test_a_recalled_run_goes_on_growing(log: Path, index: Index) -> None:
    looked(log, index)
    again = looked(log, index)
    with log.open("ab") as file:
        file.write(lines({**HEADER, "config": {}, "resumed_from": 200}, *map(row, range(201, 500))))
    assert again.look()
    anew = looked(log)
    assert again.run is not None
    assert anew.run is not None
    same(again.run, anew.run)
    assert again.diagnosis == anew.diagnosis


def _rewritten(log: Path, _: Path) -> None:
    text = log.read_bytes()
    log.write_bytes(text.replace(b'"step":40,', b'"step":41,'))
    os.utime(log, ns=(1, 1))


def _shorter(log: Path, _: Path) -> None:
    write(log, steps=200)


def _other_end(log: Path, _: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"no record", b"no rexord") + lines(row(300)))


def _other_head(log: Path, _: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"run":"long"', b'"run":"lang"') + lines(row(300)))


def _cut(_: Path, entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-300])


def _flipped(_: Path, entry: Path) -> None:
    bytes_ = bytearray(entry.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    entry.write_bytes(bytes_)


def _nonsense(_: Path, entry: Path) -> None:
    entry.write_bytes(b"not ours")


def _objects(_: Path, entry: Path) -> None:
    np.savez(entry, told=np.array([{"program": 1}], dtype=object))


def _empty(_: Path, entry: Path) -> None:
    np.savez(entry, told=np.frombuffer(b"{}", np.uint8))


DAMAGES = (_rewritten, _shorter, _other_end, _other_head, _cut, _flipped, _nonsense, _objects, _empty)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_read_anew(
    damage: Callable[[Path, Path], None], log: Path, index: Index, fed: list[Run]
) -> None:
    looked(log, index)
    (entry,) = index.folder.iterdir()
    damage(log, entry)
    again, anew = looked(log, index), looked(log)
    assert again.run is not None
    assert anew.run is not None
    same(again.run, anew.run)
    assert again.diagnosis == anew.diagnosis
    assert len(fed) == 3
    looked(log, index)
    assert len(fed) == 3  # and kept again


def test_another_program_or_other_settings_judge_anew(
    log: Path, index: Index, fed: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked(log, index)
    other = looked(log, index, Settings(off=frozenset({"non-finite-loss"})))
    assert len(fed) == 2
    assert other.diagnosis is not None
    assert all(finding.rule != "non-finite-loss" for finding in other.diagnosis.findings)
    monkeypatch.setattr(indexed, "_program", lambda: "another")
    looked(log, index)
    assert len(fed) == 3


def test_what_ranks_or_lists_of_checkpoints_belong_to_is_not_kept(log: Path, index: Index) -> None:
    write(log.with_name("long.rank1.jsonl"))
    looked(log, index)
    log.with_name("long.rank1.jsonl").unlink()
    log.with_name("long_checkpoints.jsonl").write_text('{"step": 3, "path": "x"}\n')
    looked(log, index)
    assert not index.folder.exists()


def test_the_folder_stays_within_its_bound(tmp_path: Path, index: Index) -> None:
    logs = [write(tmp_path / f"{name}.jsonl") for name in "abc"]
    looked(logs[0], index)
    (entry,) = index.folder.iterdir()
    index = replace(index, bound=int(2.5 * entry.stat().st_size))
    looked(logs[1], index)
    for number, kept in enumerate(sorted(index.folder.iterdir(), key=lambda kept: kept == entry)):
        os.utime(kept, (1000 + number, 1000 + number))
    looked(logs[0], index)  # used: it stays
    looked(logs[2], index)
    assert entry in list(index.folder.iterdir())
    assert len(list(index.folder.iterdir())) == 2
    assert math.fsum(kept.stat().st_size for kept in index.folder.iterdir()) <= index.bound


def test_a_folder_that_cannot_be_written_is_no_trouble(log: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert looked(log, Index(tmp_path / "file" / "cache", worth=1)).diagnosis is not None


def test_a_short_log_is_not_kept(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    looked(log, Index(cache_folder()))
    assert not (tmp_path / "own").exists()
