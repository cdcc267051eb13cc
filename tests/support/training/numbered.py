"""Frames that carry their own number, and LeRobot datasets of them: a row paired with another frame shows.

The number of the frame that a row was recorded with is the first of the row's actions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIZE = 64
CAMERA = "observation.images.front"
_BITS = 16
_DATA = {"2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
_DATA["3"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CLIPS = {"2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
_CLIPS["3"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def numbered_frame(number: int, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture of the number: 4 x 4 black or white squares, which no codec blurs away. [size, size, 3]."""
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], np.uint8).reshape(4, 4) * 255
    grey = bits.repeat(size // 4, axis=0).repeat(size // 4, axis=1)
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number in a picture."""
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    cells = frame[: 4 * height, : 4 * width].reshape(4, height, 4, width, -1).mean(axis=(1, 3, 4))
    return sum(1 << bit for bit, value in enumerate(cells.ravel()) if value > 110)


def numbers_of(batches: Sequence[NDArray[np.uint8]]) -> list[int]:
    """The numbers of all frames in batches."""
    return [number_of(frame) for batch in batches for frame in batch]


@dataclass(frozen=True)
class Encoding:
    """How a clip is encoded."""

    codec: str = "libx264"
    options: Mapping[str, str] = field(default_factory=lambda: {"crf": "18"})


def write_numbered_clip(
    path: Path, numbers: Sequence[int], fps: float, encoding: Encoding | None = None, first_pts: int = 0
) -> None:
    """A clip of the numbers' pictures, the first shown at `first_pts` frames."""
    encoding = encoding or Encoding()
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for at, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = at + first_pts, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Rows:
    """One episode: the frames of its clip, and which of them have a row in the table, and when."""

    numbers: tuple[int, ...]  # of the clip's frames
    kept: tuple[int, ...]  # places of the frames that have a row
    times: tuple[float, ...]  # the rows' timestamps
    places: tuple[int, ...] = ()  # their `frame_index`; none: counted from 0

    @property
    def wanted(self) -> list[int]:
        """The number of each row's frame."""
        return [self.numbers[place] for place in self.kept]


def rows(numbers: Sequence[int], fps: float, cut: int = 0, step: int = 1, end: int | None = None) -> Rows:
    """An episode whose table was cut at the front and the end and thinned, its clip left whole and its times kept."""
    kept = range(cut, len(numbers) if end is None else end, step)
    return Rows(tuple(numbers), tuple(kept), tuple(place / fps for place in kept))


def write_numbered_lerobot(
    path: Path,
    version: str,
    episodes: Sequence[Rows],
    video_fps: float,
    rate_hz: float,
    encoding: Encoding | None = None,
    time_type: Callable[[float], np.floating] = np.float32,
) -> Path:
    """A LeRobot dataset, version "2" or "3", of episodes that follow each other in one clip (3) or have their own."""
    import pyarrow
    from pyarrow import parquet

    listed, tables = [], []
    first = 0.0
    for index, episode in enumerate(episodes):
        count = len(episode.kept)
        noise = np.random.default_rng(index).normal(size=count)
        columns = {
            "action": pyarrow.array(
                [[float(number), float(value)] for number, value in zip(episode.wanted, noise, strict=True)],
                pyarrow.list_(pyarrow.float32()),
            ),
            "timestamp": pyarrow.array(np.array([time_type(time) for time in episode.times])),
            "frame_index": list(episode.places or range(count)),
            "episode_index": [index] * count,
        }
        tables.append(pyarrow.table(columns))
        span = len(episode.numbers) / video_fps
        listed.append((index, count, first, first + span))
        first += span
    spec = {
        "codebase_version": "v2.1" if version == "2" else "v3.0",
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.kept) for episode in episodes),
        "chunks_size": 1000,
        "fps": rate_hz,
        "data_path": _DATA[version],
        "video_path": _CLIPS[version],
        "features": {
            "action": {"dtype": "float32", "shape": [2], "names": ["number", "noise"]},
            CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(spec))
    (path / "data/chunk-000").mkdir(parents=True)
    if version == "2":
        for (index, *_), table, episode in zip(listed, tables, episodes, strict=True):
            parquet.write_table(table, path / f"data/chunk-000/episode_{index:06d}.parquet")
            clip = path / f"videos/chunk-000/{CAMERA}/episode_{index:06d}.mp4"
            write_numbered_clip(clip, episode.numbers, video_fps, encoding)
        lines = [{"episode_index": index, "tasks": ["count"], "length": count} for index, count, *_ in listed]
        (path / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        return path
    parquet.write_table(pyarrow.concat_tables(tables), path / "data/chunk-000/file-000.parquet")
    every = [number for episode in episodes for number in episode.numbers]
    write_numbered_clip(path / f"videos/{CAMERA}/chunk-000/file-000.mp4", every, video_fps, encoding)
    write_listing(path, listed)
    return path


def write_listing(path: Path, listed: Sequence[tuple[int, int, float, float]]) -> None:
    """Version 3's table of episodes: number, rows, and the seconds of the clip where each begins and ends."""
    import pyarrow
    from pyarrow import parquet

    places = [
        {
            "episode_index": index,
            "tasks": ["count"],
            "length": count,
            "data/chunk_index": 0,
            "data/file_index": 0,
            f"videos/{CAMERA}/chunk_index": 0,
            f"videos/{CAMERA}/file_index": 0,
            f"videos/{CAMERA}/from_timestamp": begin,
            f"videos/{CAMERA}/to_timestamp": end,
        }
        for index, count, begin, end in listed
    ]
    folder = path / "meta/episodes/chunk-000"
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(places), folder / "file-000.parquet")
