"""Received images to RGB frames. The header is checked against a pixel limit before anything is decoded.

Not a place for resizing: what a model does with a frame's size is its crop policy.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from server.errors import Reason, ServiceError, invalid
from server.values.calls import Frame

PixelFormat = Literal["rgb8", "bgr8", "mono8"]

_CHANNELS: dict[PixelFormat, int] = {"rgb8": 3, "bgr8": 3, "mono8": 1}
_CONTAINERS = ("JPEG", "PNG", "WEBP")
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_INLINE_PIXELS = 320 * 240  # more is decoded on a thread: 256 px takes 0.4 ms, 4096 px a quarter of a second


@dataclass(frozen=True)
class EncodedImage:
    """A JPEG, PNG or WebP file."""

    content: bytes


@dataclass(frozen=True)
class RawImage:
    """Pixels without a container: height x width x channels, rows tightly packed."""

    height: int
    width: int
    format: PixelFormat
    content: bytes


ImageSource = EncodedImage | RawImage


async def decode(sources: Sequence[tuple[str, ImageSource]], max_pixels: int) -> tuple[Frame, ...]:
    """Decode images, each given with the name of its field, into [height, width, 3] RGB frames, in order.

    `max_pixels` bounds the pixels of all of them together, so that many small files cannot hide one large picture.
    Raises ServiceError naming the field.
    """
    opened: list[tuple[str, Image.Image | Frame]] = []
    pixels = 0
    for field, source in sources:
        image = _open(source, field) if isinstance(source, EncodedImage) else _unpack(source, field)
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
        pixels += height * width
        if pixels > max_pixels:
            raise _too_many_pixels(field, max_pixels, f"{width}x{height}")
        opened.append((field, image))
    if pixels <= _INLINE_PIXELS:
        return _load_all(opened)
    return await asyncio.to_thread(_load_all, opened)


async def decode_groups(
    groups: Sequence[Sequence[tuple[str, ImageSource]]], max_pixels: int
) -> tuple[tuple[Frame, ...], ...]:
    """`decode` for the images of several observations; `max_pixels` bounds all of them together."""
    frames = iter(await decode([source for group in groups for source in group], max_pixels))
    return tuple(tuple(next(frames) for _ in group) for group in groups)


def _open(source: EncodedImage, field: str) -> Image.Image:
    """Read the header alone."""
    if not source.content:
        raise invalid(field, "must be a JPEG, PNG or WebP file", "no bytes", Reason.INVALID_IMAGE)
    try:
        return Image.open(io.BytesIO(source.content), formats=_CONTAINERS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(field, Image.MAX_IMAGE_PIXELS or 0, "a larger header") from None
    except Exception:  # a broken file raises whatever its parser stumbled on
        start = source.content[:8].hex(" ")
        raise invalid(
            field, "must be a JPEG, PNG or WebP file", f"one that starts with {start}", Reason.INVALID_IMAGE
        ) from None


def _unpack(source: RawImage, field: str) -> Frame:
    """View raw pixels as [height, width, 3] RGB."""
    channels = _CHANNELS[source.format]
    if source.height < 1 or source.width < 1:
        size = f"{source.width}x{source.height}"
        raise invalid(field, "must be at least 1x1 pixels", size, Reason.INVALID_IMAGE)
    expected = source.height * source.width * channels
    if len(source.content) != expected:
        rule = f"must hold {source.height} x {source.width} x {channels} = {expected} bytes"
        raise invalid(f"{field}.data", rule, f"{len(source.content)} bytes", Reason.INVALID_IMAGE)
    pixels = np.frombuffer(source.content, np.uint8).reshape(source.height, source.width, channels)
    if source.format == "mono8":
        return np.broadcast_to(pixels, (source.height, source.width, 3))
    return pixels[..., ::-1] if source.format == "bgr8" else pixels


def _load_all(opened: Sequence[tuple[str, Image.Image | Frame]]) -> tuple[Frame, ...]:
    return tuple(
        _load(image, field) if isinstance(image, Image.Image) else np.ascontiguousarray(image)
        for field, image in opened
    )


def _load(image: Image.Image, field: str) -> Frame:
    """Decode what `_open` found, upright as its EXIF orientation says."""
    if image.mode not in _EIGHT_BIT_MODES:
        raise invalid(field, "must have 8 bits per channel", f"mode {image.mode}", Reason.INVALID_IMAGE)
    try:
        with image:
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except Exception as error:
        shown = f"{image.format} that fails with: {error}"
        raise invalid(field, "must be a whole JPEG, PNG or WebP file", shown, Reason.INVALID_IMAGE) from None


def _too_many_pixels(field: str, limit: int, value: str) -> ServiceError:
    return invalid(field, f"must keep all images of the request within {limit} pixels", value, Reason.TOO_LARGE)
