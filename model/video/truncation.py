"""Whether a clip's file has lost its end: the sizes that a container states, compared with the bytes that are there.

No size is believed: every step goes forward and stays within the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from model.video.file_kinds import HEAD_BYTES, kind_of, top_level_boxes

_CONTAINERS = {
    "an MP4 clip": "mov",
    "a QuickTime clip": "mov",
    "a Matroska or WebM clip": "matroska",
    "an AVI clip": "avi",
    "a GIF": "gif",
    "an FLV clip": "flv",
    "an Ogg clip": "ogg",
    "an IVF clip": "ivf",
    "an MPEG program stream": "mpeg",
}


def how_cut(path: Path, container: str | None = None) -> str | None:
    """What says that the file has lost its end: words for a person; None where nothing does.

    container: FFmpeg's short name; None goes by the file's first bytes. A container that states no size (a broadcast,
    an unfinished recording) cannot tell, except where its last part is incomplete. Of MP4 only the sizes of top-level
    boxes are looked at: those of its samples are `model.video.probe`'s.
    """
    with path.open("rb") as file:
        name = container or _CONTAINERS.get(kind_of(file.read(HEAD_BYTES)) or "")
        check = _CHECKS.get(name or "")
        return check(file, path.stat().st_size) if check is not None else None


def _missing(what: str, end: int, size: int) -> str:
    return f"{what} ends at byte {end}, the file at byte {size}"


# MP4 and MOV


def _cut_boxes(file: BinaryIO, size: int) -> str | None:
    for name, start, end in top_level_boxes(file, size):
        if name in (b"moov", b"moof") and end > size:
            return _missing(f"its '{name.decode()}' box", end, size)
        if name == b"sidx" and end <= size:
            file.seek(start)
            last = _end_of_segments(file.read(min(end - start, 2**24)), end)
            if last is not None and last > size:
                return _missing("the last segment of its index", last, size)
    return None


def _end_of_segments(body: bytes, anchor: int) -> int | None:
    """Where the media end that a `sidx` box refers to; None for a box that cannot be read. It may refer to others."""
    try:
        wide = body[0] == 1
        first = struct.unpack_from(">QQ" if wide else ">II", body, 12)[1]
        at = 28 if wide else 20
        (count,) = struct.unpack_from(">H", body, at + 2)
        sizes = struct.unpack_from(">" + "III" * count, body, at + 4)[::3]
    except (IndexError, struct.error):
        return None
    return int(anchor + first + sum(size & 0x7FFFFFFF for size in sizes))


# Matroska and WebM

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_UNKNOWN = -1
_TOP_LEVEL = {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}


def _element(file: BinaryIO, at: int) -> tuple[int, int, int] | None:
    """(id, start of its content, length or _UNKNOWN) of the EBML element at `at`; None where none can begin."""
    file.seek(at)
    head = file.read(12)
    if not head or head[0] < 0x10:
        return None
    wide = 9 - head[0].bit_length()
    if len(head) <= wide or head[wide] == 0:
        return None
    name, bits = int.from_bytes(head[:wide], "big"), 9 - head[wide].bit_length()
    if len(head) < wide + bits:
        return None
    length = int.from_bytes(head[wide : wide + bits], "big") & ((1 << 7 * bits) - 1)
    return name, at + wide + bits, _UNKNOWN if length == (1 << 7 * bits) - 1 else length


def _cut_matroska(file: BinaryIO, size: int) -> str | None:
    at = 0
    while (element := _element(file, at)) is not None:
        name, start, length = element
        if name == _SEGMENT:
            if length != _UNKNOWN:
                return _missing("its segment", start + length, size) if start + length > size else None
            return _cut_live_matroska(file, size, start)
        if length == _UNKNOWN:
            return None
        at = start + length
    return None


def _cut_live_matroska(file: BinaryIO, size: int, at: int) -> str | None:
    """A segment of unknown length, as live recordings have it: its last element must be whole."""
    while at < size:
        element = _element(file, at)
        if element is None:
            return _missing("an element's header", at + 12, size) if at + 12 > size else None
        name, start, length = element
        if length == _UNKNOWN:
            if name != _CLUSTER:
                return None
            at = start  # its children follow, and the next cluster after them
            continue
        if start + length > size:
            return _missing("its last cluster or block", start + length, size)
        at = start + length
    return None


# GIF


def _cut_gif(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    header = file.read(13)
    at = 13 + (3 << (header[10] & 7) + 1 if len(header) == 13 and header[10] & 0x80 else 0)
    while at < size:
        file.seek(at)
        block = file.read(10)
        if block[0] == 0x3B:
            return None
        if block[0] == 0x2C and len(block) == 10:
            at = _after_blocks(file, size, at + 11 + (3 << (block[9] & 7) + 1 if block[9] & 0x80 else 0))
        elif block[0] == 0x21:
            at = _after_blocks(file, size, at + 2)
        else:
            at += 1  # padding between blocks, which players pass over
    return f"its trailer is missing: the file ends within or before it at byte {size}"


def _after_blocks(file: BinaryIO, size: int, at: int) -> int:
    """Where a chain of GIF's data blocks ends, the file's size or more where it is cut."""
    while at < size:
        file.seek(at)
        length = file.read(1)[0]
        at += 1 + length
        if length == 0:
            return at
    return size


# AVI

_OPEN_SIZES = (0, 0xFFFFFFFF)  # what recorders write before they know


def _chunks(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, bytes, int, int, int]]:
    """(name, kind of a list, start, stated length, end) of RIFF chunks from `at` to `end`."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(12)
        name, length = head[:4], int.from_bytes(head[4:8], "little")
        if not name.strip(b"\0"):
            return
        kind = head[8:12] if name in (b"RIFF", b"LIST") else b""
        yield name, kind, at + 8, length, at + 8 + length
        at += 8 + length + (length & 1)


