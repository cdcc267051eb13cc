"""Encoded still pictures to RGB, by one rule for the service and for training.

JPEG, PNG or WebP with 8 bits a channel and one frame, turned and mirrored as its EXIF orientation says wherever the
file keeps it (a PNG also behind its pixels, or as ImageMagick's text profile), transparency left out. The header is
checked against a limit on pixels before anything is decoded. Not a place for resizing.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.video.file_kinds import HEAD_BYTES, kind_of
from model.video.orientation import UPRIGHT, Orientation, from_exif

FORMATS = ("JPEG", "PNG", "WEBP")
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_RULE = "must be a JPEG, PNG or WebP file"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_CHUNKS = 2**16  # looked at; an encoder writes one for every 8 KiB or more
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_PROFILE_BYTES = 2**18  # of a text profile; EXIF fits 64 KiB, twice that in hexadecimal
_ORIENTATION_TAG = 0x112


class PictureError(ValueError):
    """A picture that is not decoded. `rule` is what it breaks, `value` what it is."""

    def __init__(self, rule: str, value: str, *, too_large: bool = False) -> None:
        super().__init__(f"{rule}, got {value}")
        self.rule, self.value, self.too_large = rule, value, too_large


def open_picture(content: bytes) -> Image.Image:
    """The picture with its header read and no more. Raises PictureError."""
    if not content:
        raise PictureError(_RULE, "no bytes")
    exif = b""
    try:
        if content.startswith(_PNG_START):
            content, exif = _without_metadata(content)
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise PictureError(f"must have at most {limit} pixels", "a larger header", too_large=True) from None
    except Exception as error:  # a broken file raises whatever its parser stumbled on
        raise PictureError(_RULE, _named(content, error)) from None
    if exif:
        image.info["exif"] = exif
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a stereo photo's first view is the photo
    if frames > 1:
        value = f"an animated {image.format} of {frames} frames; a clip is sent as MP4, WebM or GIF"
        raise PictureError("must be one still picture", value)
    return image


def load_picture(image: Image.Image) -> NDArray[np.uint8]:
    """Decode what `open_picture` found, `[height, width, 3]` RGB. Raises PictureError."""
    if image.mode not in EIGHT_BIT_MODES:
        raise PictureError("must have 8 bits per channel", f"mode {image.mode}")
    try:
        with image:
            shown = exif_orientation(image.info.get("exif", b""))
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        return pixels if shown == UPRIGHT else np.ascontiguousarray(shown.apply(pixels))
    except Exception as error:
        said = f"{image.format} that fails with: {error}"
        raise PictureError("must be a whole JPEG, PNG or WebP file", said) from None


def decode_picture(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """One picture, `[height, width, 3]` RGB uint8. Raises PictureError naming the rule and what was found."""
    image = open_picture(content)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise PictureError(f"must have at most {max_pixels} pixels", size, too_large=True)
    return load_picture(image)


def exif_orientation(exif: object) -> Orientation:
    """The orientation in an EXIF block, with or without its `Exif` heading. Upright where it says none."""
    if not isinstance(exif, bytes):
        return UPRIGHT
    block = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return UPRIGHT
    try:
        (at,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", block, entry)
            if tag == _ORIENTATION_TAG:
                return from_exif(*struct.unpack_from(order + ("I" if kind == 4 else "H"), block, entry + 8))
    except struct.error:
        pass  # a block that ends early says nothing
    return UPRIGHT


def _named(content: bytes, error: Exception) -> str:
    kind = kind_of(content[:HEAD_BYTES])
    if kind in ("a JPEG picture", "a PNG picture", "a WebP picture"):
        return f"{kind} that cannot be read: {error}"
    return kind or f"one that starts with {content[:8].hex(' ')}"


def _without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """A PNG with what makes its pixels alone, and the EXIF block it had.

    Profiles and texts may unpack to any size, for which Pillow refuses the file; they change no pixel here.
    """
    kept, exif, dropped = [_PNG_START], b"", False
    profile: bytes | None = None  # one is looked at: unpacking costs
    end = len(_PNG_START)
    for name, start, stop in _png_chunks(content):
        end = stop + 4
        if name in _PNG_PIXELS or name in (b"acTL", b"fcTL", b"fdAT"):
            kept.append(content[start - 8 : end])
            continue
        dropped = True
        if name == b"eXIf":
            exif = exif or content[start:stop]
        elif name in (b"zTXt", b"tEXt", b"iTXt") and content.startswith(_PROFILES, start):
            profile = _text_profile(name, content[start:stop]) if profile is None else profile
    if not dropped:
        return content, b""
    kept.append(content[end:])  # what cannot be taken apart is for the decoder to refuse
    return b"".join(kept), exif or profile or b""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the content of each whole chunk, IEND's the last."""
    at = len(_PNG_START)
    for _ in range(_PNG_CHUNKS):
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
        digits = b"".join(text.split()[2:])
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except (zlib.error, ValueError):
        return b""
