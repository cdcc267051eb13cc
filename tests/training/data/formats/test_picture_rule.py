"""One rule for pictures: what the service refuses training refuses too, and what both read they read alike."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.errors import ServiceError
from server.values.images import decode
from tests.support.training.numbered import CAMERA, rows, write_numbered_lerobot
from training.data.dataset import DatasetError
from training.data.formats.opening import open_dataset
from training.data.inspection import inspect
from training.data.pictures import decode_image


def encoded(image: Image.Image, form: str = "PNG", **more: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **more)
    return content.getvalue()


def ramp(high: int = 255) -> np.ndarray:
    return np.linspace(0, high, 24 * 32).reshape(24, 32)


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(Image.fromarray(np.dstack([ramp().astype(np.uint8)] * 3)), "JPEG", exif=exif)


DEPTH = encoded(Image.fromarray((400 + ramp(1100)).astype(np.uint16)))
CLEAR = np.dstack([np.full((24, 32), 200, np.uint8)] * 3 + [np.zeros((24, 32), np.uint8)])
PICTURES = {
    "gray": encoded(Image.fromarray(ramp().astype(np.uint8))),
    "clear": encoded(Image.fromarray(CLEAR)),
    "palette": encoded(Image.fromarray(ramp().astype(np.uint8)).convert("P")),
    "one bit": encoded(Image.fromarray(ramp().astype(np.uint8)).convert("1")),
    "turned": turned(),
    "webp": encoded(Image.fromarray(np.dstack([ramp().astype(np.uint8)] * 3)), "WEBP", lossless=True),
    "16 bits": DEPTH,
    "cut short": turned()[:500],
    "no picture": b"GIF89a",
    "nothing": b"",
}


@pytest.mark.parametrize("name", PICTURES)
def test_training_and_service_decode_by_one_rule(name: str) -> None:
    content = PICTURES[name]
    try:
        (served,) = asyncio.run(decode([("image", content)], 10**6))
    except ServiceError as refusal:
        with pytest.raises(DatasetError) as refused:
            decode_image(content, "image")
        assert str(refused.value).split(", got")[0].removeprefix("image: ") in str(refusal)
    else:
        assert np.array_equal(decode_image(content, "image"), served)


def test_pictures_of_16_bits_are_refused_by_episode(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra datasets")
    from pyarrow import parquet

    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(8), 10)], 10, 10)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (path / "meta/info.json").write_text(json.dumps(info))
    file = path / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(file)
    column = pyarrow.array([{"bytes": DEPTH, "path": "depth.png"}] * 8)
    parquet.write_table(table.append_column(CAMERA, column), file)
    found = inspect(open_dataset(path))
    assert "image 0: must have 8 bits per channel, got mode I;16" in found.broken[0].problems[0]
