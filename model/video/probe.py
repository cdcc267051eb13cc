"""Probes a clip file without decoding it all: its frames' times, its size, whether it is whole.

Here are the limits that refuse a file early (a decompression bomb, a forged header, an hour of footage) and the one
error every reader of clips raises. Not here: turning a clip into frames (`decode.py`) and keeping a decoder that
crashes away from the service (`model/video/decoder_worker.py`). Probing parses a stranger's file, so a service that
receives files from outside does it in a worker too: what `decode` returns there carries the description.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from presage.user_error import UserError

from model.video import orientation
from model.video.file_kinds import HEAD_BYTES, kind_of, still_container
from model.video.frame_times import BY_POSITION, duration_of, frame_times
from model.video.orientation import UPRIGHT, Orientation
from model.video.truncation import how_cut

Reason = Literal[
    "not_a_video",
    "no_video_stream",
    "truncated",
    "damaged",
    "too_large",
    "too_long",
    "unsupported",
    "timeout",
    "decoder_crashed",
]

# A playlist is a "video" to FFmpeg too, one that opens other files and addresses: only real containers are let in.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,gif,flv,ogg,ivf"
_READABLE = "MP4, MOV, WebM, Matroska, AVI, MPEG-TS, MPEG-PS, GIF, FLV, Ogg or IVF"
_STAMPED = ("mov", "matroska", "gif")  # containers that say when each frame is shown
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_MAX_SOURCE_FPS = 240  # with max_seconds it bounds the packets looked at, whatever a forged index claims


class VideoDecodeError(UserError):
    """A clip that cannot be turned into frames. `str()` of it is a sentence for the person who sent the clip.

    reason: which kind of trouble, for programs. `truncated` ends too early, `damaged` breaks somewhere inside,
        `too_large` is bytes or pixels, `too_long` is seconds or frames, `unsupported` has no decoder here.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason: Reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ClipLimits:
    """What a clip may cost. Everything but `max_output_bytes` and `max_frames` is about the file itself."""

    max_bytes: int = 256 * 2**20  # the file's size
    max_pixels: int = 4096 * 4096  # of one frame as stored, width x height
    max_seconds: float = 3600.0
    max_frames: int = 4096  # returned, after sampling
    max_output_bytes: int = 2**30  # all returned frames together, after resizing

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_seconds", "max_frames", "max_output_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class ClipDescription:
    """A clip, as its container describes it and its first frame shows it."""

    container: str  # FFmpeg's short name, e.g. "mov" for MP4 and MOV
    codec: str  # e.g. "h264"
    width: int  # pixels, as shown: after `rotation` is applied
    height: int
    rotation: int  # degrees counter-clockwise from stored to shown: 0, 90, 180 or 270
    mirrored: bool  # left and right swapped after that
    stream: int  # number of the stream that is read, counted over all of the file's streams
    video_streams: int  # that the file has, pictures that accompany them included
    frames: int
    frames_exact: bool  # False: counted in packets, some of which may turn out to show no frame
    duration_s: float  # from the first frame's appearance to the end of the last one
    fps: float  # mean rate; 0 for a single frame whose container names no rate


@dataclass(frozen=True)
class PacketEntry:
    """One packet of the video stream; times in the stream's own units."""

    pts: int | None  # when its frame is shown
    dts: int | None  # when it is decoded
    keyframe: bool
    clean_start: bool  # a keyframe at which decoders restart without a trace of what came before
    shown: bool

    def stamp(self, container: str) -> int | None:
        """What its frame's time is taken from."""
        return self.dts if container in BY_POSITION or self.pts is None else self.pts


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """What one pass over a clip's packets tells.

    timestamps_s: [frames] float64, since the first frame, never falling.
    """

    description: ClipDescription
    timestamps_s: NDArray[np.float64]
    packets: tuple[PacketEntry, ...]  # in file order


def probe(path: Path, limits: ClipLimits | None = None) -> ClipDescription:
    """Describes the clip at `path`. Reads its packets and decodes one frame, after the limits on the file held.

    Raises VideoDecodeError, and FileNotFoundError or another OSError where there is no such file to read.
    """
    return survey(path, limits or ClipLimits()).description


