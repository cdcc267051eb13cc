"""Clips to frames and frames to clips: `decode` reads a video file into uint8 RGB, `write_clip` makes an MP4.

Two readers stand behind `decode`. decord jumps to the frames that are asked for; it is used where it is installed
(it has no wheel for aarch64), where jumping is known to land and where it saves work. PyAV reads from the beginning,
is right for every container it opens and notices damage that decord paints over. Not here: limits and file checks
(`model/video/probe.py`), crops and colors for a network (`model/preprocessing.py`), and isolation. A damaged file can
abort the whole process that decodes it, so a service calls `decode` through `model/video/decoder_worker.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from model.video.frame_times import frame_stamp, frame_times
from model.video.probe import (
    ClipDescription,
    ClipIndex,
    ClipLimits,
    VideoDecodeError,
    decoded_frames,
    open_clip,
    orientation_of,
    probe,
    survey,
)

__all__ = [
    "Clip",
    "ClipDescription",
    "ClipLimits",
    "FrameSampling",
    "VideoDecodeError",
    "decode",
    "find_decord",
    "probe",
    "write_clip",
]

_DECORD_CONTAINERS = ("mov", "matroska")
_DECORD_CODECS = ("h264", "hevc", "vp9")
_BATCH_BYTES = 32 * 2**20  # decord returns copies: a clip's frames never exist twice
_STAMP_SLACK_S = 0.002  # Matroska and FLV round stamps to milliseconds
_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a clip are wanted. Set at most one field; with none set, every frame is.

    fps: at k / fps seconds (k = 0, 1, ...) up to the last frame, the frame on screen then. Above the clip's own rate
        frames repeat.
    frames: this many, evenly spaced by index from the first to the last. A clip with fewer repeats some, so that the
        number asked for always comes back.
    stride: frames 0, stride, 2 stride, ...
    """

    fps: float | None = None
    frames: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        chosen = {name: getattr(self, name) for name in ("fps", "frames", "stride") if getattr(self, name) is not None}
        if len(chosen) > 1:
            raise ValueError(f"FrameSampling takes one of fps, frames and stride, got {chosen}")
        for name, value in chosen.items():
            if name == "fps" and not 0 < value <= 1000:
                raise ValueError(f"fps must be above 0 and at most 1000, got {value}")
            if name != "fps" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a clip. frames: [T, H, W, 3] uint8 RGB, upright. timestamps_s: [T] float64, since the first frame."""

    frames: NDArray[np.uint8]
    timestamps_s: NDArray[np.float64]
    description: ClipDescription
    reader: str  # "decord" or "pyav"


def decode(
    path: Path,
    sampling: FrameSampling | None = None,
    size: tuple[int, int] | None = None,
    limits: ClipLimits | None = None,
) -> Clip:
    """The frames of the clip at `path` that `sampling` asks for, in this process.

    size: (height, width) every frame is scaled to while it is read, so that a long clip fits memory; None keeps the
        first frame's size (frames of another size in the same stream are scaled to it).
    Frames are turned and mirrored as players show them; non-square pixels are not undone. Of a file with several video
    streams the one marked default is read, else the first that is no still picture. Damage that a decoder cannot tell
    from picture comes back as picture: much of it in VP9 and HEVC, and in H.264 where decord reads.
    Raises VideoDecodeError, ValueError for a size below 1, and OSError where there is no such file to read.
    """
    sampling = sampling or FrameSampling()
    limits = limits or ClipLimits()
    if size is not None and min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1 pixel each, got {size}")
    index = survey(path, limits)
    shape = size or (index.description.height, index.description.width)
    wanted = _pick(index.timestamps_s, sampling, shape, limits)
    decord = find_decord() if _jumps_land(index) and _jumps_save_work(index, wanted) else None
    if decord is not None:
        frames = _read_with_decord(decord, path, wanted, shape, index.description.frames)
        if frames is not None:
            return Clip(frames, index.timestamps_s[wanted], index.description, "decord")
    description = index.description
    times = index.timestamps_s
    frames, seen = _read_with_pyav(path, wanted, shape, description, limits)
    if description.frames_exact and (len(frames) < len(wanted) or not _agree(seen, times)):
        at = next((at for at, (shown, due) in enumerate(zip(seen, times, strict=False)) if shown > due), len(seen))
        raise VideoDecodeError("damaged", f"the clip is damaged at frame {at}")
    if len(seen) > 0 and (len(frames) < len(wanted) or not _agree(seen, times)):
        # The packets did not say which frames there are, or when: the frames do. Choose among them.
        if len(frames) == len(wanted):
            _, seen = _read_with_pyav(path, _NOTHING, shape, description, limits)
        times = seen
        wanted = _pick(times, sampling, shape, limits)
        description = replace(description, frames=len(times), frames_exact=True)
        frames, _ = _read_with_pyav(path, wanted, shape, description, limits)
    if len(frames) < len(wanted):
        raise VideoDecodeError("damaged", f"the clip gave more than {len(seen)} frames at one reading only")
    return Clip(frames, times[wanted], description, "pyav")


def _agree(seen: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Whether the times of the frames passed are those that were expected of them."""
    return len(seen) <= len(expected) and np.allclose(seen, expected[: len(seen)], rtol=0.0, atol=1e-6)


