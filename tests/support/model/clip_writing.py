"""Writes clips of any codec, container and timing: with the system's ffmpeg where there is one, and with PyAV."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


FFMPEG = shutil.which("ffmpeg") if shutil.which("ffprobe") else None


Options = Mapping[str, str]


def write(
    path: Path,
    frames: Frames,
    codec: str,
    pixels: str,
    options: Options | None = None,
    rate: Fraction | int = 25,
    muxer: Options | None = None,
    container: str | None = None,
) -> None:
    """Frames at a constant rate. `options` are the encoder's, `muxer` the container's."""
    if FFMPEG is None:
        write_with_pyav(path, frames, codec, pixels, options, rate, muxer, container)
        return
    height, width = frames.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
    chosen = [part for key, value in (options or {}).items() for part in (f"-{key}", value)]
    chosen += [part for key, value in (muxer or {}).items() for part in (f"-{key}", value)]
    named = ["-f", container] if container else []
    command = [FFMPEG, "-v", "error", "-y", *given, "-threads", "1", "-c:v", codec, "-pix_fmt", pixels, *chosen]
    done = subprocess.run([*command, *named, str(path)], input=frames.tobytes(), capture_output=True)
    if done.returncode:  # an encoder that this ffmpeg was built without
        write_with_pyav(path, frames, codec, pixels, options, rate, muxer, container)


def write_with_pyav(
    path: Path,
    frames: Frames,
    codec: str,
    pixels: str,
    options: Options | None = None,
    rate: Fraction | int = 25,
    muxer: Options | None = None,
    container: str | None = None,
    stamps: list[int] | None = None,
    unit: Fraction = Fraction(1, 1000),
    matrix: tuple[int, int, int, int] | None = None,
) -> None:
    """As `write`; `stamps` in units of `unit` replace the rate, `matrix` is the linear part of a display matrix."""
    encoder = dict(options or {})
    keyframes = encoder.pop("g", "4")
    with av.open(str(path), "w", format=container, options=dict(muxer or {})) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.gop_size = int(keyframes)
        stream.codec_context.thread_count = 1
        if "bf" in encoder:
            stream.codec_context.max_b_frames = int(encoder["bf"])
        if matrix is not None:
            a, b, c, d = (65536 * entry for entry in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        stream.codec_context.time_base = 1 / Fraction(rate) if stamps is None else unit
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (index, 1 / Fraction(rate)) if stamps is None else (stamps[index], unit)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def remux(source: Path, path: Path, stamps: list[int], unit: Fraction = Fraction(1, 1000)) -> None:
    """The packets of `source`, whose frames are not reordered, with other stamps."""
    with av.open(str(source)) as read, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(read.streams.video[0])
        stream.time_base = unit
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for packet, stamp in zip(packets, stamps, strict=False):
            packet.pts = packet.dts = stamp
            packet.time_base, packet.stream = unit, stream
            file.mux_one(packet)
