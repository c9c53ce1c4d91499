"""Trainings by other people's loops, and what was recorded of them."""

import json

import pytest


@pytest.fixture
def recorded():
    """``recorded(path, "step")``: the records of a kind, with what is not finite by its name."""

    def read(path, kind):
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [row | row.get("nonfinite", {}) for row in rows if row["kind"] == kind]

    return read
