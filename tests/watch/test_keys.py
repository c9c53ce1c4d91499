"""Keys in what terminals send."""

import pytest

from trainwatch.watch.keys import parse


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA\x1bOB", ["up", "down"]),
        (b"kj\r\n", ["up", "down", "enter", "enter"]),
        (b"\x1b", ["escape"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x1b[1;5Aq", ["q"]),
        (b"\x1b[", []),
        (b"\x1b[200~xyz\x1b[201~", []),
        ("äq".encode(), ["q"]),
        (b"", []),
    ],
)
def test_keys(given, keys):
    assert parse(given) == keys
