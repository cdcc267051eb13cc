"""Clips to frames: every container gives back what was written into it, and a bad file is refused in words."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.video.decode import ClipLimits, FrameSampling, VideoDecodeError, decode, find_decord, probe, write_clip
from tests.support.model import clips
from tests.support.model.clips import COUNT, KINDS, SHARP, SOURCE, difference, nearest

DENSE = [FrameSampling(), FrameSampling(fps=10), FrameSampling(frames=13), FrameSampling(stride=2)]
SPARSE = [FrameSampling(fps=2), FrameSampling(frames=3), FrameSampling(stride=11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds every kind of clip once."""
    where = tmp_path_factory.mktemp("clips")
    for name, (how, _, _) in KINDS.items():
        clips.write(where / name, SOURCE, **how)
    return where


def reason_of(path: Path, limits: ClipLimits | None = None) -> tuple[str, str]:
    with pytest.raises(VideoDecodeError) as caught:
        decode(path, limits=limits)
    return caught.value.reason, str(caught.value)


def expected_indices(sampling: FrameSampling, times: NDArray[np.float64]) -> list[int]:
    """What a sampling means, spelled out frame by frame."""
    if sampling.fps is not None:
        asked = [k / sampling.fps for k in range(10000) if k / sampling.fps <= times[-1] + 0.001]
        return [max(index for index, shown in enumerate(times) if shown <= moment + 0.001) for moment in asked]
    if sampling.frames is not None:
        return [round(k * (len(times) - 1) / max(1, sampling.frames - 1)) for k in range(sampling.frames)]
    return list(range(0, len(times), sampling.stride or 1))


@pytest.mark.parametrize("name", KINDS)
def test_every_container_gives_back_the_frames_written_into_it(folder: Path, name: str) -> None:
    _, reader, tolerance = KINDS[name]
    times = np.arange(COUNT) / clips.FPS
    for sampling in DENSE + SPARSE:
        clip = decode(folder / name, sampling)
        wanted = expected_indices(sampling, times)
        assert clip.frames.dtype == np.uint8
        assert nearest(clip.frames, SOURCE) == wanted
        assert difference(clip.frames, SOURCE[wanted]) < tolerance
        np.testing.assert_allclose(clip.timestamps_s, times[wanted], atol=0.0011)
        assert clip.reader == (reader if find_decord() and sampling in SPARSE else "pyav")


