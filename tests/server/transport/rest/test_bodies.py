"""JSON bodies within their budget: a few faults are told, structure is counted first, long ones are read elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from server.service.application import Application
from tests.support.server import linear
from tests.support.server.transports import Service, json_observation, json_tensor, open_service, rest_refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

JSON = {"content-type": "application/json"}
SEEN = linear.frame(0.2, 0.4)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application) as opened:
        yield opened


WRONG = {
    "a list with the wrong type in every entry": b'{"observation":{"images":[%s1]}}' % (b"1," * 2**19),
    "unknown fields without end": b"{%s}" % b",".join(b'"%d":1' % n for n in range(8000)),
    "more fields than any call has": b"{%s}" % b",".join(b'"%d":1' % n for n in range(100_000)),
    "more entries than any tensor in lists": b'{"actions":[%s1]}' % (b"1," * 2**21),
    "a field with an endless name": b'{"%s":1}' % (b"a" * 2**20),
    "a number of a million digits": b'{"seed":%s}' % (b"1" * 2**20),
    "lists in lists without end": b'{"actions":%s}' % (b"[" * 2**20),
    "text in every entry": b'{"observation":{"images":[%s]}}' % b",".join([b'"%s"' % (b"x" * 1000)] * 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_told_of_a_wrong_body_is_short_whatever_its_size(service: Service, name: str) -> None:
    reply = await service.rest.post("/v1/plans", content=WRONG[name], headers=JSON)
    assert 400 <= reply.status_code < 500
    problem = reply.json()
    assert problem["code"] in ("INVALID_FIELD", "INVALID_REQUEST", "INVALID_IMAGE", "TOO_LARGE")
    assert 1 <= len(problem["errors"]) <= 20
    assert len(reply.content) <= 20 * 5000


@pytest.mark.parametrize(
    "body",
    [
        b'{"goal_id":"\\ud800","observation":{"images":[]}}',
        b'{"\\udfff":1}',
        b'{"observation":{"images":[{"encoded":"\\udc00\\ud800"}]}}',
        b'{"model":"\\ud83d"}',
    ],
)
async def test_lone_surrogates_are_refused_by_name(service: Service, body: bytes) -> None:
    for path in ("/v1/plans", "/v1/goals", "/v1/sessions", "/v1/scores"):
        assert (await rest_refusal(service.rest.post(path, content=body, headers=JSON))).reason == "INVALID_REQUEST"


async def test_numbers_in_long_lists_are_read_elsewhere_and_come_out_the_same(service: Service) -> None:
    candidates = np.random.default_rng(0).uniform(-0.4, 0.4, (600, 6, 2)).astype(np.float32)
    goal = await service.rest.post("/v1/goals", json={"image": json_observation(SEEN)["images"][0]})
    asked = {"observation": json_observation(SEEN), "goal_id": goal.json()["goal_id"]}
    in_lists = await service.rest.post("/v1/scores", json={**asked, "candidates": candidates.tolist()}, timeout=60)
    as_bytes = await service.rest.post("/v1/scores", json={**asked, "candidates": json_tensor(candidates)})
    assert len(in_lists.request.content) > 100_000
    assert in_lists.status_code == 200, in_lists.text
    assert in_lists.json()["costs"] == as_bytes.json()["costs"]


async def test_a_long_body_is_refused_at_its_deadline_and_the_next_is_read(service: Service) -> None:
    body = json.dumps({"observation": json_observation(SEEN), "candidates": [[[0.5] * 2] * 4] * 100_000}).encode()
    late = await rest_refusal(service.rest.post("/v1/scores", content=body, headers={**JSON, "x-timeout-ms": "40"}))
    assert late.reason == "DEADLINE"
    refused = await rest_refusal(service.rest.post("/v1/scores", content=body, headers=JSON))
    assert refused.reason in ("GOAL_REQUIRED", "TOO_LARGE")  # what was read is judged: the latter on a slow machine