def write_clip(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Writes frames [T, H, W, 3] uint8 RGB as an H.264 MP4 that browsers play and that streams from its first byte.

    Raises ValueError unless T >= 1, H and W are even (H.264 stores color at half resolution) and fps > 0.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [T >= 1, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"frames must have an even height and width for H.264, got {height} x {width}")
    if not 0 < fps <= 1000:
        raise ValueError(f"fps must be above 0 and at most 1000, got {fps}")
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        # Said in the file, or players guess the color matrix from the size: BT.709, 16..235.
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for image in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)))
        container.mux(stream.encode())


def find_decord() -> ModuleType | None:
    """decord with its log silenced, None on machines it has no wheel for."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord  # type: ignore[no-any-return]


def _pick(
    times: NDArray[np.float64], sampling: FrameSampling, shape: tuple[int, int], limits: ClipLimits
) -> NDArray[np.int64]:
    """Indices of the wanted frames, not decreasing; refuses what would not fit the limits before any is read."""
    total = len(times)
    if sampling.fps is not None:
        count = int((float(times[-1]) + _STAMP_SLACK_S) * sampling.fps) + 1
    elif sampling.frames is not None:
        count = sampling.frames
    else:
        count = -(-total // (sampling.stride or 1))
    if count > limits.max_frames:
        message = f"{count} frames are asked for of a clip of {total}; at most {limits.max_frames} are returned"
        raise VideoDecodeError("too_long", f"{message}: sample fewer")
    size = count * shape[0] * shape[1] * 3
    if size > limits.max_output_bytes:
        message = f"{count} frames of {shape[1]} x {shape[0]} pixels are {size} bytes; at most"
        message = f"{message} {limits.max_output_bytes} are returned: sample fewer or ask for a smaller size"
        raise VideoDecodeError("too_large", message)
    indices: NDArray[np.int64]
    if sampling.fps is not None:
        asked = np.arange(count) / sampling.fps + _STAMP_SLACK_S
        indices = np.searchsorted(times, asked, side="right") - 1
    elif sampling.frames is not None:
        indices = np.linspace(0, total - 1, count).round().astype(np.int64)
    else:
        indices = np.arange(0, total, sampling.stride or 1, dtype=np.int64)
    return indices


def _jumps_land(index: ClipIndex) -> bool:
    """Whether decord finds the right frames: it jumps to a keyframe and counts from there, so groups must not overlap.

    decord 0.6.0 returns wrong frames, silently, for other clips (open groups of pictures are common: HEVC encoders
    make them by default). Where all of this held, none was wrong in 319 random clips read 12 times each.
    """
    found = index.description
    if found.video_streams > 1 or found.mirrored:
        return False  # it has a rule of its own for which stream is read, and no mirrors
    if found.container not in _DECORD_CONTAINERS or found.codec not in _DECORD_CODECS:
        return False
    stamps = [packet.pts for packet in index.packets if packet.pts is not None and packet.shown]
    if len(set(stamps)) < len(index.packets):
        return False
    key: int | None = None
    latest = 0
    for packet, stamp in zip(index.packets, stamps, strict=True):
        if packet.keyframe:
            if not packet.clean_start or (key is not None and stamp <= latest):
                return False
            if key is not None and packet.dts is not None and packet.dts <= key:
                return False  # keyframes are looked up by decoding time: a seek to the one before would land here
            key = latest = stamp
        elif key is None or stamp < key:
            return False
        latest = max(latest, stamp)
    return True


def _jumps_save_work(index: ClipIndex, wanted: NDArray[np.int64]) -> bool:
    """Whether jumping from keyframe to keyframe decodes at most half of what reading on to the last frame does.

    CPU seconds for 750 frames of 1280 x 720 H.264 with a keyframe every 25, decord against PyAV: 16 frames at 256 x 256
    0.37 and 0.81, 64 of them 0.86 and 0.91, 64 at full size 1.10 and 0.87.
    """
    shown = sorted((packet for packet in index.packets if packet.shown), key=lambda packet: packet.pts or 0)
    keys = np.flatnonzero([packet.keyframe for packet in shown])
    targets = np.unique(wanted)
    starts = keys[np.searchsorted(keys, targets, side="right") - 1]
    before = np.concatenate([[-1], targets[:-1]])
    jumping = int((targets - np.maximum(before, starts - 1)).sum())
    return 2 * jumping <= int(targets[-1]) + 1


def _read_with_decord(
    decord: ModuleType, path: Path, wanted: NDArray[np.int64], shape: tuple[int, int], total: int
) -> NDArray[np.uint8] | None:
    """Frames [len(wanted), *shape, 3], None where decord cannot read them: its own words say little, PyAV's say what.

    The reader is made here and dies here: one shared between threads kills the process.
    """
    frames = np.empty((len(wanted), *shape, 3), np.uint8)
    batch = max(1, _BATCH_BYTES // (shape[0] * shape[1] * 3))
    try:
        # fault_tol: a frame that cannot be decoded is an error, not a copy of its neighbor.
        reader = decord.VideoReader(str(path), width=shape[1], height=shape[0], num_threads=1, fault_tol=1e-9)
        if len(reader) != total:
            return None
        for start in range(0, len(wanted), batch):
            read = reader.get_batch(wanted[start : start + batch]).asnumpy()
            if read.shape[1:] != frames.shape[1:]:
                return None
            frames[start : start + batch] = read
    except MemoryError:
        raise
    except (
        Exception
    ):  # RuntimeError, DECORDError, DECORDLimitReachedError, AssertionError and more, all with poor words
        return None
    return frames


def _read_with_pyav(
    path: Path, wanted: NDArray[np.int64], shape: tuple[int, int], description: ClipDescription, limits: ClipLimits
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Frames of the indices in `wanted`, and the times of all frames passed on the way to the last of them.

    With nothing wanted all frames are passed. Fewer frames than wanted come back where the stream ends before it showed
    as many as its packets promised.
    """
    frames = np.empty((len(wanted), *shape, 3), np.uint8)
    done = 0
    stamps: list[int | None] = []
    scaler = VideoReformatter()  # one for all frames: it keeps its tables
    with open_clip(path, limits) as (container, stream):
        unit, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        for position, frame in enumerate(decoded_frames(container, stream, limits)):
            stamps.append(frame_stamp(frame, description.container))
            if len(wanted) == 0 or position < wanted[done]:
                continue
            shown = orientation_of(frame)
            height, width = shape[::-1] if shown.swaps_sides else shape
            # Bilinear as swscale does it: it averages when it shrinks. Nearest to what decord returns.
            picture = scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
            image = shown.apply(picture.to_ndarray())
            while done < len(wanted) and wanted[done] == position:
                frames[done] = image
                done += 1
            if done == len(wanted):
                break
    return frames[:done], frame_times(stamps, unit, rate)
