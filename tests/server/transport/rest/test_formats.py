"""Arrays over REST as JSON, .npy or protobuf: the same numbers, as the Accept header asks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from presage.v1 import embeddings_pb2, planning_pb2

from server.transport.rest.formats import Format, answer, chosen
from server.transport.rest.replies import Plain
from tests.support.model import clips
from tests.support.server import linear
from tests.support.server.transports import Service, array_of, json_image, json_observation, rest_refusal

MIDDLE = linear.frame(0.5, 0.5)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/html", "json"),
        ("application/x-npy", "npy"),
        ("application/x-npy, */*", "npy"),
        ("*/*;q=0.8, APPLICATION/X-NPY ; q=0.9", "npy"),
        ("application/x-npy;q=0.1, application/json", "json"),
        ("application/x-protobuf", "protobuf"),
        ("application/protobuf", "protobuf"),
        ("application/x-npy;q=0, application/*;q=0.1", "json"),
        ("application/x-npy;q=nonsense", "json"),
        ("application/x-npy;q=inf,;;,=", "json"),
    ],
)
def test_the_accept_header_decides(accept: str, expected: Format) -> None:
    assert chosen(accept) == expected


@pytest.mark.parametrize(
    ("accept", "made"), [("", ["json"]), ("application/x-protobuf", ["protobuf"]), ("application/x-npy", [])]
)
def test_only_the_format_that_is_sent_is_made(accept: str, made: list[str]) -> None:
    written: list[str] = []

    def write(name: str) -> bytes:
        written.append(name)
        return b"{}"

    request = Request({"type": "http", "headers": [(b"accept", accept.encode())]})
    answer(
        request,
        as_json=lambda: [Plain(memoryview(write("json")))],
        as_protobuf=lambda: write("protobuf"),
        array=np.zeros(3),
    )
    assert written == made


async def alike(service: Service, path: str, name: str, reply_of: Any, **ask: Any) -> Any:
    """The reply as a message, once all three formats are found to hold the same array `name`."""
    by_json = await service.rest.post(path, **ask)
    assert (by_json.status_code, by_json.headers["content-type"]) == (200, "application/json")
    expected = array_of(by_json.json()[name])
    npy = await service.rest.post(path, headers={"accept": "application/x-npy"}, **ask)
    assert (npy.headers["content-type"], npy.headers["vary"]) == ("application/x-npy", "Accept")
    np.testing.assert_array_equal(np.load(io.BytesIO(npy.content), allow_pickle=False), expected)
    packed = await service.rest.post(path, headers={"accept": "application/x-protobuf"}, **ask)
    assert packed.headers["content-type"] == "application/x-protobuf"
    message = reply_of.FromString(packed.content)
    np.testing.assert_array_equal(array_of(getattr(message, name)), expected)
    return message


@pytest.mark.asyncio(loop_scope="session")
async def test_embeddings_of_images_come_in_every_format(service: Service) -> None:
    ask = {"images": [json_image(MIDDLE), json_image(linear.frame(0.9, 0.1))]}
    message = await alike(service, "/v1/embeddings/images", "embedding", embeddings_pb2.EmbedImagesResponse, json=ask)
    assert message.model == "linear"
    np.testing.assert_allclose(array_of(message.embedding)[1], linear.latent(0.9, 0.1))


@pytest.mark.asyncio(loop_scope="session")
async def test_embeddings_of_clips_come_in_every_format(service: Service, tmp_path: Path) -> None:
    frames = np.repeat(np.arange(40, 100, 10, dtype=np.uint8), 16 * 16 * 3).reshape(6, 16, 16, 3)
    files = {"clip": ("clip.mp4", clips.write(tmp_path / "clip.mp4", frames).read_bytes())}
    message = await alike(
        service, "/v1/embeddings/clips", "embedding", embeddings_pb2.EmbedClipResponse,
        files=files, data={"kind": "per_frame"},
    )  # fmt: skip
    assert len(message.frame_times_s) == 6


@pytest.mark.asyncio(loop_scope="session")
async def test_predicted_latents_come_in_every_format(service: Service) -> None:
    ask = {"observation": json_observation(MIDDLE), "actions": [[0.5, 0.0]] * 4}
    message = await alike(service, "/v1/rollouts", "latents", planning_pb2.RolloutResponse, json=ask)
    assert array_of(message.latents).shape == (2, 2)


@pytest.mark.asyncio(loop_scope="session")
async def test_errors_are_problem_details_whatever_was_asked_for(service: Service) -> None:
    refused = service.rest.post("/v1/embeddings/images", json={"images": []}, headers={"accept": "application/x-npy"})
    assert (await rest_refusal(refused)).field == "images"


@pytest.mark.asyncio(loop_scope="session")
async def test_the_document_tells_the_formats(service: Service) -> None:
    paths = (await service.rest.get("/openapi.json")).json()["paths"]
    for path in ("/v1/embeddings/images", "/v1/embeddings/clips", "/v1/rollouts"):
        told = set(paths[path]["post"]["responses"]["200"]["content"])
        assert told == {"application/json", "application/x-npy", "application/x-protobuf"}
