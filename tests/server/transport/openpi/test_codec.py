"""What openpi clients send, taken apart: arrays come as they were, and nothing that a stranger sends does anything."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import Reason, ServiceError
from server.transport.openpi.codec import pack, unpack


def array(**replaced: Any) -> bytes:
    entry = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
    packed: bytes = msgpack.packb({"a": {**entry, **{name.encode(): value for name, value in replaced.items()}}})
    return packed


DEEP = b"\x81\xa1a" * 5000 + b"\xc0"
BROKEN: dict[str, tuple[bytes, Reason]] = {
    "nothing": (b"", Reason.INVALID_REQUEST),
    "no dictionary": (msgpack.packb([1, 2]), Reason.INVALID_REQUEST),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", Reason.INVALID_REQUEST),
    "cut short": (array()[:-3], Reason.INVALID_REQUEST),
    "more behind": (array() + b"x", Reason.INVALID_REQUEST),
    "a promise of four billion entries": (b"\xdd\xff\xff\xff\xff", Reason.INVALID_REQUEST),
    "a dictionary of four billion": (b"\xdf\xff\xff\xff\xff", Reason.INVALID_REQUEST),
    "an extension": (msgpack.packb({"a": msgpack.ExtType(5, b"x")}), Reason.INVALID_REQUEST),
    "dictionaries without end": (DEEP, Reason.INVALID_REQUEST),
    "keys that are numbers": (msgpack.packb({1: 2}), Reason.INVALID_REQUEST),
    "an array of objects": (array(dtype="|O"), Reason.INVALID_TENSOR),
    "an array of structures": (array(dtype="V12"), Reason.INVALID_TENSOR),
    "an array of fields": (array(dtype="i4,i4"), Reason.INVALID_TENSOR),
    "a type that is no text": (array(dtype=7), Reason.INVALID_TENSOR),
    "a shape that overflows": (array(shape=[2**31 - 1] * 8), Reason.INVALID_TENSOR),
    "a negative shape": (array(shape=[-3, -1]), Reason.INVALID_TENSOR),
    "a shape of truths": (array(shape=[True]), Reason.INVALID_TENSOR),
    "too many dimensions": (array(shape=[1] * 64), Reason.INVALID_TENSOR),
    "too few bytes": (array(shape=[4]), Reason.INVALID_TENSOR),
    "bytes that are text": (array(data="x" * 12), Reason.INVALID_TENSOR),
    "a number that is text": (
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}}), Reason.INVALID_TENSOR
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_message_is_refused_by_reason(name: str) -> None:
    content, reason = BROKEN[name]
    with pytest.raises(ServiceError) as caught:
        unpack(content)
    assert caught.value.reason is reason
    assert len(caught.value.message) < 400


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda noise: array()[:20] + noise))
def test_no_bytes_do_anything_but_unpack_or_be_refused(content: bytes) -> None:
    try:
        assert isinstance(unpack(content), dict)
    except ServiceError as error:
        assert error.reason in (Reason.INVALID_REQUEST, Reason.INVALID_TENSOR)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i4", ">i8", "<f2", ">f8"])
def test_arrays_of_numbers_come_as_they_were(dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    found = unpack(pack({"a": {"b": values}, "c": None}))
    np.testing.assert_array_equal(found["a/b"], values)
    assert found["c"] is None


@pytest.mark.parametrize("one", [b"\x90", b"\x80", b"\x91\xc0"], ids=["lists", "dictionaries", "lists of nothing"])
def test_countless_small_things_are_refused_while_they_are_read(one: bytes) -> None:
    row = b"\xdc\x0f\xff" + one * 4095  # as many as one list may have
    content = b"\x81\xa1a" + b"\xdc\x03\xe8" + row * 1000
    with pytest.raises(ServiceError, match="at most 16384 entries in all"):
        unpack(content)
