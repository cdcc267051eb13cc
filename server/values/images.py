"""Received images to RGB frames. Headers are judged, by a budget, before any pixel is decoded.

Which encoded images are read, and how, is `model.picture`: training decodes by the same rule. What is small is decoded
here; what takes longer goes to a process that can be ended, if there is one. Not a place for resizing: what a model
does with a frame's size is its crop policy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from presage.protocol.schema import field_types

from model.picture import PictureError, load_picture, open_picture, picture_header
from model.picture_header import PictureHeader
from server.errors import Reason, ServiceError, invalid
from server.values.calls import Frame

T = TypeVar("T")
ImageSource = bytes | Frame
"""A JPEG, PNG or WebP file, or pixels [height, width, 3] in RGB."""

Elsewhere = Callable[[Sequence[tuple[str, bytes]], int], Awaitable[Sequence[Frame]]]
"""Decodes files, each with the name of its field, within so many pixels, in another process."""

Judge = Callable[[str, int, int], None]
"""Raises ServiceError for an image of a field, a height and a width that would be refused later."""

_HERE_WORK = 320 * 240  # pixels that are decoded here, each scan counted: 256 px take 0.4 ms, 4096 px 0.25 s
_HERE_BYTES = 2**20  # of files that are decoded here
_HERE_FILES = 16  # whose headers are read here


async def decoded(request: T, max_pixels: int, elsewhere: Elsewhere | None = None, judge: Judge | None = None) -> T:
    """A request with every image file in it decoded; `max_pixels` bounds all its images together.

    Raises ServiceError naming the field.
    """
    found = list(sources_of(request))
    if not found:
        return request
    frames = iter(await decode(found, max_pixels, elsewhere, judge))
    filled: T = _with_frames(request, frames)
    return filled


def sources_of(request: object) -> Iterator[tuple[str, ImageSource]]:
    """Every image of a request, with the name of its field."""
    return _sources(request, "")


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


async def decode(
    sources: Sequence[tuple[str, ImageSource]],
    max_pixels: int,
    elsewhere: Elsewhere | None = None,
    judge: Judge | None = None,
) -> tuple[Frame, ...]:
    """Decode images, each given with the name of its field, into [height, width, 3] RGB frames, in order.

    `max_pixels` bounds the pixels of all of them together, so that many small files cannot hide one large picture.
    Raises ServiceError naming the field.
    """
    files = [(field, source) for field, source in sources if isinstance(source, bytes)]
    if elsewhere is not None and len(files) > _HERE_FILES:
        opened = _judged([each for each in sources if not isinstance(each[1], bytes)], max_pixels, judge)
        frames, found = iter(opened), iter(await elsewhere(files, max_pixels))
        return tuple(next(found) if isinstance(source, bytes) else _load(next(frames)) for _, source in sources)
    opened = _judged(sources, max_pixels, judge)
    is_small = (
        sum(len(source) for _, source in files) <= _HERE_BYTES and sum(each.work for each in opened) <= _HERE_WORK
    )
    if elsewhere is None or is_small:
        return tuple(_load(each) for each in opened)
    found = iter(await elsewhere(files, max_pixels))
    return tuple(_load(each) if each.header is None else next(found) for each in opened)


def decode_here(sources: Sequence[tuple[str, ImageSource]], max_pixels: int) -> tuple[Frame, ...]:
    """As `decode`, wherever this runs."""
    return tuple(_load(each) for each in _judged(sources, max_pixels, None))


@dataclass(frozen=True)
class _Judged:
    """An image whose size was judged: a file by its header, or pixels."""

    field: str
    header: PictureHeader | None
    pixels: Frame | None = None

    @property
    def work(self) -> int:
        return 0 if self.header is None else self.header.work


def _judged(sources: Sequence[tuple[str, ImageSource]], max_pixels: int, judge: Judge | None) -> list[_Judged]:
    """Every image with its header read and its size judged."""
    opened, pixels = list[_Judged](), 0
    for field, source in sources:
        each = _Judged(field, _header(source, field)) if isinstance(source, bytes) else _Judged(field, None, source)
        size: Any = source.shape[:2] if each.header is None else (each.header.height, each.header.width)  # type: ignore[union-attr]
        height, width = size
        pixels += height * width
        if pixels > max_pixels:
            raise _too_many_pixels(field, max_pixels, f"{width}x{height}")
        if judge is not None:
            judge(field, height, width)
        opened.append(each)
    return opened


def _header(source: bytes, field: str) -> PictureHeader:
    try:
        return picture_header(source)
    except PictureError as error:
        raise invalid(field, error.rule, error.value, Reason.INVALID_IMAGE) from None


def _load(opened: _Judged) -> Frame:
    """The pixels, upright as EXIF says."""
    if opened.header is None:
        assert opened.pixels is not None
        return np.ascontiguousarray(opened.pixels)
    try:
        return load_picture(open_picture(opened.header))
    except PictureError as error:
        if error.too_large:
            raise _too_many_pixels(opened.field, 0, error.value) from None
        raise invalid(opened.field, error.rule, error.value, Reason.INVALID_IMAGE) from None


def _too_many_pixels(field: str, limit: int, value: str) -> ServiceError:
    return invalid(field, f"must keep all images of the request within {limit} pixels", value, Reason.TOO_LARGE)
