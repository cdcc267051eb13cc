"""Frames out of video files and encoded images, in batches at their recorded size. Choosing and scaling is elsewhere.

Recordings are trusted no further than files from a stranger: containers, pixels and bytes are limited before anything
is decoded, in `model.video.probe` for clips and in `model.picture` for images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from model.picture import PictureError, decode_picture
from model.video.probe import ClipLimits, VideoDecodeError, decoded_frames, open_clip, orientation_of, starts_clean
from training.data.dataset import FRAMES_AT_ONCE, DatasetError

CLIP_LIMITS = ClipLimits(max_bytes=16 * 2**30, max_seconds=24 * 3600, max_frames=10**7)
STAMP_SLACK_S = 0.002  # Matroska rounds stamps to milliseconds
_TIE_S = 1e-6  # a time midway between two frames has the earlier one, whatever its rounding
_ALONE = frozenset({"mjpeg", "png", "ffv1", "prores", "dnxhd", "rawvideo", "vp8", "theora", "huffyuv", "qtrle"})


@dataclass(frozen=True)
class ClipStarts:
    """Where the decoding of a clip can begin, times in seconds since its first frame."""

    starts: tuple[tuple[float, int, int], ...]  # time, pts and dts of keyframes that need nothing from before, by time
    end_s: float  # when its last frame is shown
    period_s: float  # from one frame to the next, on average


def frames_at(path: Path, times_s: NDArray[np.float64]) -> Iterator[NDArray[np.uint8]]:
    """The clip's frames nearest to the given times (since its first frame; never falling), one for each time.

    Decoding starts at the last keyframe before the first time that needs nothing from before it: an episode of a long
    file is read at the cost of that episode, and exactly as a decoding of the whole file shows it. Raises DatasetError
    naming the time that no frame is within half a frame of, or how the clip is damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: {absent(path)}")
    if len(times_s) == 0:
        return
    if (np.diff(times_s) < 0).any():
        raise DatasetError(f"{path}: the times of its rows run backwards")
    try:
        yield from _batched(_nearest(path, times_s))
    except VideoDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error


def every_frame(path: Path) -> Iterator[NDArray[np.uint8]]:
    """All of a clip's frames, in the order shown. Raises DatasetError naming how the clip is damaged."""
    if not path.is_file():
        raise DatasetError(f"{path}: {absent(path)}")
    pictures = _Pictures()
    try:
        with open_clip(path, CLIP_LIMITS) as (container, stream):
            yield from _batched(pictures.of(frame) for frame in decoded_frames(container, stream, CLIP_LIMITS))
    except VideoDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error


def absent(path: Path) -> str:
    """Why there is no file to read at a path."""
    return "is a link that leads nowhere" if path.is_symlink() and not path.exists() else "no such file"