@pytest.mark.parametrize("name", [name for name, (_, reader, _) in KINDS.items() if reader == "decord"])
def test_the_same_frames_come_back_where_decord_is_missing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(sampling, size) for sampling in SPARSE for size in (None, (32, 48))]
    before = [decode(folder / name, sampling, size) for sampling, size in asked]
    monkeypatch.setitem(sys.modules, "decord", None)
    for (sampling, size), first in zip(asked, before, strict=True):
        clip = decode(folder / name, sampling, size)
        assert clip.reader == "pyav"
        assert clip.description == first.description
        np.testing.assert_array_equal(clip.timestamps_s, first.timestamps_s)
        assert clip.frames.shape == first.frames.shape
        assert difference(clip.frames, first.frames) < (2.0 if size else 0.5)


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("hide_decord", [False, True])
def test_a_clip_filmed_sideways_comes_back_upright(
    tmp_path: Path, rotation: int, hide_decord: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hide_decord:
        monkeypatch.setitem(sys.modules, "decord", None)
    path = clips.write(tmp_path / "sideways.mp4", SOURCE, rotation=rotation, options=SHARP)
    upright = np.rot90(SOURCE[::8], rotation // 90, axes=(1, 2))
    clip = decode(path, FrameSampling(stride=8))
    assert clip.reader == ("pyav" if hide_decord or not find_decord() else "decord")
    assert difference(clip.frames, upright) < 3
    assert clip.description.rotation == rotation
    assert (clip.description.height, clip.description.width) == upright.shape[1:3]
    small = decode(path, FrameSampling(stride=8), size=(40, 24))
    assert small.frames.shape == (3, 40, 24, 3)
    exact = np.stack([np.asarray(Image.fromarray(image).resize((24, 40), Image.Resampling.BOX)) for image in upright])
    assert difference(small.frames, exact) < 6


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_uneven_frame_times_are_kept_and_sampled_by_the_frame_on_screen(tmp_path: Path, ending: str) -> None:
    gaps = random.Random(3).choices([20, 40, 90, 200], k=COUNT - 1)
    stamps = [sum(gaps[:index]) for index in range(COUNT)]
    path = clips.write(tmp_path / f"uneven.{ending}", SOURCE, stamps_ms=stamps, options=SHARP)
    times = np.array(stamps) / 1000
    np.testing.assert_allclose(decode(path).timestamps_s, times, atol=1e-6)
    for sampling in [*SPARSE, FrameSampling(fps=7), FrameSampling(fps=50)]:
        clip = decode(path, sampling)
        wanted = expected_indices(sampling, times)
        assert nearest(clip.frames, SOURCE) == wanted
        np.testing.assert_allclose(clip.timestamps_s, times[wanted], atol=1e-6)


def test_a_clip_trimmed_without_encoding_begins_where_it_was_trimmed(folder: Path, tmp_path: Path) -> None:
    path = clips.trim(folder / "h264.mp4", tmp_path / "trimmed.mp4", 6 / clips.FPS)
    clip = decode(path)
    assert nearest(clip.frames, SOURCE) == list(range(6, COUNT))
    np.testing.assert_allclose(clip.timestamps_s, np.arange(COUNT - 6) / clips.FPS, atol=1e-6)


@pytest.mark.parametrize("name", ["h264.ts", "hevc_open.ts"])
def test_a_broadcast_joined_midway_begins_at_its_first_whole_frame(tmp_path: Path, name: str) -> None:
    how = KINDS["hevc_open.mp4" if name == "hevc_open.ts" else "h264.ts"][0]
    content = clips.write(tmp_path / name, SOURCE, **how).read_bytes()
    path = tmp_path / f"joined_{name}"
    path.write_bytes(content[len(content) // 188 // 3 * 188 :])
    clip = decode(path)
    shown = nearest(clip.frames, SOURCE)
    assert shown == list(range(shown[0], COUNT))
    assert 0 < shown[0] < COUNT - 4
    assert clip.description.frames == len(shown)
    few = decode(path, FrameSampling(frames=3))
    assert nearest(few.frames, SOURCE) == [
        shown[at] for at in expected_indices(FrameSampling(frames=3), clip.timestamps_s)
    ]
    np.testing.assert_allclose(few.timestamps_s[-1], (len(shown) - 1) / clips.FPS, atol=1e-6)


@pytest.mark.parametrize("name", ["one.mp4", "one.gif"])
def test_a_single_frame_repeats_as_often_as_asked(tmp_path: Path, name: str) -> None:
    how = KINDS["palette.gif"][0] if name.endswith("gif") else {}
    path = clips.write(tmp_path / name, SOURCE[:1], **how)
    assert decode(path).frames.shape == (1, 64, 80, 3)
    clip = decode(path, FrameSampling(frames=4))
    assert clip.frames.shape == (4, 64, 80, 3)
    assert (clip.frames == clip.frames[:1]).all()
    assert decode(path, FrameSampling(fps=30)).timestamps_s.tolist() == [0.0]


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p"])
def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path, pixels: str) -> None:
    path = tmp_path / "odd.webm"
    clips.write(path, SOURCE[:4, :63, :79], codec="libvpx-vp9", pixels=pixels, options=SHARP)
    assert difference(decode(path).frames, SOURCE[:4, :63, :79]) < 4


def test_probe_describes_a_clip(folder: Path) -> None:
    found = probe(folder / "h264.mp4")
    assert (found.container, found.codec, found.width, found.height, found.rotation) == ("mov", "h264", 80, 64, 0)
    assert (found.frames, found.frames_exact, found.duration_s, found.fps) == (
        COUNT,
        True,
        COUNT / clips.FPS,
        clips.FPS,
    )
    assert not probe(folder / "vp8.webm").frames_exact
    assert decode(folder / "h264.mp4").description == found


@pytest.mark.parametrize(
    "settings", [{"fps": 2, "frames": 3}, {"fps": 0}, {"frames": 0}, {"stride": 1.5}, {"fps": 1e9}]
)
def test_a_sampling_that_means_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        FrameSampling(**settings)


@pytest.mark.parametrize(
    ("limits", "reason", "words"),
    [
        (ClipLimits(max_bytes=100), "too_large", "at most 100 are read"),
        (ClipLimits(max_pixels=80 * 64 - 1), "too_large", "80 x 64 = 5120 pixels"),
        (ClipLimits(max_seconds=0.5), "too_long", "at most 0.5 s"),
        (ClipLimits(max_frames=COUNT - 1), "too_long", "24 frames are asked for"),
        (ClipLimits(max_output_bytes=80 * 64 * 3), "too_large", "smaller size"),
    ],
)
def test_a_clip_over_a_limit_is_refused(folder: Path, limits: ClipLimits, reason: str, words: str) -> None:
    found, message = reason_of(folder / "h264.mp4", limits)
    assert found == reason
    assert words in message


def test_limits_on_the_file_refuse_before_a_frame_is_decoded(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "h264.mp4").read_bytes())
    start = content.index(b"mdat") + 900
    content[start : start + 400] = random.Random(2).randbytes(400)  # within the first frame
    path = tmp_path / "hollow.mp4"
    path.write_bytes(content)
    assert reason_of(path) == ("damaged", "the clip is damaged at frame 0")
    assert reason_of(path, ClipLimits(max_pixels=5000))[0] == "too_large"
    assert reason_of(path, ClipLimits(max_seconds=0.5))[0] == "too_long"


def test_a_forged_picture_size_is_refused_without_making_room_for_it(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "palette.gif").read_bytes())
    content[6:10] = b"\xff\xff\xff\xff"  # a canvas of 65535 x 65535
    path = tmp_path / "huge.gif"
    path.write_bytes(content)
    assert reason_of(path)[0] == "too_large"
    assert reason_of(folder / "vp9.webm", ClipLimits(max_pixels=5000))[0] == "too_large"


def cut(folder: Path, path: Path) -> None:
    whole = clips.write(folder / "whole.mp4", SOURCE, faststart=True)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])


