"""What people's files are beyond one whole stream: several streams, photos, mirrors, odd stamps, lost ends."""

from __future__ import annotations

import io
import random
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from model.video.decode import ClipLimits, FrameSampling, VideoDecodeError, decode, probe
from model.video.file_kinds import kind_of
from model.video.frame_times import frame_times
from model.video.orientation import from_display_matrix
from tests.support.model import clips
from tests.support.model.clip_cells import H264, MATRICES
from tests.support.model.clip_writing import remux, write_with_pyav
from tests.support.model.clips import COUNT, KINDS, SHARP, SOURCE, difference, nearest, write_streams
from tests.support.model.pictures import box, write_heic

OTHER = np.ascontiguousarray(SOURCE[:, :, ::-1])  # another camera: the same scene in a mirror
SAMPLINGS = [FrameSampling(), FrameSampling(frames=3), FrameSampling(fps=2), FrameSampling(stride=11)]


def refused(path: Path) -> tuple[str, str]:
    with pytest.raises(VideoDecodeError) as caught:
        decode(path)
    return caught.value.reason, str(caught.value)


# Which stream is read


DEFAULT, COVER = int(Disposition.default), int(Disposition.attached_pic)
SMALL = SOURCE[:, ::4, ::4]
FILM = ("libx264", SOURCE, DEFAULT)
# name: streams, the number of the one to be read
STREAMS: dict[str, tuple[list[tuple[str, NDArray[np.uint8], int]], int]] = {
    "two.mp4": ([FILM, ("libx264", OTHER, DEFAULT)], 0),
    "two.mkv": ([FILM, ("libx264", OTHER, DEFAULT)], 0),
    "second_is_default.mkv": ([("libx264", OTHER, 0), FILM], 1),
    "none_is_default.mkv": ([("libx264", SOURCE, 0), ("libx264", OTHER, 0)], 0),
    "three.mkv": ([("libx264", OTHER, 0), FILM, ("libx264", OTHER, DEFAULT)], 1),
    "thumbnail_first.mkv": ([("mjpeg", SMALL[:1], 0), FILM], 1),
    "default_thumbnail_first.mkv": ([("mjpeg", SMALL[:1], DEFAULT), ("libx264", SOURCE, 0)], 1),
    "thumbnail_first.mp4": ([("mjpeg", SMALL[:1], DEFAULT), FILM], 1),
    "png_thumbnail_first.mov": ([("png", SMALL[:1], DEFAULT), FILM], 1),
    "thumbnail_last.mp4": ([FILM, ("mjpeg", SMALL[:1], DEFAULT)], 0),
    "cover.mp4": ([FILM, ("mjpeg", SMALL[:1], COVER)], 0),
    "two.avi": ([FILM, ("libx264", OTHER, 0)], 0),
    "two.ts": ([FILM, ("libx264", OTHER, 0)], 0),
}


@pytest.mark.parametrize("name", STREAMS)
def test_one_rule_chooses_the_stream_whichever_frames_are_wanted(tmp_path: Path, name: str) -> None:
    streams, number = STREAMS[name]
    path = write_streams(tmp_path / name, *streams)
    for sampling in SAMPLINGS:
        clip = decode(path, sampling)
        assert clip.description.stream == number
        assert clip.description.video_streams == len(streams)
        indices = [round(time * 25) for time in clip.timestamps_s]
        assert difference(clip.frames, SOURCE[indices]) < 3
    assert probe(path).frames == COUNT


def test_a_file_of_covers_alone_is_no_clip(tmp_path: Path) -> None:
    sound = clips.write_sound(tmp_path / "sound.mp4")
    assert refused(sound)[0] == "no_video_stream"


# Photos in containers


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif"])
@pytest.mark.parametrize("ending", ["heic", "mp4"])
def test_a_photo_in_a_container_is_refused_by_name_and_not_read_by_a_tile(
    tmp_path: Path, brand: bytes, ending: str
) -> None:
    path = write_heic(tmp_path / f"photo.{ending}", brand)
    reason, message = refused(path)
    assert reason == "not_a_video"
    assert {b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"mif1": "a HEIF picture"}.get(
        brand, "an AVIF picture"
    ) in message


