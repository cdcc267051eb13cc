"""Still pictures in containers that clips come in too, made from nothing."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def write_heic(path: Path, brand: bytes = b"heic") -> Path:
    """A HEIC (ISO 23008-12) of 2 x 2 tiles of 64 pixels, each of one color: phones store photos so, with more tiles."""
    tiles = [_tile(path.with_name("tile.mp4"), level) for level in (40, 90, 140, 190)]
    configuration = tiles[0][0]
    ftyp = box(b"ftyp", brand, struct.pack(">I", 0), b"mif1", brand)

    def meta(start: int) -> bytes:
        grid = struct.pack(">BBBBHH", 0, 0, 1, 1, 128, 128)
        places = struct.pack(">HHHHII", 5, 1, 0, 1, 0, len(grid))
        for number, (_, data) in enumerate(tiles, start=1):
            places += struct.pack(">HHHHII", number, 0, 0, 1, start, len(data))
            start += len(data)
        items = [_item(number, b"hvc1", is_hidden=True) for number in range(1, 5)]
        properties = box(
            b"ipco",
            configuration,
            full_box(b"ispe", 0, 0, struct.pack(">II", 64, 64)),
            full_box(b"ispe", 0, 0, struct.pack(">II", 128, 128)),
        )
        of_tiles = b"".join(struct.pack(">HBBB", number, 2, 0x81, 2) for number in range(1, 5))
        of_grid = struct.pack(">HBB", 5, 1, 3)
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, b"\0\0\0\0pict" + bytes(12) + b"\0"),
            full_box(b"pitm", 0, 0, struct.pack(">H", 5)),
            full_box(b"iloc", 1, 0, struct.pack(">BBH", 0x44, 0, 5), places),
            full_box(b"iinf", 0, 0, struct.pack(">H", 5), *items, _item(5, b"grid", is_hidden=False)),
            full_box(b"iref", 0, 0, box(b"dimg", struct.pack(">HH4H", 5, 4, 1, 2, 3, 4))),
            box(b"iprp", properties, full_box(b"ipma", 0, 0, struct.pack(">I", 5), of_tiles, of_grid)),
            box(b"idat", grid),
        )

    start = len(ftyp) + len(meta(0)) + 8
    path.write_bytes(ftyp + meta(start) + box(b"mdat", *[data for _, data in tiles]))
    return path


def _item(number: int, kind: bytes, is_hidden: bool) -> bytes:
    return full_box(b"infe", 2, int(is_hidden), struct.pack(">HH", number, 0), kind, b"\0")


def _tile(path: Path, level: int) -> tuple[bytes, bytes]:
    """(decoder configuration box, coded picture) of one HEVC frame."""
    options = {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0:info=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=1, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        container.mux([*stream.encode(frame), *stream.encode()])
    content = path.read_bytes()
    at = content.index(b"hvcC") - 4
    at_data = content.index(b"mdat") - 4
    size = int.from_bytes(content[at_data : at_data + 4], "big")
    return content[at : at + int.from_bytes(content[at : at + 4], "big")], content[at_data + 8 : at_data + size]
