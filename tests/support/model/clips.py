"""Clips for the tests, written with PyAV when they are needed, and a decode function that misbehaves on purpose."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from model.video.decode import Clip, ClipLimits, FrameSampling, VideoDecodeError, decode

FPS = 25


def moving_square(count: int, height: int = 64, width: int = 80) -> NDArray[np.uint8]:
    """[count, height, width, 3]: smooth enough for any codec; each frame 5 gray levels brighter than the one before."""
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        level = 30 + 5 * index
        frames[index, ..., 0] = level + columns * 40 // width
        frames[index, ..., 1] = level + rows * 40 // height
        frames[index, ..., 2] = level
        top, left = index * 2 % (height - 16), index * 3 % (width - 16)
        frames[index, top : top + 16, left : left + 16] = (200, 60, 40)
    return frames


def write(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    stamps_ms: list[int] | None = None,
    keyframe_every: int = 4,
    faststart: bool = False,
) -> Path:
    """Writes `frames` with `codec` to `path`, whose ending names the container; 25 fps unless `stamps_ms` are given."""
    settings = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=settings) as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.gop_size = keyframe_every
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps_ms is not None:
                frame.pts, frame.time_base = stamps_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_streams(path: Path, *streams: tuple[str, NDArray[np.uint8], int]) -> Path:
    """Streams of (codec, frames, disposition), 25 frames a second, beside each other in one file."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, frames, disposition in streams:
            options = {"crf": "12"} if codec == "libx264" else {}
            stream = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p" if codec == "mjpeg" else "rgb24"
            stream.gop_size = 4
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = Fraction(1, 25)
            stream.disposition = Disposition(disposition)
            made.append(stream)
        for stream, (_, frames, _) in zip(made, streams, strict=True):
            for index, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def trim(source: Path, path: Path, start_s: float) -> Path:
    """Copies the packets of `source` so that players begin at `start_s`: the frames before it stay in, unshown."""
    with av.open(str(source)) as read, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.pts is None or packet.dts is None:
                continue
            shift = int(start_s / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """A tenth of a second of silence in an MP4, and no picture."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def treacherous_decode(path: Path, sampling: FrameSampling, size: tuple[int, int] | None, limits: ClipLimits) -> Clip:
    """Decodes, unless the file's name asks for something else: the trouble that real decoders make on rare files."""
    if path.stem == "abort":
        os.abort()
    if path.stem == "hang":
        time.sleep(600)
    if path.stem == "exit":
        os._exit(3)
    if path.stem == "memory":
        np.ones(2**33, np.uint8)
    if path.stem == "mistake":
        raise LookupError("a decoder's own mistake")
    if path.stem == "modules":
        decode(path, sampling, size, limits)
        raise VideoDecodeError("unsupported", " ".join(sorted(sys.modules)))
    return decode(path, sampling, size, limits)


def nearest(frames: NDArray[np.uint8], source: NDArray[np.uint8]) -> list[int]:
    """For each frame the index of the source frame it looks most like."""
    return [int(np.abs(source.astype(int) - frame).mean((1, 2, 3)).argmin()) for frame in frames]


def difference(frames: NDArray[np.uint8], source: NDArray[np.uint8]) -> float:
    """Mean error of the worst frame, in gray levels."""
    return float(np.abs(frames.astype(int) - source).mean((1, 2, 3)).max())


COUNT = 24
SOURCE = moving_square(COUNT)
X265 = "pools=none:frame-threads=1:log-level=none"
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=2:keyint=6:b-adapt=0", "crf": "12"}
SHARP = {"crf": "12"}

# name: how it is written, which reader suits a few frames of it, and the error its codec is allowed in gray levels
KINDS: dict[str, tuple[dict[str, Any], str, float]] = {
    "h264.mp4": ({"options": SHARP}, "decord", 3),
    "h264.mkv": ({"options": SHARP}, "decord", 3),
    "h264_444.mov": ({"options": SHARP, "pixels": "yuv444p"}, "decord", 3),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"crf": "12"}}, "decord", 4),
    "hevc_closed.mp4": (
        {
            "codec": "libx265",
            "options": {"x265-params": f"open-gop=0:keyint=4:{X265}", "crf": "12"},
        },
        "decord",
        3,
    ),
    "h264_open.mp4": ({"options": OPEN_GROUPS}, "pyav", 3),
    "h264_open.mkv": ({"options": OPEN_GROUPS}, "pyav", 3),
    "hevc_open.mp4": (
        {
            "codec": "libx265",
            "options": {"x265-params": f"keyint=6:{X265}", "crf": "12"},
        },
        "pyav",
        3,
    ),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"bf": "2", "qscale": "2"}}, "pyav", 8),
    "vp8.webm": ({"codec": "libvpx", "options": {"crf": "4", "b": "2M"}}, "pyav", 5),
    "av1.mp4": ({"codec": "libsvtav1", "options": {"crf": "12", "preset": "10", "svtav1-params": "lp=1"}}, "pyav", 4),
    "mjpeg.avi": ({"codec": "mjpeg", "pixels": "yuvj420p"}, "pyav", 6),
    "h264.avi": ({"options": SHARP}, "pyav", 3),
    "h264.ts": ({"options": SHARP}, "pyav", 3),
    "palette.gif": ({"codec": "gif", "pixels": "rgb8"}, "pyav", 25),
}
