"""Trainings by other people's loops, and what was recorded of them."""

import json
import time

import pytest

from trainwatch.recorder import sink


@pytest.fixture
def recorded():
    """``recorded(path, "step")``: the records of a kind, with what is not finite by its name."""

    def read(path, kind):
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [row | row.get("nonfinite", {}) for row in rows if row["kind"] == kind]

    return read


@pytest.fixture
def ask_to_stop(monkeypatch):
    """``ask_to_stop(watch)`` writes the stop file, and waits until the recorder has seen it."""
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)

    def ask(watch):
        watch.path.with_suffix(".stop").touch()
        deadline = time.monotonic() + 10
        while not watch.should_stop:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return ask
