"""Images on arrival: what is decoded, what is refused, and that a header is believed before any pixel is."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from presage.protocol.arrays import rgb

from server.errors import Reason, ServiceError, refuse
from server.values.calls import Frame
from server.values.images import ImageSource, decode

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
CAP = 4096 * 4096


def encoded(image: Image.Image, container: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


async def frame(source: ImageSource, cap: int = CAP) -> Frame:
    (decoded,) = await decode([("image", source)], cap)
    return decoded


async def refusal(source: ImageSource, cap: int = CAP) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await frame(source, cap)
    return caught.value


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says a size that its content does not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(b"\0" * 16)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


@pytest.mark.parametrize("container", ["PNG", "WEBP"])
async def test_lossless_files_come_out_exactly(container: str) -> None:
    decoded = await frame(encoded(Image.fromarray(PIXELS), container, lossless=True))
    np.testing.assert_array_equal(decoded, PIXELS)


async def test_a_jpeg_comes_out_as_pillow_reads_it() -> None:
    source = encoded(Image.fromarray(PIXELS), "JPEG", quality=90)
    np.testing.assert_array_equal(await frame(source), np.asarray(Image.open(io.BytesIO(source))))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
async def test_other_eight_bit_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    np.testing.assert_array_equal(await frame(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


async def test_raw_pixels_are_read_in_their_order() -> None:
    height, width, _ = PIXELS.shape
    straight = await frame(rgb(height, width, "rgb8", PIXELS.tobytes(), "image", refuse))
    bgr = await frame(rgb(height, width, "bgr8", PIXELS[..., ::-1].tobytes(), "image", refuse))
    mono = await frame(rgb(height, width, "mono8", PIXELS[..., 0].tobytes(), "image", refuse))
    np.testing.assert_array_equal(straight, PIXELS)
    np.testing.assert_array_equal(bgr, PIXELS)
    np.testing.assert_array_equal(mono, np.repeat(PIXELS[..., :1], 3, axis=2))
    assert all(each.flags.c_contiguous for each in (straight, bgr, mono))


async def test_a_phone_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned clockwise
    decoded = await frame(encoded(Image.fromarray(PIXELS), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(PIXELS, -1))


async def test_large_images_come_out_like_small_ones() -> None:
    large = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    np.testing.assert_array_equal(await frame(encoded(Image.fromarray(large), "PNG", compress_level=1)), large)


async def test_a_huge_header_is_refused_before_its_pixels_are_touched() -> None:
    error = await refusal(png_claiming(16_000, 9_000))
    assert error.reason is Reason.TOO_LARGE
    assert (error.field, error.value) == ("image", "16000x9000") or "header" in error.value
    assert str(CAP) in error.rule or "pixels" in error.rule
    assert (await refusal(png_claiming(60_000, 60_000))).reason is Reason.TOO_LARGE


async def test_pixels_of_all_images_count_together() -> None:
    one = encoded(Image.fromarray(PIXELS), "PNG")
    size = PIXELS.shape[0] * PIXELS.shape[1]
    assert len(await decode([("a", one), ("b", one)], 2 * size)) == 2
    with pytest.raises(ServiceError, match="^b must keep all images"):
        await decode([("a", one), ("b", one)], 2 * size - 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no bytes"),
        (b"not an image at all", "6e 6f 74"),
        (b"GIF89a" + b"\0" * 64, "JPEG, PNG or WebP"),
        (b"\xff\xd8\xff\xe0", "JPEG, PNG or WebP"),
    ],
)
async def test_what_is_no_image_is_refused_by_name(content: bytes, words: str) -> None:
    error = await refusal(content)
    assert error.reason is Reason.INVALID_IMAGE
    assert error.field == "image"
    assert words in error.message


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
async def test_a_file_cut_short_is_refused(container: str) -> None:
    whole = encoded(Image.fromarray(PIXELS), container)
    error = await refusal(whole[: len(whole) * 2 // 3])
    assert error.reason is Reason.INVALID_IMAGE


async def test_sixteen_bits_per_channel_are_refused_rather_than_clipped() -> None:
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    error = await refusal(encoded(deep, "PNG"))
    assert error.reason is Reason.INVALID_IMAGE
    assert "8 bits" in error.rule


@pytest.mark.parametrize(
    ("height", "width", "size", "rule"),
    [(4, 4, 47, "4 x 4 x 3 = 48 bytes"), (0, 4, 0, "at least 1x1"), (2**31, 2**31, 0, "bytes")],
)
def test_raw_pixels_must_add_up(height: int, width: int, size: int, rule: str) -> None:
    with pytest.raises(ServiceError) as caught:
        rgb(height, width, "rgb8", b"\0" * size, "image", refuse)
    assert caught.value.reason is Reason.INVALID_IMAGE
    assert rule in caught.value.rule
