"""What a clip shows, by both transports, by the clients and by the command line: a classifier's own answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest
import pytest_asyncio
import torch
from presage.v1 import embeddings_pb2, models_pb2

from model.checkpoints.families import ImportOptions, import_weights
from model.registry import load
from model.video.decode import ClipLimits, FrameSampling, decode
from model.vjepa2.model import VJepa2Model
from tests.model.vjepa2.test_classify import LABELS, probe, probe_file
from tests.model.vjepa2.test_huggingface import hugging_face_folder
from tests.server.conftest import START_S, changed, start
from tests.support.cli.commands import run_command
from tests.support.model.clips import moving_square, write
from tests.support.server.transports import Service, grpc_refusal, open_service

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass(frozen=True)
class Case:
    service: Service
    model: VJepa2Model
    clip: Path
    package: Path

    def expected(self, frames: int | None) -> np.ndarray:
        """The model's own probabilities for the clip's frames."""
        limits = ClipLimits(max_frames=64, max_output_bytes=1 << 26)
        decoded = decode(self.clip, FrameSampling(frames=frames), None, limits)
        return self.model.classify(torch.from_numpy(decoded.frames)).numpy()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def case(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Case]:
    folder = tmp_path_factory.mktemp("classify")
    encoder = hugging_face_folder(folder / "vjepa2-tiny")
    options = ImportOptions(dtype=torch.float32, encoder_weights=encoder, labels=LABELS)
    package = folder / "package"
    import_weights(probe_file(folder / "probe.pt", probe()), package, options)
    config = json.loads((package / "config.json").read_text())
    (package / "config.json").write_text(json.dumps(config | {"clip_frames": 4}))
    model = load(str(package), torch.device("cpu"))
    assert isinstance(model, VJepa2Model)
    clip = write(folder / "clip.mp4", moving_square(9))
    application = await start(changed(models=(str(package), "linear"), precision="float32"))
    try:
        await application.wait_ready(START_S)
        async with open_service(application) as service:
            yield Case(service, model, clip, package)
    finally:
        await application.stop(shutdown_grace_s=0.0)


def messages(clip: Path, **header: Any) -> Iterator[embeddings_pb2.ClassifyClipRequest]:
    content = clip.read_bytes()
    announced: dict[str, Any] = {"total_bytes": len(content), "sha256": hashlib.sha256(content).digest(), **header}
    yield embeddings_pb2.ClassifyClipRequest(header=embeddings_pb2.ClipHeader(**announced))
    for first in range(0, len(content), 1000):
        yield embeddings_pb2.ClassifyClipRequest(chunk=content[first : first + 1000])


async def test_the_likeliest_labels_come_back_over_grpc(case: Case) -> None:
    sampling = embeddings_pb2.FrameSampling(frames=6)
    reply = await case.service.embeddings.ClassifyClip(messages(case.clip, sampling=sampling, top_k=3))
    expected = case.expected(6)
    assert [each.index for each in reply.classes] == np.argsort(-expected)[:3].tolist()
    for each in reply.classes:
        assert each.label == LABELS[each.index]
        assert each.probability == pytest.approx(float(expected[each.index]), abs=1e-5)
    assert len(reply.frame_times_s) == 6


async def test_without_a_sampling_as_many_frames_are_used_as_the_classifier_was_trained_on(case: Case) -> None:
    reply = await case.service.embeddings.ClassifyClip(messages(case.clip))
    assert len(reply.frame_times_s) == 4
    assert len(reply.classes) == 5
    assert sum(each.probability for each in reply.classes) == pytest.approx(1.0, abs=1e-5)
    assert reply.classes[0].probability == pytest.approx(float(case.expected(4).max()), abs=1e-5)


async def test_the_same_answer_comes_over_rest(case: Case) -> None:
    over_grpc = await case.service.embeddings.ClassifyClip(messages(case.clip, top_k=2))
    files, form = {"clip": case.clip.read_bytes()}, {"top_k": "2", "model": over_grpc.model}
    reply = await case.service.rest.post("/v1/classifications/clips", files=files, data=form)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert [each["label"] for each in told["classes"]] == [each.label for each in over_grpc.classes]
    assert [each["probability"] for each in told["classes"]] == pytest.approx(
        [each.probability for each in over_grpc.classes], abs=1e-6
    )
    assert told["model"] == over_grpc.model


async def test_a_model_says_its_license_and_its_labels(case: Case) -> None:
    told = (await case.service.models.Get(models_pb2.ModelsGetRequest())).model
    assert list(told.labels) == list(LABELS)
    assert told.clip_frames == 4
    assert told.license.startswith("not known; of the encoder:")
    over_rest = (await case.service.rest.get("/v1/models")).json()["models"]
    assert (over_rest[0]["labels"], over_rest[1]["labels"]) == (list(LABELS), [])
    assert over_rest[0]["license"] == told.license


@pytest.mark.parametrize(
    ("header", "field", "said"),
    [
        ({"model": "linear"}, "model", "must have labels to classify a clip, got linear, which has none"),
        ({"top_k": 9}, "top_k", "must be 1 to the model's 5 classes, got 9"),
        ({"kind": embeddings_pb2.EMBEDDING_KIND_TOKENS}, "header.kind", "must not be set to classify"),
        ({"goal_id": "a"}, "header.goal_id", "must not be set to classify"),
        ({"sha256": b"short"}, "header.sha256", "must have 32 bytes"),
    ],
)
async def test_what_cannot_be_classified_is_refused_by_field(
    case: Case, header: dict[str, object], field: str, said: str
) -> None:
    refused = await grpc_refusal(case.service.embeddings.ClassifyClip(messages(case.clip, **header)))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", field)
    assert said in refused.message


async def test_a_clip_to_embed_takes_no_top_k(case: Case) -> None:
    header, *rest = messages(case.clip, top_k=3)
    sent = [embeddings_pb2.EmbedClipRequest.FromString(each.SerializeToString()) for each in (header, *rest)]
    refused = await grpc_refusal(case.service.embeddings.EmbedClip(iter(sent)))
    assert refused.field == "header.top_k"


async def test_the_clients_and_the_command_line_tell_the_same(case: Case) -> None:
    address, expected = case.service.addresses.grpc, case.expected(4)

    def blocking() -> presage.ClipClasses:
        with presage.Client(address) as client:
            return client.classify(case.clip, top_k=2)

    async with presage.AsyncClient(address) as client:
        found = await client.classify(case.clip, top_k=2)
        assert (await client.model()).labels == LABELS
        with pytest.raises(presage.InvalidRequest, match="top_k"):
            await client.classify(case.clip, top_k=0)
    assert found == await asyncio.to_thread(blocking)
    assert [each.index for each in found.classes] == np.argsort(-expected)[:2].tolist()
    arguments = ("classify", str(case.clip), "--address", address, "--top-k", "1", "--json")
    assert await asyncio.to_thread(run_command, *arguments) == 0
