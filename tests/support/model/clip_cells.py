"""The cells of the matrix of clips: codecs, containers, structures, clocks, orientations, colors, and damaged files."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tests.support.model.clip_writing import Options, remux, write, write_with_pyav
from tests.support.model.clips import moving_square

COUNT = 12


SOURCE = moving_square(COUNT)


X264 = "threads=1"


X265 = "pools=none:frame-threads=1:log-level=none"


AV1 = {"preset": "12", "svtav1-params": "lp=1", "crf": "12"}


@dataclass(frozen=True)
class Cell:
    """One clip: how it is made and whether it may be refused. `make` writes it to a path with the cell's ending."""

    group: str
    name: str
    ending: str
    make: Callable[[Path], object]
    refusal: str = ""  # the reason with which it is to be refused; "any" where it may be, with whatever reason
    tolerance: float = 4.0  # mean grey levels between the two decoders in the worst frame


H264 = {"crf": "12", "x264-params": X264, "g": "4"}


HEVC = {"crf": "12", "x265-params": X265 + ":keyint=4", "g": "4"}


VP9 = {"crf": "12", "b:v": "0", "g": "4"}


MPEG = {"qscale:v": "2", "g": "4"}


CODECS: dict[str, tuple[str, Options, tuple[str, ...], tuple[str, ...]]] = {
    # name: encoder, its options, pixel formats, containers
    "h264": (
        "libx264",
        H264,
        ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "gray"),
        ("mp4", "mov", "mkv", "avi", "ts", "m2ts", "flv", "mpg"),
    ),
    "hevc": ("libx265", HEVC, ("yuv420p", "yuv444p", "yuv420p10le", "yuv420p12le"), ("mp4", "mov", "mkv", "ts")),
    "vp8": ("libvpx", {"crf": "4", "b:v": "2M", "g": "4"}, ("yuv420p",), ("webm", "mkv", "ivf", "ogv")),
    "vp9": ("libvpx-vp9", VP9, ("yuv420p", "yuv444p", "gbrp"), ("webm", "mkv", "mp4", "ivf")),
    "av1": ("libsvtav1", AV1, ("yuv420p", "yuv420p10le"), ("mp4", "webm", "mkv", "ivf")),
    "mpeg4": ("mpeg4", MPEG, ("yuv420p",), ("mp4", "mov", "mkv", "avi", "ts", "mpg")),
    "mpeg2": ("mpeg2video", MPEG, ("yuv420p", "yuv422p"), ("mp4", "mkv", "ts", "mpg", "avi")),
    "mpeg1": ("mpeg1video", MPEG, ("yuv420p",), ("mpg", "mkv", "ts")),
    "mjpeg": ("mjpeg", {"qscale:v": "2"}, ("yuvj420p", "yuvj422p", "yuvj444p"), ("mp4", "mov", "mkv", "avi")),
    "theora": ("libtheora", {"qscale:v": "9", "g": "4"}, ("yuv420p",), ("ogv", "mkv")),
    "flv1": ("flv", MPEG, ("yuv420p",), ("flv", "avi")),
    "h263p": ("h263p", MPEG, ("yuv420p",), ("avi", "mov")),
    "msmpeg4": ("msmpeg4", MPEG, ("yuv420p",), ("avi", "mkv")),
    "wmv2": ("wmv2", MPEG, ("yuv420p",), ("avi", "mkv")),
    "prores": ("prores_ks", {}, ("yuv422p10le", "yuv444p10le"), ("mov", "mkv")),
    "ffv1": ("ffv1", {}, ("yuv420p", "yuv444p", "bgr0", "gray"), ("mkv", "avi")),
    "huffyuv": ("huffyuv", {}, ("yuv422p", "rgb24"), ("avi", "mkv")),
    "utvideo": ("utvideo", {}, ("yuv420p", "gbrp"), ("avi", "mkv")),
    "png": ("png", {}, ("rgb24", "gray", "rgba"), ("mov", "mkv", "avi")),
    "qtrle": ("qtrle", {}, ("rgb24",), ("mov",)),
    "raw": ("rawvideo", {}, ("bgr24", "yuv420p"), ("avi", "mov")),
    "gif": ("gif", {}, ("rgb8", "bgr8"), ("gif",)),
}


def codec_cells() -> Iterator[Cell]:
    """Every codec in its containers in its pixel formats."""
    for name, (codec, options, formats, endings) in CODECS.items():
        for ending in endings:
            for pixels in formats if ending == endings[0] else formats[:1]:
                make = functools.partial(_write, codec=codec, pixels=pixels, options=options, container=_muxer(ending))
                yield Cell("codecs", f"{name} {pixels} {ending}", ending, make)


