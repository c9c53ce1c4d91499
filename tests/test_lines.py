"""LineTail: every complete line once, whatever way the file grows."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainwatch import lines
from trainwatch.lines import LineTail


def everything(tail: LineTail) -> list[bytes]:
    return [line for block in tail.poll() for line in block]


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_growing_in_any_pieces_gives_the_same_lines_as_reading_at_once(tmp_path_factory, pieces):
    """Offsets and the remainder lose and repeat nothing, wherever a writer was interrupted."""
    path = tmp_path_factory.mktemp("tail") / "log"
    path.write_bytes(b"")
    tail, seen = LineTail(path), []
    for piece in pieces:
        with path.open("ab") as file:
            file.write(piece)
        seen += everything(tail)
    *whole, rest = b"".join(pieces).split(b"\n")
    assert seen == whole
    assert tail.remainder == rest
    assert tail.number == len(whole)


def test_an_oversized_line_is_counted_and_passed_over(tmp_path: Path, monkeypatch):
    """It must not fill the memory, and the lines around it are kept."""
    monkeypatch.setattr(lines, "LINE_LIMIT", 1000)
    monkeypatch.setattr(lines, "BLOCK", 256)
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * 5000 + b"\nlast\n")
    tail = LineTail(path)
    assert everything(tail) == [b"first", b"last"]
    assert tail.oversized == 1
    assert len(tail.remainder) < 1000


def test_a_file_that_became_shorter_is_read_anew(tmp_path: Path):
    """Somebody started over under the same name."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    tail = LineTail(path)
    assert len(everything(tail)) == 3
    path.write_bytes(b"new\n")
    assert everything(tail) == [b"new"]
    assert (tail.restarts, tail.number) == (1, 1)


def test_a_file_that_begins_otherwise_is_read_anew(tmp_path: Path):
    """Another run was written under the same name, and is already longer."""
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    tail = LineTail(path)
    everything(tail)
    path.write_bytes(b"new, and longer\nsecond\n")
    assert everything(tail) == [b"new, and longer", b"second"]
    assert tail.restarts == 1


def test_nothing_new_reads_nothing(tmp_path: Path):
    """A poll of an unchanged file is free."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    tail = LineTail(path)
    everything(tail)
    assert everything(tail) == []
