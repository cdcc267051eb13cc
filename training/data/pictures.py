"""Frames out of video files and encoded images, in batches at their recorded size. Choosing and scaling is elsewhere.

Recordings are trusted no further than files from a stranger: containers, pixels and bytes are limited before anything
is decoded, in `model.video.probe` for clips and here for images.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from model.video.probe import ClipLimits, VideoDecodeError, decoded_frames, open_clip, upright_turn
from training.data.dataset import FRAMES_AT_ONCE, DatasetError

CLIP_LIMITS = ClipLimits(max_bytes=16 * 2**30, max_seconds=24 * 3600, max_frames=10**7)
STAMP_SLACK_S = 0.002  # Matroska rounds stamps to milliseconds
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


def frames_at(path: Path, times_s: NDArray[np.float64], slack_s: float) -> Iterator[NDArray[np.uint8]]:
    """The clip's frames at the given times (since its first frame), each at most `slack_s` off, in order.

    Starts at the keyframe before the first time: an episode of a long file is read at the cost of that episode.
    Raises DatasetError naming the time at which there is no frame, or how the clip is damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    if len(times_s) == 0:
        return
    try:
        yield from _frames_at(path, times_s, slack_s)
    except VideoDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error


def _frames_at(path: Path, times_s: NDArray[np.float64], slack_s: float) -> Iterator[NDArray[np.uint8]]:
    batch: list[NDArray[np.uint8]] = []
    done = 0
    scaler = VideoReformatter()  # one for all frames: it keeps its tables
    size: tuple[int, int] | None = None
    with open_clip(path, CLIP_LIMITS) as (container, stream):
        unit, origin = float(stream.time_base or 0), stream.start_time or 0
        if times_s[0] > slack_s:
            container.seek(origin + int((times_s[0] - slack_s) / unit), stream=stream, backward=True)
        for frame in decoded_frames(container, stream, CLIP_LIMITS):
            if frame.pts is None:
                raise DatasetError(f"{path}: its frames carry no times")
            time = (frame.pts - origin) * unit
            if time > times_s[done] + slack_s:
                break
            if time < times_s[done] - slack_s:
                continue
            size = size or (frame.width, frame.height)
            picture = scaler.reformat(frame, *size, "rgb24", interpolation="BILINEAR")
            batch.append(np.rot90(picture.to_ndarray(), upright_turn(frame) // 90))
            done += 1
            if len(batch) == FRAMES_AT_ONCE:
                yield np.stack(batch)
                batch.clear()
            if done == len(times_s):
                break
    if batch:
        yield np.stack(batch)
    if done < len(times_s):
        raise DatasetError(f"{path}: has no frame at {times_s[done]:.3f} s: {done} of {len(times_s)} frames are there")


def decoded_images(encoded: Iterable[bytes], where: str) -> Iterator[NDArray[np.uint8]]:
    """Batches of RGB frames from JPEG, PNG or WebP files. Raises DatasetError naming the image that cannot be read."""
    batch: list[NDArray[np.uint8]] = []
    for number, content in enumerate(encoded):
        batch.append(decode_image(content, f"{where}: image {number}"))
        if len(batch) == FRAMES_AT_ONCE:
            yield np.stack(batch)
            batch.clear()
    if batch:
        yield np.stack(batch)


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """One image, `[height, width, 3]` RGB. Raises DatasetError: not an image, damaged, or of too many pixels."""
    try:
        with Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > CLIP_LIMITS.max_pixels:
                raise DatasetError(f"{where}: has {image.width} x {image.height} pixels, more than are decoded")
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:  # a broken image raises whatever its parser stumbled on
        raise DatasetError(f"{where}: is not a readable JPEG, PNG or WebP image: {error}") from error
