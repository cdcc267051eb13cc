"""Kinds of files, by their first bytes and without decoding anything.

So that a picture sent as a clip, or a clip as a picture, is refused by name. No stated size is
believed: every step goes forward and stays within the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_STILL_BRANDS = {
    b"avif": "an AVIF picture",
    b"avis": "an AVIF picture sequence",
    b"heic": "a HEIC picture",
    b"heix": "a HEIC picture",
    b"heim": "a HEIC picture",
    b"heis": "a HEIC picture",
    b"hevc": "a HEIC picture sequence",
    b"hevx": "a HEIC picture sequence",
    b"hevm": "a HEIC picture sequence",
    b"hevs": "a HEIC picture sequence",
    b"mif1": "a HEIF picture",
    b"mif2": "a HEIF picture",
    b"msf1": "a HEIF picture sequence",
    b"miaf": "a HEIF picture",
    b"jpeg": "a HEIF picture",
    b"jpgs": "a HEIF picture sequence",
    b"j2ki": "a HEIF picture",
    b"avci": "a HEIF picture",
    b"avcs": "a HEIF picture sequence",
    b"vvic": "a HEIF picture",
    b"crx ": "a Canon raw photo",
}


_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF"),
    (b"GIF89a", "a GIF"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a BigTIFF picture"),
    (b"MM\0+", "a BigTIFF picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DDS texture"),
    (b"%PDF-", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM clip"),
    (b"FLV\x01", "an FLV clip"),
    (b"OggS", "an Ogg clip"),
    (b"DKIF", "an IVF clip"),
    (b"\0\0\1\xba", "an MPEG program stream"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x89MCAP0\r\n", "an MCAP recording"),
    (b"ID3", "an MP3 sound"),
    (b"fLaC", "a FLAC sound"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"data:", "the text of a data URL"),
    (b"http://", "the text of an address"),
    (b"https://", "the text of an address"),
    (b"iVBORw0KGgo", "the base64 text of a PNG"),
    (b"/9j/", "the base64 text of a JPEG"),
    (b"UklGR", "the base64 text of a WebP"),
)


PICTURE_BOXES = 16  # top-level boxes looked at for a picture's; they come first


HEAD_BYTES = 4096  # enough for `kind_of` to look at


def kind_of(head: bytes) -> str | None:
    """What a file is by its first `HEAD_BYTES` bytes, as words with an article; None where nothing is known of it."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "an animated PNG" if b"acTL" in _png_chunks(head) else "a PNG picture"
    if head[:4] == b"RIFF":
        if head[8:12] == b"WEBP":
            moves = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
            return "an animated WebP" if moves else "a WebP picture"
        return {b"AVI ": "an AVI clip", b"WAVE": "a WAVE sound"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _kind_of_boxes(head)
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "a BMP picture"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def still_container(path: Path) -> str | None:
    """The name of the still picture that the file holds in a container clips come in too; None for everything else.

    HEIC, HEIF and AVIF are MP4 boxes: FFmpeg opens them and shows one tile of a photo as a clip's frame.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind = kind_of(head) if head[4:8] == b"ftyp" else None
        if kind is not None and ("picture" in kind or "photo" in kind):
            return kind
        for number, (name, start, end) in enumerate(top_level_boxes(file, path.stat().st_size)):
            if number == PICTURE_BOXES:
                break
            if name == b"meta":
                file.seek(start)
                body = file.read(min(end - start, 256))
                if body[8:12] == b"hdlr" and body[20:24] == b"pict":
                    return "a HEIF picture"
    return None


def _kind_of_boxes(head: bytes) -> str:
    """Of a file that begins with `ftyp`: its major brand decides."""
    if head[8:12] in _STILL_BRANDS:
        return _STILL_BRANDS[head[8:12]]
    return "a QuickTime clip" if head[8:12] == b"qt  " else "an MP4 clip"


def _png_chunks(head: bytes) -> list[bytes]:
    """Names of the chunks that begin within `head`."""
    names, at = [], 8
    while at + 8 <= len(head):
        length = int.from_bytes(head[at : at + 4], "big")
        names.append(head[at + 4 : at + 8])
        at += 12 + length
    return names


def top_level_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of its content, end) of the top-level boxes, the last of which may end beyond the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, name, content = int.from_bytes(header[:4], "big"), header[4:8], at + 8
        if length == 1 and len(header) == 16:
            length, content = int.from_bytes(header[8:], "big"), at + 16
        elif length == 0:
            length = size - at  # to the end of the file
        if at + length < content:
            return  # not a box: what players ignore after the end
        yield name, content, at + length
        at += length