def test_a_photo_whose_brand_says_nothing_is_known_by_its_items(tmp_path: Path) -> None:
    path = write_heic(tmp_path / "photo.mp4", b"isom")
    assert refused(path) == ("not_a_video", refused(path)[1])
    assert "picture" in refused(path)[1]


@pytest.mark.parametrize("count", [1, 3])
def test_an_avif_of_one_picture_or_several_is_refused_by_name(tmp_path: Path, count: int) -> None:
    frames = [Image.fromarray(frame) for frame in SOURCE[:count]]
    frames[0].save(tmp_path / "x.avif", save_all=True, append_images=frames[1:])
    assert "an AVIF picture" in refused(tmp_path / "x.avif")[1]


@pytest.mark.parametrize(
    ("container", "options", "name"),
    [
        ("PNG", {}, "a PNG picture"),
        ("PNG", {"save_all": True, "append_images": [Image.fromarray(OTHER[0])]}, "an animated PNG"),
        ("WEBP", {"save_all": True, "append_images": [Image.fromarray(OTHER[0])]}, "an animated WebP"),
        ("WEBP", {}, "a WebP picture"),
        ("JPEG", {}, "a JPEG picture"),
        ("TIFF", {}, "a TIFF picture"),
    ],
)
def test_a_picture_sent_as_a_clip_is_refused_by_name(
    tmp_path: Path, container: str, options: dict[str, Any], name: str
) -> None:
    Image.fromarray(SOURCE[0]).save(tmp_path / "x.mp4", container, **options)
    reason, message = refused(tmp_path / "x.mp4")
    assert reason == "not_a_video"
    assert message.startswith(f"the file is {name}, not a video")


def test_an_mp4_with_notes_of_its_camera_is_no_photo(tmp_path: Path) -> None:
    notes = box(b"meta", bytes(4), box(b"hdlr", bytes(8) + b"mdta" + bytes(13)))
    path = clips.write(tmp_path / "clip.mp4", SOURCE)
    path.write_bytes(path.read_bytes() + notes)
    assert nearest(decode(path).frames, SOURCE) == list(range(COUNT))


# Orientation