def _muxer(ending: str) -> str | None:
    return {"m2ts": "mpegts", "mpg": "vob"}.get(ending)


def _write(path: Path, **how: object) -> None:
    write(path, SOURCE, **how)  # type: ignore[arg-type]


STRUCTURES: dict[str, tuple[str, Options]] = {
    "h264 intra": ("libx264", {**H264, "g": "1"}),
    "h264 no B": ("libx264", {**H264, "bf": "0"}),
    "h264 B": ("libx264", {"crf": "12", "g": "6", "x264-params": "bframes=2:b-adapt=0:" + X264}),
    "h264 pyramid": (
        "libx264",
        {"crf": "12", "g": "12", "x264-params": "bframes=4:b-pyramid=normal:b-adapt=0:" + X264},
    ),
    "h264 open": ("libx264", {"crf": "12", "g": "5", "x264-params": "open-gop=1:bframes=2:b-adapt=0:" + X264}),
    "h264 interlaced": ("libx264", {"crf": "12", "g": "4", "x264-params": "interlaced=1:" + X264}),
    "h264 fake interlaced": ("libx264", {"crf": "12", "g": "4", "x264-params": "fake-interlaced=1:" + X264}),
    "h264 refresh": ("libx264", {"crf": "12", "g": "4", "x264-params": "intra-refresh=1:bframes=0:" + X264}),
    "h264 slices": ("libx264", {"crf": "12", "g": "4", "x264-params": "slices=4:" + X264}),
    "h264 lossless": ("libx264", {"qp": "0", "g": "4", "x264-params": X264}),
    "h264 zerolatency": ("libx264", {"crf": "12", "g": "250", "tune": "zerolatency"}),
    "hevc closed": ("libx265", {"crf": "12", "x265-params": "open-gop=0:keyint=4:" + X265}),
    "hevc open": ("libx265", {"crf": "12", "x265-params": "open-gop=1:keyint=5:bframes=3:b-adapt=0:" + X265}),
    "hevc no B": ("libx265", {"crf": "12", "x265-params": "bframes=0:keyint=6:" + X265}),
    "mpeg4 B": ("mpeg4", {"qscale:v": "2", "g": "6", "bf": "2"}),
    "mpeg2 B": ("mpeg2video", {"qscale:v": "2", "g": "6", "bf": "2"}),
    "vp9 hidden": ("libvpx-vp9", {"crf": "12", "b:v": "0", "g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp8 hidden": ("libvpx", {"crf": "4", "b:v": "2M", "g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "av1 layers": ("libsvtav1", {**AV1, "g": "8"}),
}


STRUCTURE_CONTAINERS = {
    "libx264": ("mp4", "mkv", "avi", "ts", "flv"),
    "libx265": ("mp4", "mkv", "ts"),
    "mpeg4": ("mp4", "avi", "mkv"),
    "mpeg2video": ("mpg", "ts", "mkv"),
    "libvpx-vp9": ("webm", "mp4"),
    "libvpx": ("webm",),
    "libsvtav1": ("mp4", "mkv"),
}


def structure_cells() -> Iterator[Cell]:
    """How frames refer to each other, and clips of one and two frames."""
    for name, (codec, options) in STRUCTURES.items():
        for ending in STRUCTURE_CONTAINERS[codec]:
            make = functools.partial(_write, codec=codec, pixels="yuv420p", options=options, container=_muxer(ending))
            # An encoder that refreshes bit by bit has one whole frame alone: some containers begin where no player can.
            yield Cell("structures", f"{name} {ending}", ending, make)
    for count in (1, 2):
        for ending in ("mp4", "mkv", "avi", "ts", "flv"):
            make_few = functools.partial(
                write, frames=SOURCE[:count], codec="libx264", pixels="yuv420p", options=H264, container=_muxer(ending)
            )
            yield Cell("structures", f"h264 {count} frames {ending}", ending, make_few)
    for ending, flags in (
        ("mp4", "faststart"),
        ("mp4", "frag_keyframe+empty_moov"),
        ("mp4", "frag_every_frame+empty_moov+default_base_moof"),
        ("mov", "frag_keyframe+empty_moov"),
        ("mp4", "dash+delay_moov"),
        ("mp4", "negative_cts_offsets"),
    ):
        make = functools.partial(
            _write, codec="libx264", pixels="yuv420p", options=STRUCTURES["h264 B"][1], muxer={"movflags": flags}
        )
        yield Cell("structures", f"h264 {flags} {ending}", ending, make)
    for ending, muxer in (("webm", {"live": "1"}), ("mkv", {"live": "1"}), ("mkv", {"reserve_index_space": "4096"})):
        codec, options = ("libvpx-vp9", VP9) if ending == "webm" else ("libx264", H264)
        make = functools.partial(_write, codec=codec, pixels="yuv420p", options=options, muxer=muxer)
        yield Cell("structures", f"{codec} {muxer} {ending}", ending, make)


RATES = (Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(1), Fraction(1, 2))


UNEVEN = [0, 20, 60, 150, 170, 370, 380, 470, 900, 940, 980, 1020]


STAMPS: dict[str, list[int]] = {
    "uneven": UNEVEN,
    "late start": [stamp + 5000 for stamp in UNEVEN],
    "repeated": [0, 40, 80, 80, 160, 1160, 2160, 2160, 2200, 2240, 2240, 2280],
    "a gap": [40 * k + (3000 if k > 5 else 0) for k in range(COUNT)],
    "long": [4000 * k for k in range(COUNT)],
}


def time_cells() -> Iterator[Cell]:
    """Rates, time bases, and stamps as recorders leave them."""
    kinds = (("mp4", "libx264", H264), ("mkv", "libx264", H264), ("avi", "libx264", H264), ("ts", "libx264", H264))
    kinds = (*kinds, ("flv", "libx264", H264), ("webm", "libvpx-vp9", VP9), ("gif", "gif", {}))
    for ending, codec, options in kinds:
        for rate in RATES:
            if ending == "gif" and rate > 50:
                continue  # GIF counts hundredths of a second, and players take 1 for 10
            pixels = "rgb8" if ending == "gif" else "yuv420p"
            make = functools.partial(_write, codec=codec, pixels=pixels, options=options, rate=rate)
            yield Cell("times", f"{float(rate):.5g} Hz {ending}", ending, make)
    for ending in ("mp4", "mov", "mkv", "flv", "ts"):
        for name, stamps in STAMPS.items():
            if name == "repeated" and ending not in ("mkv", "flv"):
                continue  # the others cannot hold one decoding time twice
            make_stamped = functools.partial(_restamped, stamps=stamps)
            yield Cell("times", f"{name} {ending}", ending, make_stamped)
    for scale in ("90000", "600", "1000", "12800", "1000000"):
        make = functools.partial(
            _write,
            codec="libx264",
            pixels="yuv420p",
            options=H264,
            rate=RATES[2],
            muxer={"video_track_timescale": scale},
        )
        yield Cell("times", f"time scale {scale} mp4", "mp4", make)
    yield Cell("times", "dropped frames h264 avi", "avi", functools.partial(_dropped, codec="libx264", bframes="0"))
    yield Cell("times", "dropped frames h264 B avi", "avi", functools.partial(_dropped, codec="libx264", bframes="2"))
    yield Cell("times", "dropped frames mpeg4 avi", "avi", functools.partial(_dropped, codec="mpeg4", bframes="0"))


def _restamped(path: Path, stamps: list[int]) -> None:
    whole = path.with_name("whole.mkv")
    write_with_pyav(whole, SOURCE, "libx264", "yuv420p", {**H264, "bf": "0"})
    remux(whole, path, stamps)


def _dropped(path: Path, codec: str, bframes: str) -> None:
    stamps = [k if k < 5 else k + 5 for k in range(COUNT)]
    options = (
        {"crf": "12", "bf": bframes, "g": "12"} if codec == "libx264" else {"qscale": "2", "bf": bframes, "g": "12"}
    )
    write_with_pyav(path, SOURCE, codec, "yuv420p", options, stamps=stamps, unit=Fraction(1, 25))


MATRICES = {
    "upright": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}


def orientation_cells() -> Iterator[Cell]:
    """The eight ways a camera may be held, mirrors included."""
    kinds = (("mp4", "libx264", H264), ("mov", "libx264", H264), ("mp4", "libx265", HEVC), ("mp4", "mpeg4", {"g": "4"}))
    kinds = (*kinds, ("mov", "mjpeg", {}), ("mp4", "libvpx-vp9", {"crf": "12", "b": "0", "g": "4"}))
    for ending, codec, options in kinds:
        for name, matrix in MATRICES.items():
            pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            make = functools.partial(
                write_with_pyav, frames=SOURCE, codec=codec, pixels=pixels, options=options, matrix=matrix
            )
            yield Cell("orientation", f"{name} {codec} {ending}", ending, make)
    skewed = functools.partial(_matrix_forged, entries=(46341, 46341, -46341, 46341))
    yield Cell("orientation", "45 degrees mp4", "mp4", skewed, refusal="unsupported")
    scaled = functools.partial(_matrix_forged, entries=(0, 2 * 65536, -2 * 65536, 0))
    yield Cell("orientation", "90 and twice as large mp4", "mp4", scaled)


def _matrix_forged(path: Path, entries: tuple[int, int, int, int]) -> None:
    write_with_pyav(path, SOURCE, "libx264", "yuv420p", H264)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = entries
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


COLORS = {"601": ("smpte170m", "5"), "709": ("bt709", "1"), "2020": ("bt2020nc", "9")}


def color_cells() -> Iterator[Cell]:
    """The matrix and the range a clip's colors are stored in, as its header names them."""
    for name, (matrix, _) in COLORS.items():
        for levels in ("tv", "pc"):
            for ending in ("mp4", "mkv"):
                params = f"colormatrix={matrix}:fullrange={'on' if levels == 'pc' else 'off'}:" + X264
                options = {"crf": "12", "g": "4", "x264-params": params}
                make = functools.partial(_write, codec="libx264", pixels="yuv420p", options=options)
                yield Cell("colors", f"{name} {levels} {ending}", ending, make)


DAMAGED: dict[str, tuple[str, str, Options, Options]] = {
    "mp4": ("libx264", "yuv420p", H264, {}),
    "faststart.mp4": ("libx264", "yuv420p", H264, {"movflags": "faststart"}),
    "fragmented.mp4": ("libx264", "yuv420p", H264, {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mpeg4", "yuv420p", MPEG, {"movflags": "faststart"}),
    "mkv": ("libx264", "yuv420p", H264, {}),
    "live.mkv": ("libx264", "yuv420p", H264, {"live": "1"}),
    "webm": ("libvpx-vp9", "yuv420p", VP9, {}),
    "avi": ("libx264", "yuv420p", H264, {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", MPEG, {}),
    "ts": ("libx264", "yuv420p", H264, {}),
    "mpg": ("mpeg2video", "yuv420p", MPEG, {}),
    "flv": ("libx264", "yuv420p", H264, {}),
    "ogv": ("libtheora", "yuv420p", {"qscale:v": "9"}, {}),
    "ivf": ("libvpx-vp9", "yuv420p", VP9, {}),
    "gif": ("gif", "rgb8", {}, {}),
}


def damage_cells() -> Iterator[Cell]:
    """Files that lost their end, and files in which bytes were changed: refused, or read as if nothing had happened."""
    for name, (codec, pixels, options, muxer) in DAMAGED.items():
        ending = name.rpartition(".")[2]
        for share in (0.35, 0.6, 0.85, 0.97):
            make = functools.partial(_cut, codec=codec, pixels=pixels, options=options, muxer=muxer, share=share)
            # A file whose index comes last has lost nothing but what says where to jump.
            refusal = "any" if share == 0.97 and ending in ("avi", "mp4", "mkv", "mov") else "truncated"
            # A broadcast states no size: cut between two of its packets, it is what a sequential decode makes of it.
            refusal = "any" if ending == "ts" else refusal
            yield Cell("damage", f"{name} cut to {share:.0%}", ending, make, refusal=refusal)
        for seed in (1, 2):
            make_flipped = functools.partial(
                _flipped, codec=codec, pixels=pixels, options=options, muxer=muxer, seed=seed
            )
            yield Cell("damage", f"{name} changed bytes {seed}", ending, make_flipped, refusal="any", tolerance=8.0)
        make_trailing = functools.partial(_trailed, codec=codec, pixels=pixels, options=options, muxer=muxer)
        yield Cell("damage", f"{name} and bytes behind its end", ending, make_trailing)


def _cut(path: Path, share: float, **how: object) -> None:
    _write(path, **how, container=_muxer(path.suffix[1:]))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _flipped(path: Path, seed: int, **how: object) -> None:
    _write(path, **how, container=_muxer(path.suffix[1:]))
    content = bytearray(path.read_bytes())
    chance = random.Random(seed)
    middle = len(content) // 2 + chance.randrange(len(content) // 8)
    content[middle : middle + 60] = chance.randbytes(60)
    path.write_bytes(content)


def _trailed(path: Path, **how: object) -> None:
    _write(path, **how, container=_muxer(path.suffix[1:]))
    path.write_bytes(path.read_bytes() + bytes(1500))


GROUPS: dict[str, Callable[[], Iterator[Cell]]] = {
    "codecs": codec_cells,
    "structures": structure_cells,
    "times": time_cells,
    "orientation": orientation_cells,
    "colors": color_cells,
    "damage": damage_cells,
}
