"""A matrix of generated clips, and what a sequential decoder makes of each: the yardstick for `model.video`.

The sequential decode is the system's ffmpeg where there is one and PyAV otherwise, as the writing of the clips is
(`clip_writing`). `python -m tests.support.model.clip_matrix` runs every cell and prints the summary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from model.video.decode import FrameSampling, VideoDecodeError, decode
from model.video.orientation import from_display_matrix
from tests.support.model.clip_cells import GROUPS, Cell
from tests.support.model.clip_writing import FFMPEG, Frames


@dataclass
class Outcome:
    """What became of a cell."""

    cell: Cell
    result: str  # "equal", "refused", "not made" (there is no encoder for it here) or "different"
    said: str = ""
    reader: str = ""


# The sequential decode


def sequential(path: Path, stream: int) -> tuple[list[Frames], NDArray[np.float64]]:
    """Every frame as players show it, [height, width, 3], and the seconds since the first one."""
    frames, stamps, step = _with_ffmpeg(path, stream) if FFMPEG else _with_pyav(path, stream)
    times: list[float] = []
    for stamp in stamps:  # where a container has no stamps of its own some are unknown: one step after another
        times.append((times[-1] + step if times else 0.0) if stamp is None else stamp)
    return frames, np.array(times) - (times[0] if times else 0.0)


def _with_ffmpeg(path: Path, stream: int) -> tuple[list[Frames], list[float | None], float]:
    assert FFMPEG is not None
    shown = [FFMPEG, "-v", "quiet", "-i", str(path), "-map", f"0:{stream}", "-fps_mode", "passthrough"]
    raw = subprocess.run(
        [*shown, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"], capture_output=True
    ).stdout
    frames, at = [], 0
    while at < len(raw):
        end = at
        for _ in range(3):
            end = raw.index(b"\n", end) + 1
        width, height = map(int, raw[at:end].split()[1:3])
        frames.append(np.frombuffer(raw, np.uint8, width * height * 3, end).reshape(height, width, 3))
        at = end + width * height * 3
    entries = "frame=best_effort_timestamp:stream=time_base,r_frame_rate"
    asked = ["ffprobe", "-v", "quiet", "-select_streams", str(stream), "-show_entries", entries, "-of", "json"]
    said = json.loads(subprocess.run([*asked, str(path)], capture_output=True).stdout)
    (about,) = said["streams"]
    unit, rate = float(Fraction(about["time_base"])), Fraction(about["r_frame_rate"])
    stamps = [entry.get("best_effort_timestamp") for entry in said.get("frames", [])]
    return frames, [None if stamp is None else stamp * unit for stamp in stamps], float(1 / rate) if rate else 0.04


def _with_pyav(path: Path, stream: int) -> tuple[list[Frames], list[float | None], float]:
    frames: list[Frames] = []
    stamps: list[float | None] = []
    with av.open(str(path)) as file:
        video = next(each for each in file.streams.video if each.index == stream)
        video.codec_context.thread_count = 1
        by_position = file.format.name == "avi"
        for frame in file.decode(video):
            assert isinstance(frame, av.VideoFrame)
            matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
            image = frame.to_ndarray(format="rgb24")
            frames.append(image if matrix is None else from_display_matrix(bytes(matrix)).apply(image))
            stamp = frame.dts if by_position else frame.pts
            stamps.append(None if stamp is None else float(stamp * frame.time_base))
        rate = float(video.average_rate or 25)
    return frames, stamps, 1 / rate


# Comparing

SAMPLINGS = [FrameSampling(), FrameSampling(frames=3), FrameSampling(fps=7)]


def run(cell: Cell, folder: Path) -> Outcome:
    """Make the cell's clip and compare what `decode` says of it with the sequential decode."""
    path = folder / f"clip.{cell.ending}"
    try:
        cell.make(path)
    except (UnknownCodecError, ValueError, av.error.FFmpegError) as error:
        if FFMPEG is not None:
            raise
        return Outcome(cell, "not made", f"PyAV alone does not write it: {error}")
    reader = ""
    expected: tuple[list[Frames], NDArray[np.float64]] | None = None
    for sampling in SAMPLINGS:
        try:
            clip = decode(path, sampling)
        except VideoDecodeError as error:
            said = f"{error.reason}: {error}"
            fits = cell.refusal in ("any", error.reason)
            return Outcome(cell, "refused" if fits else "different", said)
        if cell.refusal not in ("", "any"):
            return Outcome(cell, "different", f"{len(clip.frames)} frames were read; {cell.refusal} was expected")
        reader = clip.reader
        expected = expected or sequential(path, clip.description.stream)
        difference = compare(clip.frames, clip.timestamps_s, *expected, sampling, cell.tolerance)
        if difference:
            return Outcome(cell, "different", f"{sampling}: {difference}", reader)
    return Outcome(cell, "equal", "", reader)