LOOKS = {
    "upright": SOURCE,
    "90": np.rot90(SOURCE, -1, (1, 2)),  # a display matrix turns clockwise
    "180": SOURCE[:, ::-1, ::-1],
    "270": np.rot90(SOURCE, 1, (1, 2)),
    "mirrored": SOURCE[:, :, ::-1],
    "flipped": SOURCE[:, ::-1],
    "transposed": SOURCE.transpose(0, 2, 1, 3),
    "transversed": SOURCE[:, ::-1, ::-1].transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_clip_comes_back_turned_and_mirrored_as_its_display_matrix_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / "held.mp4"
    write_with_pyav(path, SOURCE, "libx264", "yuv420p", H264, matrix=MATRICES[name])
    for sampling in SAMPLINGS:
        clip = decode(path, sampling)
        shown = LOOKS[name][[round(time * 25) for time in clip.timestamps_s]]
        assert clip.frames.shape == shown.shape
        assert difference(clip.frames, shown) < 3
    assert (clip.description.height, clip.description.width) == LOOKS[name].shape[1:3]
    small = decode(path, FrameSampling(frames=2), (20, 40))
    assert small.frames.shape == (2, 20, 40, 3)


@pytest.mark.parametrize("degrees", [0.4, -0.7])
@pytest.mark.parametrize("quarter", range(4))
def test_a_matrix_within_a_degree_of_a_quarter_turn_is_one(quarter: int, degrees: float) -> None:
    exact, near = (np.deg2rad(90 * quarter + more) for more in (0.0, degrees))

    def matrix(angle: float) -> bytes:
        a, b = round(np.cos(angle) * 65536), round(np.sin(angle) * 65536)
        return struct.pack("=9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)

    assert from_display_matrix(matrix(near)) == from_display_matrix(matrix(exact))


@pytest.mark.parametrize(
    "entries", [(46341, 46341, -46341, 46341), (65536, 30000, 0, 65536), (65536, 0, 0, 0), (1, 1, 1, 1)]
)
def test_a_matrix_that_is_no_quarter_turn_is_refused(entries: tuple[int, int, int, int]) -> None:
    a, b, c, d = entries
    with pytest.raises(ValueError, match="quarter turn"):
        from_display_matrix(struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


# Times


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([0, 40, 80], [0.0, 0.04, 0.08]),
        ([5000, 5040, 5040, 5120], [0.0, 0.04, 0.04, 0.12]),
        ([0, 40, 80, 20, 160, 200], [0.0, 0.04, 0.08, 0.08, 0.16, 0.2]),
        ([0, 40, 80, -9000, 160], [0.0, 0.04, 0.08, 0.08, 0.16]),
        ([900, 940, 980, 0, 40, 80], [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]),
        ([None, None, None], [0.0, 0.04, 0.08]),
        ([0, None, 80, None, None], [0.0, 0.04, 0.08, 0.12, 0.16]),
        ([None, 40, 80], [0.0, 0.04, 0.08]),
        ([], []),
    ],
    ids=["plain", "repeated", "slip", "far slip", "begins anew", "none", "some", "first missing", "empty"],
)
def test_stamps_are_kept_wherever_they_do_not_fall(stamps: list[int | None], times: list[float]) -> None:
    np.testing.assert_allclose(frame_times(stamps, 0.001, 25.0), times, atol=1e-9)


REPEATED = [0, 40, 80, 120, 160, 1160, 2160, 2160, 3200, 3240, 3280, 3320]


@pytest.mark.parametrize("ending", ["mkv", "flv"])
def test_one_repeated_stamp_leaves_all_the_others_as_they_are(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / "whole.mkv"
    write_with_pyav(whole, SOURCE[:12], "libx264", "yuv420p", {**H264, "bf": "0"})
    path = tmp_path / f"repeated.{ending}"
    remux(whole, path, REPEATED)
    times = np.array(REPEATED) / 1000
    np.testing.assert_allclose(decode(path).timestamps_s, times, atol=1e-6)
    clip = decode(path, FrameSampling(fps=2))
    assert nearest(clip.frames, SOURCE[:12]) == [0, 4, 4, 5, 5, 7, 7]
    np.testing.assert_allclose(clip.timestamps_s, times[[0, 4, 4, 5, 5, 7, 7]], atol=1e-6)


def test_one_stamp_that_slips_back_costs_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "slip.mkv"
    write_with_pyav(path, SOURCE[:8], "libx264", "yuv420p", {**H264, "bf": "0", "g": "8"})
    content = path.read_bytes()
    fourth = b"\x81" + struct.pack(">hB", 120, 0)  # of track 1, 120 ms into its cluster, no keyframe
    assert content.count(fourth) == 1
    path.write_bytes(content.replace(fourth, b"\x81" + struct.pack(">hB", 60, 0)))
    clip = decode(path)
    assert nearest(clip.frames, SOURCE[:8]) == list(range(8))
    np.testing.assert_allclose(clip.timestamps_s, [0, 0.04, 0.08, 0.08, 0.16, 0.2, 0.24, 0.28], atol=1e-6)


@pytest.mark.parametrize(("codec", "bframes"), [("libx264", "0"), ("libx264", "2"), ("mpeg4", "0")])
def test_frames_that_an_avi_left_out_move_no_other_frame(tmp_path: Path, codec: str, bframes: str) -> None:
    slots = [k if k < 6 else k + 5 for k in range(COUNT)]
    options = {"bf": bframes, "g": "12", **({"crf": "12"} if codec == "libx264" else {"b": "4M"})}
    path = tmp_path / "dropped.avi"
    write_with_pyav(path, SOURCE, codec, "yuv420p", options, stamps=slots, unit=Fraction(1, 25))
    clip = decode(path)
    assert nearest(clip.frames, SOURCE) == list(range(COUNT))
    np.testing.assert_allclose(clip.timestamps_s, np.array(slots) / 25, atol=1e-6)
    at = decode(path, FrameSampling(fps=12.5))
    wanted = [max(k for k, slot in enumerate(slots) if slot <= 2 * step) for step in range(slots[-1] // 2 + 1)]
    assert nearest(at.frames, SOURCE) == wanted


# Lost ends


def whole_file(folder: Path, name: str) -> Path:
    return clips.write(folder / f"whole_{name}", SOURCE, **KINDS[name][0])


@pytest.mark.parametrize("name", ["vp9.webm", "h264.mkv", "palette.gif", "h264.avi", "mjpeg.avi"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_lost_its_end_is_refused_whatever_its_length(tmp_path: Path, name: str, share: float) -> None:
    content = whole_file(tmp_path, name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    reason, message = refused(path)
    assert reason == "truncated"
    assert "cut short" in message


def test_every_cut_of_a_short_webm_and_gif_is_noticed(tmp_path: Path) -> None:
    chance = random.Random(0)
    for name in ("vp9.webm", "palette.gif"):
        content = whole_file(tmp_path, name).read_bytes()
        for _ in range(12):
            path = tmp_path / name
            path.write_bytes(content[: chance.randrange(40, len(content))])
            assert refused(path)[0] in ("truncated", "not_a_video", "no_video_stream")


def test_a_header_that_promises_more_time_than_there_is_does_not_make_a_whole_file_cut(tmp_path: Path) -> None:
    content = bytearray(whole_file(tmp_path, "h264.mkv").read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # Duration, a float64, in milliseconds
    content[at : at + 8] = struct.pack(">d", 60_000.0)
    path = tmp_path / "long.mkv"
    path.write_bytes(content)
    assert nearest(decode(path).frames, SOURCE) == list(range(COUNT))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "h264.avi", "h264.ts", "palette.gif"])
@pytest.mark.parametrize("behind", [bytes(3000), b"\n", b"appended by an upload"], ids=["zeros", "a line", "text"])
def test_what_lies_behind_the_end_does_not_matter(tmp_path: Path, name: str, behind: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(whole_file(tmp_path, name).read_bytes() + behind)
    assert nearest(decode(path).frames, SOURCE) == list(range(COUNT))


def test_an_avi_whose_index_alone_is_cut_is_read(tmp_path: Path) -> None:
    content = whole_file(tmp_path, "h264.avi").read_bytes()
    path = tmp_path / "no_index.avi"
    path.write_bytes(content[: content.rindex(b"idx1")])
    assert nearest(decode(path).frames, SOURCE) == list(range(COUNT))


def test_a_transport_stream_that_ends_within_a_frame_is_cut(tmp_path: Path) -> None:
    content = whole_file(tmp_path, "h264.ts").read_bytes()
    path = tmp_path / "cut.ts"
    for packets in range(len(content) // 188 - 3, len(content) // 188):
        path.write_bytes(content[: 188 * packets])
        try:
            clip = decode(path)
        except VideoDecodeError as error:
            assert error.reason in ("truncated", "damaged")
        else:  # it was cut between two frames, which nothing in it tells
            assert nearest(clip.frames, SOURCE) == list(range(len(clip.frames)))
    path.write_bytes(content[:-90])
    assert refused(path)[0] == "truncated"


# Limits


def test_a_long_clip_is_read_where_the_limit_allows_it(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "long.mkv", SOURCE, stamps_ms=[100_000 * k for k in range(COUNT)], options=SHARP)
    clip = decode(path, FrameSampling(frames=4))
    assert nearest(clip.frames, SOURCE) == [0, 8, 15, 23]
    assert clip.description.duration_s > 2000
    with pytest.raises(VideoDecodeError, match="at most 600 s"):
        decode(path, FrameSampling(frames=4), limits=ClipLimits(max_seconds=600.0))


def test_a_file_is_known_by_its_first_bytes() -> None:
    buffer = io.BytesIO()
    Image.fromarray(SOURCE[0]).save(buffer, "BMP")
    assert kind_of(buffer.getvalue()) == "a BMP picture"
    assert kind_of(b"") is None
    assert kind_of(b"hello") is None
