"""Real logs are read right: they are no part of the project, so a variable of the environment says where they lie."""

import json
import os
from pathlib import Path

import pytest
import readings

FOLDER = os.environ.get("TRAINWATCH_REALLOGS", "")


@pytest.mark.skipif(not FOLDER, reason="TRAINWATCH_REALLOGS names no folder of real logs")
@pytest.mark.parametrize("name", readings.expected())
def test_a_real_log_is_read_right(name):
    """Runs, rows, steps, components, channels."""
    assert list(readings.wrong(Path(FOLDER), [name])) == []


def test_what_is_read_otherwise_is_told(tmp_path, monkeypatch):
    """With what was found and what was expected; a file that is not there is read otherwise."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"step": s, "loss": 1 / s}) + "\n" for s in range(1, 10)))
    monkeypatch.setattr(readings, "EXPECTED", tmp_path / "expected")
    readings.write(tmp_path)
    readings.EXPECTED.write_text(readings.EXPECTED.read_text() + '{"file": "b.log", "runs": [{}]}\n')
    assert list(readings.wrong(tmp_path, readings.expected())) == ["b.log: 0 runs instead of 1"]
    changed = readings.EXPECTED.read_text().replace('"rows": 9', '"rows": 8')
    readings.EXPECTED.write_text(changed)
    assert list(readings.wrong(tmp_path, ["a.jsonl"])) == ["a.jsonl: rows 9 instead of 8"]
