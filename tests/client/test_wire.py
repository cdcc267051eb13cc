"""The hand-written reader against protobuf itself."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value
from presage.protocol.wire import fields
from presage.v1 import observation_pb2


def test_it_reads_what_protobuf_writes() -> None:
    raw = observation_pb2.RawImage(height=2**32 - 1, width=1, format="PIXEL_FORMAT_RGB8", data=bytes(300))
    assert list(fields(raw.SerializeToString())) == [(1, 2**32 - 1), (2, 1), (3, 1), (4, bytes(300))]
    assert list(fields(Value(number_value=1.0).SerializeToString())) == [(2, bytes.fromhex("000000000000f03f"))]
    assert dict(fields(Duration(seconds=-1).SerializeToString()))[1] == 2**64 - 1
    assert list(fields(b"")) == []


@pytest.mark.parametrize("broken", ["08", "0880", "0a05", "0aff01", "0b", "09ff", "08" + "ff" * 11])
def test_it_says_what_is_broken(broken: str) -> None:
    with pytest.raises(ValueError, match=r"cut off|announces|wire type|longer"):
        list(fields(bytes.fromhex(broken)))


def test_noise_ends() -> None:
    noise = np.random.RandomState(0)
    read = refused = 0
    for _ in range(2000):
        data = noise.bytes(noise.randint(0, 40))
        try:
            found = list(fields(data))
        except ValueError:
            refused += 1
            continue
        read += 1
        assert sum(len(value) for _, value in found if isinstance(value, bytes)) <= len(data)
        assert len(found) <= len(data)
    assert min(read, refused) > 0