def _cut_avi(file: BinaryIO, size: int) -> str | None:
    has_frames = False  # an index that is cut after them costs no frame
    for name, kind, start, length, end in _chunks(file, 0, size):
        if name != b"RIFF" or kind not in (b"AVI ", b"AVIX"):
            break  # what follows is not the clip's
        for inner, part, begin, stated, stop in _chunks(file, start + 4, min(end, size) if length else size):
            if inner == b"LIST" and part == b"movi":
                if stated not in _OPEN_SIZES:
                    if stop > size:
                        return _missing("its list of frames ('movi')", stop, size)
                    has_frames = True
                    continue
                for _, _, _, _, last in _chunks(file, begin + 4, size):
                    if last > size:
                        return _missing("its last chunk", last, size)
                return None
            if stop > size and not has_frames:
                return _missing("its header", stop, size)
        if length in _OPEN_SIZES:
            return None
    return None if has_frames else f"its list of frames ('movi') is missing: the file ends at byte {size}"


# Transport and program streams

_TAIL_PACKETS = 2**16  # looked at for the last frame: 12 MB


def _cut_transport(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    head = file.read(6 * 208)
    for length, before in ((188, 0), (192, 4), (204, 0), (208, 0)):  # plain, with a time in front, with checks behind
        for offset in range(length):
            marks = head[offset::length][: (size - offset) // length]
            if len(marks) >= 2 and not marks.strip(b"\x47"):
                return _cut_packets(file, size, offset, length, before)
    return None


def _cut_packets(file: BinaryIO, size: int, offset: int, length: int, before: int) -> str | None:
    """Of packets of `length` bytes, the first of whose sync bytes is at `offset` and comes `before` bytes into one."""
    count, left = divmod(size - offset, length)
    file.seek(size - left)
    if file.read(1) == b"\x47" and left < length - before:
        return f"its last packet has {left + before} of {length} bytes"
    first = max(0, count - _TAIL_PACKETS)
    file.seek(offset + first * length)
    tail = file.read((count - first) * length)
    open_frames: dict[int, tuple[int, int]] = {}  # by program id: bytes that the frame's packet states, and has
    for at in range(0, len(tail) - 187, length):
        packet = tail[at : at + 188]
        if packet[0] != 0x47:
            return None  # what lies behind the end
        start = 5 + packet[4] if packet[3] & 0x20 else 4
        payload = packet[start:] if packet[3] & 0x10 else b""
        name = int.from_bytes(packet[1:3], "big") & 0x1FFF
        if packet[1] & 0x40:
            open_frames.pop(name, None)
            if payload[:3] == b"\0\0\1" and len(payload) > 6 and payload[3] & 0xF0 == 0xE0:
                open_frames[name] = (6 + int.from_bytes(payload[4:6], "big"), len(payload))
        elif name in open_frames:
            stated, there = open_frames[name]
            open_frames[name] = (stated, there + len(payload))
    for stated, there in open_frames.values():
        if stated > 6 and there < stated:
            return f"its last frame has {there} of {stated} bytes"
    return None


def _cut_program(file: BinaryIO, size: int) -> str | None:
    at = 0
    while at + 4 <= size:
        file.seek(at)
        head = file.read(14)
        if head[:3] != b"\0\0\1":
            return None  # padding, or another stream's bytes: nothing states a size here
        if head[3] == 0xB9:
            return None  # the program's end
        if head[3] == 0xBA:
            if len(head) < 14:
                return _missing("its last pack", at + 14, size)
            at += 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
            continue
        if head[3] < 0xBB:
            return None
        if len(head) < 6:
            return _missing("its last packet", at + 6, size)
        at += 6 + int.from_bytes(head[4:6], "big")
    return _missing("its last packet", at, size) if at > size else None


# FLV, Ogg and IVF


def _cut_flv(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    at = int.from_bytes(file.read(9)[5:9], "big") + 4
    while at + 11 <= size:
        file.seek(at)
        head = file.read(11)
        if head[0] & 0x1F not in (8, 9, 18):
            return None
        length = int.from_bytes(head[1:4], "big")
        if head[0] & 0x1F == 18:
            stated = _stated_size(file.read(min(length, 2**16)))
            if stated > size:
                return _missing("the file as its header states it", stated, size)
        if at + 11 + length > size:
            return _missing("its last tag", at + 11 + length, size)
        at += 11 + length + 4
    return _missing("its last tag", at + 11, size) if size > at else None


def _stated_size(script: bytes) -> int:
    """The `filesize` of FLV's onMetaData, 0 without one."""
    at = script.find(b"\0\x08filesize\0")
    if at < 0 or len(script) < at + 19:
        return 0
    (number,) = struct.unpack_from(">d", script, at + 11)
    return int(number) if 0 < number < 2**53 else 0


def _cut_ogg(file: BinaryIO, size: int) -> str | None:
    at, open_streams = 0, set[bytes]()
    while at + 27 <= size:
        file.seek(at)
        head = file.read(27 + 255)
        if head[:4] != b"OggS":
            break
        count, serial = head[26], head[14:18]
        length = 27 + count + sum(head[27 : 27 + count])
        if at + length > size or len(head) < 27 + count:
            return _missing("its last page", at + length, size)
        open_streams.add(serial)
        if head[5] & 4:
            open_streams.discard(serial)
        at += length
    file.seek(at)
    if file.read(4) == b"OggS":
        return _missing("its last page", at + 27, size)
    return "a stream has no last page" if open_streams else None


def _cut_ivf(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    at = int.from_bytes(file.read(8)[6:8], "little")
    while at < size:
        file.seek(at)
        head = file.read(12)
        if not any(head):
            return None  # padding
        if len(head) < 12:
            return _missing("its last frame", at + 12, size)
        at += 12 + int.from_bytes(head[:4], "little")
    return _missing("its last frame", at, size) if at > size else None


_CHECKS = {
    "mov": _cut_boxes,
    "matroska": _cut_matroska,
    "gif": _cut_gif,
    "avi": _cut_avi,
    "mpegts": _cut_transport,
    "mpeg": _cut_program,
    "flv": _cut_flv,
    "ogg": _cut_ogg,
    "ivf": _cut_ivf,
}
