"""What a picture's file says of itself, read by a budget before any pixel is decoded: format, size, scans.

Only what makes the picture's pixels goes on to the decoder: profiles, texts and comments may unpack to any size or take
any time to parse, and change nothing here. Of them the EXIF block alone is kept, for the picture's orientation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

JPEG, PNG, WEBP = "JPEG", "PNG", "WebP"
MOST_SCANS = 64  # of a JPEG; a camera's has 1, a progressive one 10 or so
_MOST_SEGMENTS = 512  # before a JPEG's first scan
_CHUNKS, _BYTES_PER_CHUNK = 1024, 1024  # of a PNG; an encoder writes a chunk for every 8 KiB or more
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_FRAMES = frozenset({b"acTL", b"fcTL", b"fdAT"})
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_PROFILE_BYTES = 2**18  # of a text profile; EXIF fits 64 KiB, twice that in hexadecimal
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF: the size stands in it
_LONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))  # without a length
_APP0, _APP1, _APP14, _COMMENT, _SCAN, _END = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA, 0xD9


class HeaderError(ValueError):
    """A header that no picture of a camera has. `rule` is what it breaks, `value` what it says."""

    def __init__(self, rule: str, value: str) -> None:
        super().__init__(f"{rule}, got {value}")
        self.rule, self.value = rule, value


@dataclass(frozen=True)
class PictureHeader:
    """`content` is the file with what makes its pixels alone; a width of 0 is one that its header does not say."""

    kind: str
    width: int
    height: int
    content: bytes
    exif: bytes = b""
    scans: int = 1

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def work(self) -> int:
        """Pixels that a decoder goes over."""
        return self.pixels * self.scans


def read_header(content: bytes) -> PictureHeader | None:
    """The header of a JPEG, PNG or WebP; None for bytes that begin like none of them. Raises HeaderError."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(_PNG_START):
        return _png(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return PictureHeader(WEBP, *_webp_size(content), content)
    return None


# JPEG


def _jpeg(content: bytes) -> PictureHeader:
    kept, width, height, exif = [content[:2]], 0, 0, b""
    dropped = False
    at = 2
    for _ in range(_MOST_SEGMENTS):
        start = at
        while content[at : at + 1] == b"\xff" and at - start < _MOST_SEGMENTS:  # fill bytes may stand before a marker
            at += 1
        if at == start or at >= len(content):
            break
        marker = content[at]
        at += 1
        if marker in (_SCAN, _END):
            at = start
            break
        if marker in _LONE_MARKERS:
            kept.append(content[start:at])
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        if length < 2 or at + length > len(content):
            at = start  # cut short, or broken: for the decoder to refuse
            break
        segment, at = content[start : at + length], at + length
        body = content[at - length + 2 : at]
        if marker in _FRAME_MARKERS and len(body) >= 5:
            height, width = struct.unpack_from(">HH", body, 1)
        is_exif = marker == _APP1 and body.startswith(b"Exif\0") and not exif
        exif = body if is_exif else exif
        if (_APP0 < marker <= 0xEF and marker != _APP14 and not is_exif) or marker == _COMMENT:
            dropped = True
        else:
            kept.append(segment)
    else:
        raise HeaderError(f"must have at most {_MOST_SEGMENTS} segments before its first scan", "a JPEG with more")
    scans = content.count(b"\xff\xda", at)  # within a scan every 0xff is followed by 0
    if scans > MOST_SCANS:
        raise HeaderError(f"must have at most {MOST_SCANS} scans", f"a JPEG of {scans}")
    if dropped:
        kept.append(content[at:])
        content = b"".join(kept)
    return PictureHeader(JPEG, width, height, content, exif, max(scans, 1))


# PNG


def _png(content: bytes) -> PictureHeader:
    kept, exif, dropped = [_PNG_START], b"", False
    profile: bytes | None = None  # one is looked at: unpacking costs
    end, width, height = len(_PNG_START), 0, 0
    for name, start, stop in _png_chunks(content):
        end = stop + 4
        if name == b"IHDR" and not width and stop - start >= 8:
            width, height = struct.unpack_from(">II", content, start)
        if name in _PNG_PIXELS or name in _PNG_FRAMES:
            kept.append(content[start - 8 : end])
            continue
        dropped = True
        if name == b"eXIf":
            exif = exif or content[start:stop]
        elif name in (b"zTXt", b"tEXt", b"iTXt") and content.startswith(_PROFILES, start):
            profile = _text_profile(name, content[start:stop]) if profile is None else profile
    if dropped or end < len(content):
        # Of what cannot be taken apart, a chunk that is cut short, as much as the decoder needs to refuse it.
        kept.append(content[end : end + 8])
        content = b"".join(kept)
    return PictureHeader(PNG, width, height, content, exif or profile or b"")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the content of each whole chunk, IEND's the last. Raises HeaderError."""
    at = len(_PNG_START)
    most = _CHUNKS + len(content) // _BYTES_PER_CHUNK
    for _ in range(most):
        if at + 12 > len(content):
            return
        start = at + 8
        stop = start + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : start]
        if stop + 4 > len(content):
            return
        yield name, start, stop
        if name == b"IEND":
            return
        at = stop + 4
    raise HeaderError(f"must have at most {most} chunks for its {len(content)} bytes", "a PNG with more")


def _text_profile(name: bytes, chunk: bytes) -> bytes:
    """The EXIF block in a text such as ImageMagick writes: its length and its bytes in hexadecimal."""
    _, _, rest = chunk.partition(b"\0")
    if name == b"iTXt":
        is_packed = rest[:1] == b"\1"
        _, _, rest = rest[2:].partition(b"\0")
        _, _, rest = rest.partition(b"\0")
    else:
        is_packed, rest = name == b"zTXt", rest[1:] if name == b"zTXt" else rest
    try:
        text = zlib.decompressobj().decompress(rest, _PROFILE_BYTES) if is_packed else rest[:_PROFILE_BYTES]
        digits = b"".join(text.split(None, 2)[2:]).translate(None, b" \t\r\n\v\f")
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except (zlib.error, ValueError):
        return b""


# WebP


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height; (0, 0) where the header does not say."""
    kind = content[12:16]
    if kind == b"VP8X" and len(content) >= 30:
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L" and len(content) >= 25:
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(content) >= 30:
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
