"""Still pictures: the same picture comes out whatever file it was kept in, upright, or the file is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.picture import PictureError, decode_picture
from model.video.orientation import from_display_matrix, from_exif

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
LIMIT = 4096 * 4096

# EXIF orientation: how a viewer shows the stored picture (EXIF 2.32, tag 274: where row 0 and column 0 stand).
SHOWN = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}


def file(container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, container, **options)
    return buffer.getvalue()


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()  # begins with Exif\0\0


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def behind_header(chunks: bytes) -> bytes:
    """A PNG with chunks between its header and its pixels."""
    png = file("PNG")
    return png[:33] + chunks + png[33:]


def text_profile(orientation: int, name: bytes = b"exif") -> bytes:
    block = exif_block(orientation)
    lines = b"\n".join(block.hex().encode()[at : at + 72] for at in range(0, 2 * len(block), 72))
    return b"\n%s\n%8d\n" % (name, len(block)) + lines + b"\n"


def oriented(where: str, orientation: int) -> bytes:
    """A file that keeps its EXIF in the place that is named."""
    block = exif_block(orientation)
    png = file("PNG")
    match where:
        case "JPEG":
            return file("JPEG", quality=98, subsampling=0, exif=block)
        case "WebP":
            return file("WEBP", lossless=True, exif=block)
        case "PNG before the pixels":
            return behind_header(chunk(b"eXIf", block[6:]))
        case "PNG behind the pixels":
            return png[:-12] + chunk(b"eXIf", block[6:]) + png[-12:]
        case "PNG packed text":
            packed = zlib.compress(text_profile(orientation))
            return behind_header(chunk(b"zTXt", b"Raw profile type exif\0\0" + packed))
        case "PNG plain text":
            return behind_header(chunk(b"tEXt", b"Raw profile type APP1\0" + text_profile(orientation, b"generic")))
        case "PNG international text":
            packed = zlib.compress(text_profile(orientation))
            return behind_header(chunk(b"iTXt", b"Raw profile type exif\0\1\0\0\0" + packed))
    raise AssertionError(where)


PLACES = [
    "JPEG",
    "WebP",
    "PNG before the pixels",
    "PNG behind the pixels",
    "PNG packed text",
    "PNG plain text",
    "PNG international text",
]


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("where", PLACES)
def test_a_picture_is_turned_and_mirrored_as_viewers_show_it(where: str, orientation: int) -> None:
    shown = decode_picture(oriented(where, orientation), LIMIT)
    assert shown.flags.c_contiguous
    if where != "JPEG":
        np.testing.assert_array_equal(shown, SHOWN[orientation])
    else:
        errors = {
            key: np.abs(shown.astype(int) - each).mean() for key, each in SHOWN.items() if each.shape == shown.shape
        }
        assert min(errors, key=lambda key: errors[key]) == orientation


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_display_matrix_and_an_exif_tag_that_mean_the_same_show_the_same(orientation: int) -> None:
    # Where a pixel one step right and one step down goes, read off the picture that is shown.
    places = np.stack(np.meshgrid(np.arange(24), np.arange(32), indexing="ij"), -1)
    shown = from_exif(orientation).apply(places)
    found = {tuple(place): (row, column) for row, line in enumerate(shown) for column, place in enumerate(line)}
    (row, column), right, down = found[0, 0], found[0, 1], found[1, 0]
    a, b, c, d = right[1] - column, right[0] - row, down[1] - column, down[0] - row
    matrix = struct.pack("=9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    assert from_display_matrix(matrix) == from_exif(orientation)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_is_upright(value: int) -> None:
    np.testing.assert_array_equal(decode_picture(oriented("WebP", value), LIMIT), PIXELS)


@pytest.mark.parametrize("block", [b"", b"II*\0", b"MM\0*\0\0\0\x08\0\xff", b"II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_a_broken_exif_block_changes_nothing(block: bytes) -> None:
    png = behind_header(chunk(b"eXIf", block))
    np.testing.assert_array_equal(decode_picture(png, LIMIT), PIXELS)


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"A" * (2 << 20))),
        chunk(b"zTXt", b"scene\0\0" + zlib.compress(b"A" * (2 << 20))),
        chunk(b"iTXt", b"scene\0\1\0\0\0" + zlib.compress(b"A" * (2 << 20))),
        chunk(b"tEXt", b"scene\0" + b"A" * (2 << 20)),
        chunk(b"zTXt", b"scene\0\0" + zlib.compress(b"A" * (1 << 20))) * 80,
        chunk(b"zTXt", b"broken\0\0no deflate stream"),
        chunk(b"iCCP", b"broken"),
        chunk(b"pHYs", b"too short"),
        chunk(b"caBX", bytes(100_000)),
    ],
    ids=["iCCP", "zTXt", "iTXt", "tEXt", "80 texts", "broken text", "broken profile", "broken size", "unknown"],
)
def test_what_a_png_says_beside_its_pixels_does_not_keep_them_from_being_read(chunks: bytes) -> None:
    np.testing.assert_array_equal(decode_picture(behind_header(chunks), LIMIT), PIXELS)


def test_palette_and_transparency_stay_with_their_pixels() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=3)
    png = buffer.getvalue()
    with_text = png[:33] + chunk(b"tEXt", b"a\0b") + png[33:]
    np.testing.assert_array_equal(decode_picture(with_text, LIMIT), np.asarray(image.convert("RGB")))


def animated(container: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(3)]
    frames[0].save(buffer, container, save_all=True, append_images=frames[1:], duration=40)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["PNG", "WEBP"])
def test_an_animation_is_refused_by_name_and_not_read_as_its_first_frame(container: str) -> None:
    with pytest.raises(PictureError, match=f"one still picture, got an animated {container} of 3 frames"):
        decode_picture(animated(container), LIMIT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (animated("GIF"), "a GIF"),
        (file("TIFF"), "a TIFF picture"),
        (file("BMP"), "a BMP picture"),
        (file("AVIF"), "an AVIF picture"),
        (file("JPEG2000"), "a JPEG 2000 picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", "an MP4 clip"),
        (b"\x1aE\xdf\xa3\x93B\x82\x88matroska", "a Matroska or WebM clip"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (b"data:image/png;base64,iVBORw0", "a data URL"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64 text of a PNG"),
        (b"https://example.org/a.png", "an address"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (file("PNG")[:40], "a PNG picture that cannot be read"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture that cannot be read"),
        (b"not an image", "one that starts with 6e 6f 74"),
        (b"", "no bytes"),
    ],
)
def test_what_is_no_picture_here_is_refused_by_its_name(content: bytes, words: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode_picture(content, LIMIT)
    assert words in str(caught.value)
    assert "JPEG, PNG or WebP" in caught.value.rule


def test_a_png_of_countless_chunks_is_refused_before_they_are_all_looked_at() -> None:
    with pytest.raises(PictureError, match="chunks for its"):
        decode_picture(behind_header(chunk(b"tEXt", b"a\0") * 70_000), LIMIT)


def with_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    progressive = file("JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    return progressive[:-2] + progressive[last:-2] * (scans - progressive.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused_before_it_is_decoded() -> None:
    assert decode_picture(with_scans(64), LIMIT).shape == PIXELS.shape
    with pytest.raises(PictureError, match="at most 64 scans, got a JPEG of 20000"):
        decode_picture(with_scans(20_000), LIMIT)


def test_comments_and_profiles_of_a_jpeg_reach_no_parser() -> None:
    jpeg = file("JPEG")
    segment = b"\xff\xed\xff\xfe" + b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 6000
    said = jpeg[:2] + segment[: 2 + 0xFFFE] * 100 + b"\xff\xfe\0\6note" + jpeg[2:]
    np.testing.assert_array_equal(decode_picture(said, LIMIT), decode_picture(jpeg, LIMIT))


def test_a_jpeg_of_countless_segments_is_refused_before_they_are_all_looked_at() -> None:
    jpeg = file("JPEG")
    with pytest.raises(PictureError, match="at most 512 segments"):
        decode_picture(jpeg[:2] + b"\xff\xe5\0\2" * 100_000 + jpeg[2:], LIMIT)


def test_the_canvas_of_a_webp_is_judged_before_it_is_allocated() -> None:
    webp = file("WEBP", exif=exif_block(1))
    assert webp[12:16] == b"VP8X"
    huge = webp[:24] + b"\xfe\x3f\0\xfe\x3f\0" + webp[30:]
    with pytest.raises(PictureError, match="got 16383 x 16383") as caught:
        decode_picture(huge, LIMIT)
    assert caught.value.too_large


def test_both_views_of_a_stereo_photo_are_not_an_animation() -> None:
    buffer = io.BytesIO()
    first = Image.fromarray(PIXELS)
    first.save(buffer, "MPO", save_all=True, append_images=[first])
    shown: NDArray[np.uint8] = decode_picture(buffer.getvalue(), LIMIT)
    assert shown.shape == PIXELS.shape