def clip_starts(path: Path) -> ClipStarts:
    """Where decoding can begin in a clip; one pass over its packets, remembered. Raises DatasetError."""
    try:
        status = path.stat()
        return _clip_starts(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except VideoDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error


@lru_cache(maxsize=16)  # all episodes of a file come one after another
def _clip_starts(path: Path, size: int, changed_ns: int) -> ClipStarts:
    starts: list[tuple[float, int, int]] = []
    stamps: list[int] = []
    with open_clip(path, CLIP_LIMITS) as (container, stream):
        unit, origin = float(stream.time_base or 0), stream.start_time or 0
        rate = float(stream.average_rate or 0)
        try:
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                stamps.append(packet.pts)
                if packet.is_keyframe and packet.dts is not None and _needs_nothing(packet, stream):
                    starts.append(((packet.pts - origin) * unit, packet.pts, packet.dts))
        except (av.error.FFmpegError, ValueError):
            pass  # whoever reads the part that is damaged says so
    end = (max(stamps) - origin) * unit if stamps else 0.0
    period = end / (len(stamps) - 1) if len(stamps) > 1 and end > 0 else (1 / rate if rate > 0 else 0.0)
    return ClipStarts(tuple(sorted(starts)), end, period)


def _needs_nothing(packet: Packet[Any], stream: VideoStream) -> bool:
    """Whether decoding may begin with this keyframe: neither it nor what follows refers to what was before.

    Containers mark more than that as keyframes: the recovery points of open groups of pictures and of intra refresh.
    """
    codec = stream.codec_context.name
    if codec in _ALONE:
        return True
    if "av1" in codec:
        return _starts_with_shown_key_frame(bytes(packet))
    return starts_clean(packet, stream)


def _starts_with_shown_key_frame(unit: bytes) -> bool:
    """Whether the first frame of an AV1 temporal unit is a key frame that is shown (AV1 specification, 5.3 to 5.9)."""
    at = 0
    while at < len(unit):
        kind, extended, sized = unit[at] >> 3 & 15, unit[at] & 4, unit[at] & 2
        at += 2 if extended else 1
        size, shift = 0, 0
        while sized and at < len(unit):
            size |= (unit[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if not unit[at - 1] & 128:
                break
        if at >= len(unit):
            return False
        if kind == 1 and unit[at] & 8:
            return True  # a reduced still picture
        if kind in (3, 6):
            return unit[at] >> 4 == 0b0001  # shows no earlier frame, is a key frame, is shown
        at += size if sized else len(unit)
    return False


def _batched(pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    batch: list[NDArray[np.uint8]] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == FRAMES_AT_ONCE:
            yield np.stack(batch)
            batch.clear()
    if batch:
        yield np.stack(batch)


def _nearest(path: Path, times_s: NDArray[np.float64]) -> Iterator[NDArray[np.uint8]]:
    """The picture nearest to each time. One before and one after are known before either is chosen."""
    pictures = _Pictures()
    reach = clip_starts(path).period_s / 2 + STAMP_SLACK_S
    total, done = len(times_s), 0
    before: tuple[float, VideoFrame] | None = None

    def missing() -> DatasetError:
        return DatasetError(f"{path}: has no frame at {times_s[done]:.3f} s: {done} of {total} frames are there")

    for time, frame in _from_clean_start(path, float(times_s[0])):
        if before is not None and time <= before[0]:
            continue
        while done < total and before is not None and times_s[done] - before[0] <= time - times_s[done] + _TIE_S:
            if abs(times_s[done] - before[0]) > reach:
                raise missing()
            yield pictures.of(before[1])
            done += 1
        if done == total:
            return
        if before is None and times_s[done] < time - reach:
            raise missing()
        before = time, frame
    while done < total:
        if before is None or abs(times_s[done] - before[0]) > reach:
            raise missing()
        yield pictures.of(before[1])
        done += 1


def _from_clean_start(path: Path, first_s: float) -> Iterator[tuple[float, VideoFrame]]:
    """Frames in the order shown, with their times, from the last clean start before `first_s` or the file's own."""
    earlier = [start for start in clip_starts(path).starts[1:] if start[0] <= first_s]
    if earlier:
        _, pts, dts = earlier[-1]
        begun = False
        with open_clip(path, CLIP_LIMITS) as (container, stream):
            container.seek(dts, stream=stream, backward=True)
            for frame in decoded_frames(container, stream, CLIP_LIMITS, begin=pts):
                begun = True
                yield _time(path, frame, stream), frame
        if begun:
            return
    with open_clip(path, CLIP_LIMITS) as (container, stream):
        for frame in decoded_frames(container, stream, CLIP_LIMITS):
            yield _time(path, frame, stream), frame


def _time(path: Path, frame: VideoFrame, stream: VideoStream) -> float:
    if frame.pts is None:
        raise DatasetError(f"{path}: its frames carry no times")
    return (frame.pts - (stream.start_time or 0)) * float(stream.time_base or 0)


class _Pictures:
    """Frames as RGB arrays, upright; the last one is kept, for rows that share a frame."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()  # one for all frames: it keeps its tables
        self._size: tuple[int, int] | None = None
        self._last: tuple[VideoFrame, NDArray[np.uint8]] | None = None

    def of(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._last is None or self._last[0] is not frame:
            self._size = self._size or (frame.width, frame.height)
            picture = self._scaler.reformat(frame, *self._size, "rgb24", interpolation="BILINEAR")
            self._last = frame, orientation_of(frame).apply(picture.to_ndarray())
        return self._last[1]


def decoded_images(encoded: Iterable[bytes], where: str) -> Iterator[NDArray[np.uint8]]:
    """Batches of RGB frames from JPEG, PNG or WebP files. Raises DatasetError naming the image that cannot be read."""
    batch: list[NDArray[np.uint8]] = []
    for number, content in enumerate(encoded):
        picture = decode_image(content, f"{where}: image {number}")
        if batch and picture.shape != batch[0].shape:
            size, first = (f"{shape[0]} x {shape[1]}" for shape in (picture.shape, batch[0].shape))
            raise DatasetError(f"{where}: image {number} has {size} pixels after images of {first}")
        batch.append(picture)
        if len(batch) == FRAMES_AT_ONCE:
            yield np.stack(batch)
            batch.clear()
    if batch:
        yield np.stack(batch)


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """One image, `[height, width, 3]` RGB, by the service's own rule (`model.picture`). Raises DatasetError."""
    try:
        return decode_picture(content, CLIP_LIMITS.max_pixels)
    except PictureError as error:
        raise DatasetError(f"{where}: {error}") from error
