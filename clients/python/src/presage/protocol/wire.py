"""Reads the protobuf wire format field by field, for the few messages that this distribution ships no stubs for.

Those are google.rpc.Status with its details and grpc.health.v1: five messages of strings and numbers. Their packages
pin protobuf and grpcio releases of their own, and a robot's old runtime must not lose the client over them.
Not a protobuf library: no writing, no groups, no schema.
"""

from __future__ import annotations

from typing import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field in order: an int for a varint, else bytes. Raises ValueError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == LENGTH:
            size, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type must be 0, 1, 2 or 5, got {kind}")
        if size > len(data) - at:
            raise ValueError(f"field {number} announces {size} bytes, {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a varint is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint is longer than ten bytes")
