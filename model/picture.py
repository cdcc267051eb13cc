"""Encoded still pictures to RGB, by one rule for the service and for training.

JPEG, PNG or WebP with 8 bits a channel and one frame, turned and mirrored as its EXIF orientation says wherever the
file keeps it (a PNG also behind its pixels, or as ImageMagick's text profile), transparency left out. The header is
read by a budget (`picture_header`) and checked against a limit on pixels before a decoder sees the file. Not a place
for resizing.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.picture_header import PNG, HeaderError, PictureHeader, read_header
from model.video.file_kinds import HEAD_BYTES, kind_of
from model.video.orientation import UPRIGHT, Orientation, from_exif

FORMATS = ("JPEG", "PNG", "WEBP")
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_RULE = "must be a JPEG, PNG or WebP file"
_ORIENTATION_TAG = 0x112


class PictureError(ValueError):
    """A picture that is not decoded. `rule` is what it breaks, `value` what it is."""

    def __init__(self, rule: str, value: str, *, too_large: bool = False) -> None:
        super().__init__(f"{rule}, got {value}")
        self.rule, self.value, self.too_large = rule, value, too_large


def picture_header(content: bytes) -> PictureHeader:
    """What the file's header says, by a budget; no decoder has seen it. Raises PictureError."""
    if not content:
        raise PictureError(_RULE, "no bytes")
    try:
        header = read_header(content)
    except HeaderError as error:
        raise PictureError(error.rule, error.value) from None
    if header is None:
        raise PictureError(_RULE, _named(content, "it begins otherwise"))
    return header


def open_picture(header: PictureHeader) -> Image.Image:
    """The picture as its decoder finds it, its pixels not decoded yet. Raises PictureError."""
    try:
        image = Image.open(io.BytesIO(header.content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise PictureError(f"must have at most {limit} pixels", "a larger header", too_large=True) from None
    except Exception as error:  # a broken file raises whatever its parser stumbled on
        raise PictureError(_RULE, _named(header.content, str(error))) from None
    if header.exif and header.kind == PNG:
        image.info["exif"] = header.exif
    if (image.width, image.height) != (header.width, header.height):
        shown = f"{image.width}x{image.height} for a header of {header.width}x{header.height}"
        raise PictureError("must have one size", shown)
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
    header = picture_header(content)
    if header.pixels > max_pixels:
        size = f"{header.width} x {header.height}"
        raise PictureError(f"must have at most {max_pixels} pixels", size, too_large=True)
    return load_picture(open_picture(header))


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


def _named(content: bytes, error: str) -> str:
    kind = kind_of(content[:HEAD_BYTES])
    if kind in ("a JPEG picture", "a PNG picture", "a WebP picture"):
        return f"{kind} that cannot be read: {error}"
    return kind or f"one that starts with {content[:8].hex(' ')}"
