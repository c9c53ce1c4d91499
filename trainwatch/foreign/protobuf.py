"""The wire format of protocol buffers, as far as it takes to look into a record without its schema."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """These bytes are no protocol buffer."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at ``at``, and where the next field begins. Raises WireError."""
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise WireError("a number of more than ten bytes")
    except IndexError:
        raise WireError("cut off within a number") from None


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of each field; numbers of fixed size are bytes. Raises WireError."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        wire = key & 7
        value: int | bytes
        if wire == VARINT:
            value, at = varint(data, at)
        else:
            if wire == BYTES:
                size, at = varint(data, at)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                raise WireError(f"wire type {wire}")
            if at + size > end:
                raise WireError("cut off within a field")
            value = data[at : at + size]
            at += size
        yield key >> 3, wire, value


def signed(value: int) -> int:
    """An int64 from its two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def double(value: bytes) -> float:
    """A float64 from its eight bytes."""
    return float(unpack_from("<d", value)[0])


def single(value: bytes) -> float:
    """A float32 from its four bytes."""
    return float(unpack_from("<f", value)[0])