def cut_index(folder: Path, path: Path) -> None:
    whole = clips.write(folder / "whole.mp4", SOURCE)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])


def cut_matroska(folder: Path, path: Path) -> None:
    whole = clips.write(folder / "whole.mkv", clips.moving_square(40), stamps_ms=[100 * k for k in range(40)])
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def corrupt(folder: Path, path: Path) -> None:
    whole = clips.write(folder / "whole.mp4", SOURCE)
    content = bytearray(whole.read_bytes())
    middle = content.index(b"mdat") + 2000
    content[middle : middle + 400] = random.Random(0).randbytes(400)
    path.write_bytes(content)


def playlist(folder: Path, path: Path) -> None:
    clips.write(folder / "secret.mp4", SOURCE[:2])
    path.write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{folder / 'secret.mp4'}\n#EXT-X-ENDLIST\n")


BAD = {
    "empty": (lambda _, path: path.write_bytes(b""), {"not_a_video"}, "empty"),
    "text": (lambda _, path: path.write_text("hello robot\n" * 50), {"not_a_video"}, "not a video"),
    "noise": (lambda _, path: path.write_bytes(random.Random(1).randbytes(4000)), {"not_a_video"}, "not a video"),
    "picture": (lambda _, path: Image.fromarray(SOURCE[0]).save(path, "PNG"), {"not_a_video"}, "not a video"),
    "playlist": (playlist, {"not_a_video"}, "not a video"),
    "folder": (lambda _, path: path.mkdir(), {"not_a_video"}, "regular file"),
    "sound": (lambda _, path: clips.write_sound(path), {"no_video_stream"}, "no video stream"),
    "cut": (cut, {"truncated"}, "cut short: it ends at frame"),
    "cut_index": (cut_index, {"truncated"}, "moov"),
    "cut_matroska": (cut_matroska, {"truncated"}, "cut short: it ends at frame"),
    "corrupt": (corrupt, {"damaged"}, "damaged at frame"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_words_and_by_reason(tmp_path: Path, kind: str) -> None:
    make, reasons, words = BAD[kind]
    path = tmp_path / "bad.mp4"
    make(tmp_path, path)
    found, message = reason_of(path)
    assert found in reasons
    assert words in message
    assert str(tmp_path) not in message


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    for read in (decode, probe):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.mp4")


def test_a_written_clip_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "episode.mp4"
    write_clip(path, SOURCE, fps=10)
    clip = decode(path)
    assert nearest(clip.frames, SOURCE) == list(range(COUNT))
    assert difference(clip.frames, SOURCE) < 4
    np.testing.assert_allclose(clip.timestamps_s, np.arange(COUNT) / 10, atol=1e-6)
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (SOURCE[:, :63], 10, "even height and width"),
        (SOURCE[:0], 10, "T >= 1"),
        (SOURCE.astype(np.float32), 10, "uint8"),
        (SOURCE, 0, "fps must be"),
    ],
)
def test_frames_that_h264_cannot_hold_are_refused(
    tmp_path: Path, frames: NDArray[np.uint8], fps: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        write_clip(tmp_path / "episode.mp4", frames, fps)
