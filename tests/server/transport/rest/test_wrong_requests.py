"""What people send by hand, and the proxies in between: a wrong request is told what a right one looks like."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import yaml
from PIL import Image

from server.service.application import Application
from server.transport.rest.middleware import KEEP_ALIVE_S
from tests.support.paths import ROOT
from tests.support.server import linear
from tests.support.server.transports import Service, open_service, rest_refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(linear.frame(0.5, 0.5)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
TEXT = base64.b64encode(PNG).decode()
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application) as opened:
        yield opened


# What is sent to POST /v1/goals: the arguments of the request, the field named, and what is said to have come.
TRIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "base64 in place of an image": ({"json": {"image": TEXT}}, "image", "the base64 text of a PNG in its place"),
    "data": ({"json": {"image": {"data": TEXT}}}, "image", "an object with data"),
    "base64": ({"json": {"image": {"base64": TEXT, "format": "png"}}}, "image", "an object with base64, format"),
    "a path": ({"json": {"image": "goal.png"}}, "image", "text in its place"),
    "an address": ({"json": {"image": "https://example.org/g.png"}}, "image", "the text of an address in its place"),
    "a data URL": ({"json": {"image": "data:image/png;base64," + TEXT}}, "image", "the text of a data URL"),
    "nested lists": ({"json": {"image": linear.frame(0.5, 0.5).tolist()}}, "image", "a list"),
    "a number": ({"json": {"image": 7}}, "image", "a int"),
    "no level between": ({"json": {"encoded": TEXT}}, "encoded", "iVBOR"),
    "another name": ({"json": {"goal": {"encoded": TEXT}}}, "goal", "a dict"),
    "nothing": ({"json": {}}, "source", "neither"),
    "no body": ({"content": b"", "headers": JSON}, "body", "nothing"),
    "the file itself": (
        {"content": PNG, "headers": {"content-type": "image/png"}},
        "body",
        "a PNG picture as image/png",
    ),
    "the file as JSON": ({"content": PNG, "headers": JSON}, "body", "a PNG picture"),
    "a form": ({"files": {"image": ("g.png", PNG, "image/png")}}, "body", "as multipart/form-data"),
    "curl -d": (
        {
            "content": json.dumps({"image": {"encoded": TEXT}}).encode(),
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
        "body",
        "as application/x-www-form-urlencoded",
    ),
    "a list": ({"json": [TEXT]}, "body", "a list"),
}


@pytest.mark.parametrize("name", TRIES)
async def test_a_goal_written_in_another_way_is_told_how_it_is_written(service: Service, name: str) -> None:
    request, field, shown = TRIES[name]
    refused = await rest_refusal(service.rest.post("/v1/goals", **request))
    assert refused.status in (400, 422)
    assert refused.field == field
    assert '"encoded"' in refused.message
    assert '"raw"' in refused.message
    assert shown in refused.message


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"encoded": "data:image/png;base64," + TEXT}, "without a heading"),
        ({"encoded": "goal.png"}, "a path"),
        ({"encoded": base64.encodebytes(PNG).decode()}, "in one line"),
        ({"encoded": TEXT[:-1]}, "padding"),
        ({"raw": TEXT}, "object"),
        ({"encoded": TEXT, "format": "png"}, "there are encoded, raw"),
        ({"raw": {"data": TEXT}}, "must be set"),
        ({}, "encoded or raw"),
        ({"encoded": base64.b64encode(TEXT.encode()).decode()}, "the base64 text of a PNG"),
    ],
)
async def test_an_image_that_is_not_quite_right_is_told_what_is_wrong(
    service: Service, image: dict[str, Any], words: str
) -> None:
    refused = await rest_refusal(service.rest.post("/v1/goals", json={"image": image}))
    assert refused.status == 422
    assert refused.field.startswith("image")
    assert words in refused.message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/plans", {"observation": {"images": [TEXT]}}, "observation.images[0]"),
        ("/v1/plans", {"observation": {"image": {"encoded": TEXT}}}, "observation.images"),
        ("/v1/plans", {"image": {"encoded": TEXT}}, "observation"),
        ("/v1/embeddings/images", {"images": [{"data": TEXT}]}, "images[0]"),
        ("/v1/distances", {"images": [{"url": "x"}]}, "images[0]"),
    ],
)
async def test_images_of_other_calls_are_told_too(
    service: Service, path: str, body: dict[str, Any], field: str
) -> None:
    refused = await rest_refusal(service.rest.post(path, json=body))
    assert refused.field == field
    assert '"encoded"' in refused.message


async def test_an_unknown_field_is_told_which_there_are(service: Service) -> None:
    refused = await rest_refusal(service.rest.post("/v1/sessions", json={"goal": "x"}))
    assert "there are model, goal_id, ttl_s, seed, stages" in refused.message


async def test_an_idle_connection_outlives_what_clients_keep_and_says_so(service: Service) -> None:
    assert KEEP_ALIVE_S == 75
    host, _, port = service.addresses.rest.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for pause in (0.0, 6.0):  # the server's own default is 5 s
            await asyncio.sleep(pause)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5.0)
            assert b"keep-alive: timeout=75" in head.lower()
            await reader.readexactly(len(b'{"status":"live"}'))
    finally:
        writer.close()


async def test_an_answer_that_ends_the_connection_promises_none(service: Service) -> None:
    reply = await service.rest.get("/livez", headers={"connection": "close"})
    assert reply.headers["connection"] == "close"
    assert "keep-alive" not in reply.headers


async def test_the_proxy_lets_go_of_a_connection_before_the_service_does() -> None:
    proxy = yaml.safe_load((ROOT / "deploy/kubernetes/cpu/envoy.yaml").read_text())
    (cluster,) = (each for each in proxy["static_resources"]["clusters"] if each["name"] == "presage_rest")
    (options,) = cluster["typed_extension_protocol_options"].values()
    idle_s = float(options["common_http_protocol_options"]["idle_timeout"].removesuffix("s"))
    assert 15.0 < idle_s < KEEP_ALIVE_S
