"""Clips uploaded over REST: forms that break a rule, bodies that are no form, and uploads that stop under way."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.service.application import Application
from tests.support.model import clips
from tests.support.server.transports import Service, eventually, open_service, rest_refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

PART = 'Content-Disposition: form-data; name="clip"; filename="a"'
OTHER_PART = 'Content-Disposition: form-data; name="kind"'


async def test_an_uploaded_clip_is_embedded_and_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    frames = np.repeat(np.arange(40, 100, 10, dtype=np.uint8), 16 * 16 * 3).reshape(6, 16, 16, 3)
    content = clips.write(tmp_path / "clip.mp4", frames).read_bytes()
    form = {"kind": "per_frame", "frames": "3", "sha256": hashlib.sha256(content).hexdigest()}
    files = {"clip": ("../../etc/passwd", content, "video/mp4")}
    reply = await service.rest.post("/v1/embeddings/clips", data=form, files=files)
    assert reply.status_code == 200, reply.text
    assert reply.json()["embedding"]["shape"] == [3, 2]
    assert len(reply.json()["frame_times_s"]) == 3
    assert service.gateway.uploads.active == 0


async def test_the_answer_says_which_stream_of_the_file_was_read(service: Service, tmp_path: Path) -> None:
    film, thumbnail = ("libx264", clips.SOURCE, 1), ("mjpeg", clips.SOURCE[:1], 0)
    content = clips.write_streams(tmp_path / "clip.mkv", thumbnail, film).read_bytes()
    for form in ({}, {"frames": "3"}):
        reply = await service.rest.post("/v1/embeddings/clips", data=form, files={"clip": ("clip.mkv", content)})
        assert reply.status_code == 200, reply.text
        assert reply.json()["stream"] == 1
        assert len(reply.json()["frame_times_s"]) == int(form.get("frames", clips.COUNT))


@pytest.mark.parametrize(
    ("form", "reason", "field"),
    [
        ({"sha256": "0" * 64}, "CLIP_MISMATCH", "clip"),
        ({"sha256": "short"}, "INVALID_FIELD", "sha256"),
        ({"kind": "everything"}, "INVALID_FIELD", "kind"),
        ({"fps": "fast"}, "INVALID_FIELD", "fps"),
        ({"fps": "2", "frames": "2"}, "INVALID_FIELD", "frames"),
        ({"color": "blue"}, "INVALID_FIELD", "color"),
        ({"goal_id": "x" * 5000}, "TOO_LARGE", "goal_id"),
        ({"goal_id": ["one", "two"]}, "INVALID_FIELD", "goal_id"),
    ],
)
async def test_a_form_that_breaks_a_rule_is_refused(
    service: Service, form: dict[str, Any], reason: str, field: str
) -> None:
    refused = await rest_refusal(
        service.rest.post("/v1/embeddings/clips", data=form, files={"clip": ("clip.mp4", b"0123456789")})
    )
    assert (refused.reason, refused.field) == (reason, field)
    assert service.gateway.uploads.active == 0


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("multipart/form-data; boundary=B", f"--B\r\n{PART}\r\n\r\nabc", "INVALID_REQUEST"),
        ("multipart/form-data; boundary=B", "no boundary anywhere", "INVALID_REQUEST"),
        ("multipart/form-data; boundary=B", "--B\r\n\r\nabc\r\n--B--\r\n", "INVALID_REQUEST"),
        ("multipart/form-data", "--B--", "INVALID_REQUEST"),
        ("video/mp4", "abc", "INVALID_REQUEST"),
        ("multipart/form-data; boundary=B", f"--B\r\n{OTHER_PART}\r\n\r\ntokens\r\n--B--\r\n", "INVALID_FIELD"),
        ("multipart/form-data; boundary=B", f"--B\r\n{PART}\r\n\r\n\r\n--B--\r\n", "INVALID_CLIP"),
    ],
    ids=["cut off", "no boundary", "part without a name", "no boundary said", "not a form", "no file", "empty file"],
)  # fmt: skip
async def test_what_is_no_form_with_a_clip_is_refused(
    service: Service, content_type: str, body: str, reason: str
) -> None:
    call = service.rest.post("/v1/embeddings/clips", content=body, headers={"content-type": content_type})
    assert (await rest_refusal(call)).reason == reason


async def test_an_upload_that_falls_silent_loses_its_slot(application: Application) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield f"--B\r\n{PART}\r\n\r\nabc".encode()
        await asyncio.sleep(60)

    async with open_service(application, limits={"upload_idle_s": 0.2}) as service:
        headers, begun = {"content-type": "multipart/form-data; boundary=B"}, time.monotonic()
        call = asyncio.ensure_future(service.rest.post("/v1/embeddings/clips", content=silent(), headers=headers))
        await eventually(lambda: service.gateway.uploads.active == 1)
        await eventually(lambda: service.gateway.uploads.active == 0)
        assert time.monotonic() - begun < 30
        call.cancel()
