"""Encoded still pictures to RGB, by one rule for the service and for training.

JPEG, PNG or WebP with 8 bits a channel, upright as its EXIF orientation says, transparency left out. The header is
checked against a limit on pixels before anything is decoded. Not a place for resizing.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


class PictureError(ValueError):
    """A picture that is not decoded. `rule` is what it breaks, `value` what it is."""

    def __init__(self, rule: str, value: str, *, too_large: bool = False) -> None:
        super().__init__(f"{rule}, got {value}")
        self.rule, self.value, self.too_large = rule, value, too_large


def open_picture(content: bytes) -> Image.Image:
    """The picture with its header read and no more. Raises PictureError."""
    if not content:
        raise PictureError("must be a JPEG, PNG or WebP file", "no bytes")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise PictureError(f"must have at most {limit} pixels", "a larger header", too_large=True) from None
    except Exception:  # a broken file raises whatever its parser stumbled on
        start = content[:8].hex(" ")
        raise PictureError("must be a JPEG, PNG or WebP file", f"one that starts with {start}") from None


def load_picture(image: Image.Image) -> NDArray[np.uint8]:
    """Decode what `open_picture` found, `[height, width, 3]` RGB. Raises PictureError."""
    if image.mode not in EIGHT_BIT_MODES:
        raise PictureError("must have 8 bits per channel", f"mode {image.mode}")
    try:
        with image:
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except Exception as error:
        shown = f"{image.format} that fails with: {error}"
        raise PictureError("must be a whole JPEG, PNG or WebP file", shown) from None


def decode_picture(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """One picture, `[height, width, 3]` RGB uint8. Raises PictureError naming the rule and what was found."""
    image = open_picture(content)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise PictureError(f"must have at most {max_pixels} pixels", size, too_large=True)
    return load_picture(image)