def survey(path: Path, limits: ClipLimits) -> ClipIndex:
    """The index of the clip at `path`; raises as `probe` does."""
    with open_clip(path, limits) as (container, stream):
        kind = container.format.name.split(",")[0]
        entries, cut = _read_entries(container, stream, limits, kind, path.stat().st_size)
        codec = stream.codec_context.codec.canonical_name
        rate = float(stream.average_rate or 0)
        unit = float(stream.time_base or 0)
        number, video_streams = stream.index, len(container.streams.video)
    cut = cut or how_cut(path, kind)
    if cut is not None:
        raise VideoDecodeError("truncated", f"the clip is cut short: it ends at frame {len(entries)}: {cut}")
    begin = next((at for at, entry in enumerate(entries) if entry.keyframe), len(entries))
    if begin > 0 and kind in _STAMPED:
        raise VideoDecodeError("damaged", "the clip is damaged at frame 0")
    entries = entries[begin:]  # as `decoded_frames` begins
    stamps = [entry.stamp(kind) for entry in entries if entry.shown]
    if not stamps:
        raise VideoDecodeError("damaged", "the clip's video stream holds no frame that can be decoded")
    # Packets come in the order of decoding. Where that order is broken, or a stamp missing, only frames tell theirs.
    in_order = None not in stamps and all(
        first.dts is None or second.dts is None or first.dts <= second.dts for first, second in pairwise(entries)
    )
    times = frame_times(sorted(stamps) if in_order else stamps, unit, rate)  # type: ignore[type-var]
    frames = len(times)
    duration = duration_of(times, rate)
    if duration > limits.max_seconds:
        raise VideoDecodeError("too_long", f"the clip lasts {duration:.1f} s; at most {limits.max_seconds:g} s is read")
    with open_clip(path, limits) as (container, stream):
        first = next(decoded_frames(container, stream, limits), None)
    # Each packet shows one frame, unless the stream begins with frames that refer to what was cut off before them.
    exact = kind in _STAMPED and in_order and (codec in ("av1", "gif", "mjpeg") or entries[0].clean_start)
    if first is None or (exact and first.pts != min(stamps)):  # type: ignore[type-var]
        raise VideoDecodeError("damaged", "the clip is damaged at frame 0")
    shown = orientation_of(first)
    width, height = (first.height, first.width) if shown.swaps_sides else (first.width, first.height)
    description = ClipDescription(
        container=kind,
        codec=codec,
        width=width,
        height=height,
        rotation=shown.rotation,
        mirrored=shown.mirrored,
        stream=number,
        video_streams=video_streams,
        frames=frames,
        frames_exact=exact,
        duration_s=duration,
        fps=round(frames / duration, 6) if duration > 0 else rate,
    )
    return ClipIndex(description, times, tuple(entries))


