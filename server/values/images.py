"""Received images to RGB frames. The header is checked against a pixel limit before anything is decoded.

Which encoded images are read, and how, is `model.picture`: training decodes by the same rule. Not a place for resizing:
what a model does with a frame's size is its crop policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from presage.protocol.schema import field_types

from model.picture import PictureError, load_picture, open_picture
from server.errors import Reason, ServiceError, invalid
from server.values.calls import Frame

T = TypeVar("T")
ImageSource = bytes | Frame
"""A JPEG, PNG or WebP file, or pixels [height, width, 3] in RGB."""

_INLINE_PIXELS = 320 * 240  # more is decoded on a thread: 256 px takes 0.4 ms, 4096 px a quarter of a second


async def decoded(request: T, max_pixels: int) -> T:
    """A request with every image file in it decoded; `max_pixels` bounds all its images together.

    Raises ServiceError naming the field.
    """
    found = list(_sources(request, ""))
    if not found:
        return request
    frames = iter(await decode(found, max_pixels))
    filled: T = _with_frames(request, frames)
    return filled


def _sources(value: Any, where: str) -> Iterator[tuple[str, ImageSource]]:
    """Every image of a value, with the name of its field."""
    for name, is_image in _image_fields(type(value)):
        content = getattr(value, name)
        several = isinstance(content, tuple)
        for index, each in enumerate(content if several else () if content is None else (content,)):
            place = f"{where}{name}[{index}]" if several else f"{where}{name}"
            if is_image:
                yield place, each
            else:
                yield from _sources(each, f"{place}.")


def _with_frames(value: Any, frames: Iterator[Frame]) -> Any:
    """The value with the next frames in its images' places, in the order of `_sources`."""
    changed: dict[str, Any] = {}
    for name, is_image in _image_fields(type(value)):
        content = getattr(value, name)
        if isinstance(content, tuple):
            changed[name] = tuple(next(frames) if is_image else _with_frames(each, frames) for each in content)
        elif content is not None:
            changed[name] = next(frames) if is_image else _with_frames(content, frames)
    return replace(value, **changed)


def _image_fields(kind: Any) -> tuple[tuple[str, bool], ...]:
    """Fields that are images or hold some, and whether they are images themselves."""
    return _known_image_fields(kind)


@cache
def _known_image_fields(kind: Any) -> tuple[tuple[str, bool], ...]:
    return tuple(
        (field.name, field.kind == Frame)
        for field in field_types(kind)
        if field.kind == Frame or (is_dataclass(field.kind) and _image_fields(field.kind))
    )


async def decode(sources: Sequence[tuple[str, ImageSource]], max_pixels: int) -> tuple[Frame, ...]:
    """Decode images, each given with the name of its field, into [height, width, 3] RGB frames, in order.

    `max_pixels` bounds the pixels of all of them together, so that many small files cannot hide one large picture.
    Raises ServiceError naming the field.
    """
    opened: list[tuple[str, Image.Image | Frame]] = []
    pixels = 0
    for field, source in sources:
        image = _open(source, field) if isinstance(source, bytes) else source
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
        pixels += height * width
        if pixels > max_pixels:
            raise _too_many_pixels(field, max_pixels, f"{width}x{height}")
        opened.append((field, image))
    if pixels <= _INLINE_PIXELS:
        return _load_all(opened)
    return await asyncio.to_thread(_load_all, opened)


def _open(source: bytes, field: str) -> Image.Image:
    """Read the header alone."""
    try:
        return open_picture(source)
    except PictureError as error:
        if error.too_large:
            raise _too_many_pixels(field, Image.MAX_IMAGE_PIXELS or 0, error.value) from None
        raise invalid(field, error.rule, error.value, Reason.INVALID_IMAGE) from None


def _load_all(opened: Sequence[tuple[str, Image.Image | Frame]]) -> tuple[Frame, ...]:
    return tuple(
        _load(image, field) if isinstance(image, Image.Image) else np.ascontiguousarray(image)
        for field, image in opened
    )


def _load(image: Image.Image, field: str) -> Frame:
    """Decode what `_open` found, upright as its EXIF orientation says."""
    try:
        return load_picture(image)
    except PictureError as error:
        raise invalid(field, error.rule, error.value, Reason.INVALID_IMAGE) from None


def _too_many_pixels(field: str, limit: int, value: str) -> ServiceError:
    return invalid(field, f"must keep all images of the request within {limit} pixels", value, Reason.TOO_LARGE)
