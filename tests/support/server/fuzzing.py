"""Requests that nobody would send on purpose: protobuf messages made from descriptors, valid ones bent, and noise.

PRESAGE_FUZZ_CASES says how many of each kind are tried; the suite tries few, a release 5000.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from PIL import Image

from tests.support.server import linear

CASES = int(os.environ.get("PRESAGE_FUZZ_CASES", "200"))


def picture(kind: str, height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises that many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


GOOD_PNG, GOOD_JPEG = picture("PNG", 16, 16), picture("JPEG", 16, 16)
BYTES = (
    b"",
    b"\x00",
    GOOD_PNG,
    GOOD_JPEG,
    GOOD_JPEG[:-20],
    GOOD_PNG[:40],
    picture("WEBP", 1, 1),
    picture("GIF", 4, 4),
    bomb(65_535, 65_535),
    bomb(16_384, 16_384),
    np.zeros(2, np.float32).tobytes(),
    np.full(2, np.nan, np.float32).tobytes(),
    np.full(2, 3e38, np.float32).tobytes(),
    np.zeros(12, np.float32).tobytes(),
    linear.frame(0.2, 0.4).tobytes(),
    b"\x80\x04cos\nsystem\n(S'true'\ntR.",
)
TEXTS = (
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 300,
    "\x00",
    "%n%s",
    "linear",
    "slow",
    "{}",
    "\N{SNOWMAN}",
    "C:\\x",
)
INTEGERS = (0, 1, 2, 3, 7, 16, 255, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -(2**63))
REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True)
class Known:
    """Names that mean something to the service under test, so that some guesses hit."""

    models: tuple[str, ...]
    goals: tuple[str, ...]
    sessions: tuple[str, ...]

    def names(self, field: str) -> tuple[str, ...]:
        return {"model": self.models, "name": self.models, "goal_id": self.goals, "session_id": self.sessions}.get(
            field, ()
        )


def new(descriptor: Descriptor) -> Message:
    made: Message = message_factory.GetMessageClass(descriptor)()
    return made


def scalar(draw: Any, field: FieldDescriptor, known: Known) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.sampled_from(REALS) | st.floats())
    if kind in _RANGES:
        low, high = _RANGES[kind]
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return draw(st.integers(0, 8) | st.integers(low, high))
        return draw(
            st.integers(0, 20)
            | st.sampled_from([number for number in INTEGERS if low <= number <= high])
            | st.integers(low, high)
        )
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.sampled_from(BYTES) | st.binary(max_size=64))
    names = known.names(field.name)
    texts = st.sampled_from(TEXTS) | st.text(max_size=20).filter(_is_text)
    return draw(st.sampled_from(names) | texts if names else texts)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fill(draw: Any, message: Message, known: Known, deepest: int) -> None:
    """Set some of the fields to anything their types allow."""
    for field in message.DESCRIPTOR.fields:
        if draw(st.booleans()) and (deepest > 0 or field.message_type is None):
            put(draw, message, field, known, deepest)


def put(draw: Any, message: Message, field: FieldDescriptor, known: Known, deepest: int) -> None:
    """Set one field to anything its type allows."""
    if field.is_repeated:
        message.ClearField(field.name)
        entries = getattr(message, field.name)
        for _ in range(draw(st.integers(0, 2 if deepest > 2 else 1))):
            if field.message_type is None:
                entries.append(scalar(draw, field, known))
            else:
                fill(draw, entries.add(), known, deepest - 1)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        fill(draw, inner, known, deepest - 1)
    else:
        setattr(message, field.name, scalar(draw, field, known))


def bend(draw: Any, message: Message, known: Known) -> None:
    """Break a valid message in one place, at any depth."""
    while True:
        inner = [
            value
            for field, value in message.ListFields()
            if field.message_type is not None and not field.is_repeated and value.DESCRIPTOR.fields
        ]
        inner += [
            entry
            for field, value in message.ListFields()
            if field.message_type is not None and field.is_repeated
            for entry in value
        ]
        if not inner or draw(st.integers(0, 2)) == 0:
            break
        message = draw(st.sampled_from(inner))
    if not message.DESCRIPTOR.fields:
        return
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    if draw(st.integers(0, 3)) == 0:
        message.ClearField(field.name)
    else:
        put(draw, message, field, known, 3)


@st.composite
def requests(draw: Any, descriptor: Descriptor, templates: tuple[Message, ...], known: Known) -> bytes:
    """One message of a call, as bytes: bent from a valid one, made up, or noise."""
    kinds = ["bent", "bent", "bent", "bent", "cut"] if templates else []
    kind = draw(st.sampled_from([*kinds, "made up", "noise"]))
    if kind == "noise":
        return bytes(draw(st.binary(max_size=200)))
    message = new(descriptor)
    if kind == "made up":
        fill(draw, message, known, 4)
        return message.SerializeToString()
    message.CopyFrom(draw(st.sampled_from(templates)))
    for _ in range(draw(st.integers(0, 3))):
        bend(draw, message, known)
    content = message.SerializeToString()
    if kind == "cut" and content:
        return content[: draw(st.integers(0, len(content) - 1))]
    return content


def resident_bytes(pid: int) -> int:
    """Memory of a process; 0 where the machine does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def kept_bytes() -> int:
    """Memory of this process without what its allocator holds free: after a freed block of 32 MiB, glibc keeps up to
    64 MiB for later, so that what ran before decides how far a process seems to grow.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
    return resident_bytes(os.getpid())


def open_files() -> int:
    """File descriptors of this process; 0 where the machine does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0