@contextmanager
def open_clip(path: Path, limits: ClipLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The clip's container and its video stream, single-threaded and capped in pixels, open for one pass over it."""
    size = path.stat().st_size
    if not path.is_file():
        raise VideoDecodeError("not_a_video", "the path is not a regular file")
    if size == 0:
        raise VideoDecodeError("not_a_video", "the file is empty (0 bytes)")
    if size > limits.max_bytes:
        raise VideoDecodeError("too_large", f"the file has {size} bytes; at most {limits.max_bytes} are read")
    still = still_container(path)
    if still is not None:
        raise VideoDecodeError("not_a_video", f"the file is {still}, not a clip; {_READABLE} is expected")
    with _opened(path, limits) as container:
        candidates = _films(container)
        if not candidates:
            cut = how_cut(path)
            if cut is not None:
                raise VideoDecodeError("truncated", f"the clip is cut short before its first frame: {cut}")
            raise VideoDecodeError("no_video_stream", "the file has no video stream (only sound, pictures or text)")
        if len(candidates) == 1:
            yield container, _prepared(candidates[0], limits)
            return
        counted = _packets_of(container, [stream.index for stream in candidates], limits)
    with _opened(path, limits) as container:  # counting read packets: here the file begins anew
        chosen = _chosen([stream for stream in _films(container) if counted[stream.index] == max(counted.values())])
        yield container, _prepared(chosen, limits)


@contextmanager
def _opened(path: Path, limits: ClipLimits) -> Iterator[InputContainer]:
    options = {
        "format_whitelist": _CONTAINERS,
        "protocol_whitelist": "file",
        "max_pixels": str(limits.max_pixels),  # else FFmpeg decodes a frame of any size to fill in the header
    }
    try:
        container = av.open(str(path.absolute()), "r", options=options, metadata_errors="replace")
    except MemoryError as error:
        raise VideoDecodeError("too_large", "opening the clip needs more memory than a decoder is given") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise _not_readable(path) from error
    with container:
        yield container


def decoded_frames(
    container: InputContainer, stream: VideoStream, limits: ClipLimits, begin: int | None = None
) -> Iterator[VideoFrame]:
    """The stream's frames in the order they are shown, beginning with the first keyframe, or that of stamp `begin`.

    Raises VideoDecodeError naming the frame that cannot be decoded.
    """
    count = 0
    started = False  # recordings of a broadcast begin between keyframes; what lies before the first is not decodable
    try:
        for packet in container.demux(stream):
            started = started or (packet.is_keyframe and begin in (None, packet.pts))
            for frame in packet.decode() if started else ():
                if frame.is_corrupt:
                    raise VideoDecodeError("damaged", f"the clip is damaged at frame {count}")
                yield frame
                count += 1
    except MemoryError as error:
        raise VideoDecodeError("too_large", "decoding the clip needs more memory than a decoder is given") from error
    except av.error.ArgumentError as error:  # how FFmpeg says that a frame passes max_pixels
        message = f"frame {count} of the clip is unreadable or has more than {limits.max_pixels} pixels"
        raise VideoDecodeError("too_large", message) from error
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoDecodeError("damaged", f"the clip is damaged at frame {count}") from error


def orientation_of(frame: VideoFrame) -> Orientation:
    """How the frame is turned and mirrored to be shown. Raises VideoDecodeError for what is no quarter turn."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload] # its stubs say a name
    if matrix is None:
        return UPRIGHT
    try:
        return orientation.from_display_matrix(bytes(matrix))
    except ValueError:
        message = "the clip is to be shown turned by an angle that is no quarter turn, which is not done here"
        raise VideoDecodeError("unsupported", message) from None


def _not_readable(path: Path) -> VideoDecodeError:
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    if kind in ("an MP4 clip", "a QuickTime clip"):
        message = "the file is an MP4 whose index (its 'moov' box) is missing or unreadable"
        return VideoDecodeError("truncated", f"{message}: it was cut short or damaged")
    cut = how_cut(path)
    if cut is not None:
        return VideoDecodeError("truncated", f"the file is {kind} that is cut short: {cut}")
    named = f"the file is {kind}, not a video" if kind else "the file is not a video"
    return VideoDecodeError("not_a_video", f"{named} that can be read; {_READABLE} is expected")


def _films(container: InputContainer) -> list[VideoStream]:
    """The video streams that are not pictures beside the film: covers, thumbnails, stills."""
    return [stream for stream in container.streams.video if not stream.disposition & _STILL]


def _packets_of(container: InputContainer, streams: list[int], limits: ClipLimits) -> dict[int, int]:
    """Packets of each stream, 2 standing for any more: who has one only is a picture beside the others."""
    counted = dict.fromkeys(streams, 0)
    looked_at = 0
    try:
        for packet in container.demux(streams):
            if packet.size:
                counted[packet.stream_index] = min(2, counted[packet.stream_index] + 1)
            looked_at += 1
            if min(counted.values()) == 2 or looked_at > _most_packets(limits):
                break
    except (av.error.FFmpegError, ValueError):
        pass  # where the file breaks is said by whoever reads the stream
    return counted


def _chosen(films: list[VideoStream]) -> VideoStream:
    """The one rule for which stream of a file is read: the first that is marked default, else the first."""
    return next((stream for stream in films if stream.disposition & Disposition.default), films[0])


def _prepared(stream: VideoStream, limits: ClipLimits) -> VideoStream:
    if stream.codec_context is None:
        raise VideoDecodeError("unsupported", "the clip's codec has no decoder here; H.264 in MP4 works everywhere")
    pixels = stream.width * stream.height
    if pixels > limits.max_pixels:
        message = f"the clip's frames have {stream.width} x {stream.height} = {pixels} pixels"
        raise VideoDecodeError("too_large", f"{message}; at most {limits.max_pixels} are decoded")
    # explode: of 43 H.264 files with flipped bytes 41 are refused; without it 28 came back with wrong pixels.
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels), "err_detect": "explode"}
    stream.codec_context.thread_count = 1  # clips are decoded beside each other; threads inside one win nothing then
    return stream


def _most_packets(limits: ClipLimits) -> int:
    return int(limits.max_seconds * _MAX_SOURCE_FPS) + 1


def _read_entries(
    container: InputContainer, stream: VideoStream, limits: ClipLimits, kind: str, size: int
) -> tuple[list[PacketEntry], str | None]:
    """The video stream's packets in file order, and how it can be told that some are missing, None where it cannot."""
    stated = kind in ("mov", "matroska")  # these state the size of each frame beforehand
    most = _most_packets(limits)
    entries: list[PacketEntry] = []
    end_s = 0.0
    try:
        for packet in container.demux():
            if packet.size == 0 and packet.pts is None:
                continue  # the end of a stream
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and packet.time_base:
                end_s = max(end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                if packet.is_corrupt and stated:
                    return entries, "the frame is not all there"
                entries.append(_entry(packet, stream))
            if len(entries) > most:
                raise VideoDecodeError("too_long", f"the clip has more than {most} frames")
    except (av.error.FFmpegError, ValueError):
        return entries, "what follows cannot be read"
    indexed = getattr(stream, "index_entries", ()) if kind == "mov" else ()  # newer versions of PyAV have it
    if len(indexed):
        end = max(entry.pos + entry.size for entry in indexed)
        if end > size:
            return entries, f"its last frame ends at byte {end}, the file at byte {size}"
    if kind == "matroska" or (kind == "mov" and stream.frames == len(indexed) > 0):
        return entries, None  # the sizes tell
    missing_s = (container.duration or 0) / 1e6 - end_s if stated else 0.0
    if missing_s > max(1.0, 0.05 * end_s):
        return entries, f"its header promises {missing_s:.1f} s more"
    return entries, None


def _entry(packet: Packet[Stream], stream: VideoStream) -> PacketEntry:
    keyframe = packet.is_keyframe
    return PacketEntry(
        pts=packet.pts,
        dts=packet.dts,
        keyframe=keyframe,
        clean_start=keyframe and starts_clean(packet, stream),
        shown=packet.size > 0 and not packet.is_discard,
    )


def starts_clean(packet: Packet[Stream], stream: VideoStream) -> bool:
    """Whether this keyframe is one that decoders restart at without a trace of what came before.

    H.264 and HEVC also flag recovery points as keyframes. Their first picture unit says which it is.
    """
    codec = stream.codec_context.name
    if codec not in ("h264", "hevc"):
        return codec == "vp9"
    header = stream.codec_context.extradata or b""
    length_at = 4 if codec == "h264" else 21  # of avcC and hvcC: where the size of a unit's length field stands
    if len(header) <= length_at or header[0] != 1:
        return False  # units with start codes, as in a transport stream
    prefix = (header[length_at] & 3) + 1
    units = bytes(packet)
    at = 0
    while at + prefix < len(units):
        first = units[at + prefix]
        kind = first & 31 if codec == "h264" else first >> 1 & 63
        if codec == "h264" and 1 <= kind <= 5:
            return kind == 5
        if codec == "hevc" and kind < 32:
            return kind in (19, 20)
        at += prefix + int.from_bytes(units[at : at + prefix], "big")
    return False