def compare(
    frames: Frames,
    times: NDArray[np.float64],
    shown: list[Frames],
    shown_at: NDArray[np.float64],
    sampling: FrameSampling,
    tolerance: float,
) -> str:
    """What differs, in words; empty where nothing does."""
    if len(shown) != len(shown_at) or not shown:
        return f"the sequential decode gave {len(shown)} frames and {len(shown_at)} times"
    wanted = chosen(shown_at, sampling)
    if len(frames) != len(wanted):
        return f"{len(frames)} frames instead of {len(wanted)}"
    if not np.allclose(times, shown_at[wanted], rtol=0, atol=0.0011):
        return f"times {times.round(3).tolist()} instead of {shown_at[wanted].round(3).tolist()}"
    if frames.shape[1:] != shown[0].shape:
        return f"frames of {frames.shape[1:]} instead of {shown[0].shape}"
    for number, (image, index) in enumerate(zip(frames, wanted, strict=True)):
        errors = [float(np.abs(image.astype(int) - other).mean()) for other in shown if other.shape == image.shape]
        if errors[index] > tolerance or errors[index] > min(errors) + 0.5:
            nearest = int(np.argmin(errors))
            return f"frame {number} is {errors[index]:.1f} grey levels off frame {index}, nearest is {nearest}"
    return ""


def chosen(times: NDArray[np.float64], sampling: FrameSampling) -> list[int]:
    """What a sampling means, spelled out frame by frame."""
    if sampling.fps is not None:
        asked = [k / sampling.fps for k in range(10**5) if k / sampling.fps <= times[-1] + 0.002]
        return [max(index for index, shown in enumerate(times) if shown <= moment + 0.002) for moment in asked]
    if sampling.frames is not None:
        return [round(k * (len(times) - 1) / max(1, sampling.frames - 1)) for k in range(sampling.frames)]
    return list(range(len(times)))


@dataclass
class Summary:
    """Outcomes of many cells, as a table."""

    outcomes: list[Outcome] = field(default_factory=list)

    def __str__(self) -> str:
        by = "the system's ffmpeg" if FFMPEG else "PyAV, in order"
        lines = [f"{len(self.outcomes)} clips against {by}:"]
        for group in dict.fromkeys(outcome.cell.group for outcome in self.outcomes):
            counts = Counter(outcome.result for outcome in self.outcomes if outcome.cell.group == group)
            told = ", ".join(f"{counts[result]} {result}" for result in ("equal", "refused", "not made", "different"))
            lines.append(f"  {group:12} {counts.total():4} cells: {told}")
        readers = Counter(outcome.reader for outcome in self.outcomes if outcome.reader)
        lines.append("  last read by: " + ", ".join(f"{reader} {count}" for reader, count in readers.items()))
        lines += [f"  DIFFERENT {each.cell.name}: {each.said}" for each in self.outcomes if each.result == "different"]
        return "\n".join(lines)


def main(names: list[str]) -> int:
    """Runs the named groups, all without a name. 1 if a cell is different."""
    summary = Summary()
    for name in names or GROUPS:
        for cell in GROUPS[name]():
            with tempfile.TemporaryDirectory() as folder:
                summary.outcomes.append(run(cell, Path(folder)))
    refused = [f"  refused {each.cell.name}: {each.said}" for each in summary.outcomes if each.result == "refused"]
    sys.stdout.write("\n".join([str(summary), *refused, ""]))
    return int(any(outcome.result == "different" for outcome in summary.outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
