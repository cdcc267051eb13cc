"""Work is done once: networks are asked, weights read and tensors made as often as a result needs them, and no more."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model.package
from model.checkpoints.importer import import_checkpoint
from model.registry import load
from model.vjepa2.encoder import Encoder
from server.engine.messages import EmbedClipJob, EmbedDone, EmbedImagesJob, EngineSettings, SearchSize, Start
from server.recording.records import Recorded
from server.worker import precision, process
from server.worker.replay import Recording, replay
from server.worker.scheduling import background_jobs
from tests.model.vjepa2.test_world_model import write_checkpoint
from tests.support.model.tiny_vjepa2 import published
from tests.support.server import recording
from tests.support.server.linear import frame, latent
from tests.support.server.service_bench import Bench, job

CPU = torch.device("cpu")
CLIP = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
IMAGES = tuple(np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8))
GOAL = np.zeros((4, 32), np.float32)


class Counting:
    """A model that counts the frames that its encoder is given, by call."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.frames = inner, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, frames: torch.Tensor) -> Any:
        self.frames["encode"] += len(frames)
        return self._inner.encode(frames)

    def clip_steps(self, frames: torch.Tensor) -> Any:
        self.frames["embed_clip"] += len(frames)
        return self._inner.clip_steps(frames)

    def embed_clip(self, frames: torch.Tensor) -> Any:
        self.frames["embed_clip"] += len(frames)
        return self._inner.embed_clip(frames)


def finished(background_job: Generator[Any, None, Any]) -> EmbedDone:
    try:
        while True:
            next(background_job)
    except StopIteration as end:
        assert isinstance(end.value, EmbedDone)
        return end.value


def vjepa2_folder(folder: Path, acts: bool) -> Path:
    import_checkpoint(write_checkpoint(folder, acts), folder / "tiny", torch.float32, model=published(acts))
    return folder / "tiny"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weights file has been read, by its folder."""
    counted, read = Counter[str](), model.package.tensors_of

    def counting(content: bytes, path: Path) -> dict[str, torch.Tensor]:
        counted[path.parent.name] += 1
        return read(content, path)

    monkeypatch.setattr(model.package, "tensors_of", counting)
    return counted


@pytest.mark.parametrize(
    ("asked", "encoded", "steps", "distances"),
    [({}, 0, 0, 0), ({"step_distances": True}, 8, 7, 0), ({"goal": GOAL}, 8, 0, 8)],
    ids=["a vector", "changes", "distances to a goal"],
)
def test_a_vjepa2_clip_is_encoded_frame_by_frame_only_for_distances(
    tmp_path: Path, asked: dict[str, Any], encoded: int, steps: int, distances: int
) -> None:
    counting = Counting(load(str(vjepa2_folder(tmp_path, acts=True)), CPU))
    done = finished(background_jobs.embed_clip(counting, EmbedClipJob("tiny", CLIP, "pooled", **asked), 32))
    assert (counting.frames["embed_clip"], counting.frames["encode"]) == (8, encoded)
    assert (len(done.step_distances), len(done.goal_distances)) == (steps, distances)


@pytest.mark.parametrize("kind", ["pooled", "per_frame", "tokens"])
def test_an_image_is_encoded_once_whatever_is_asked_of_it(compact_folder: Path, kind: Any) -> None:
    compact = load(str(compact_folder), CPU)
    counting = Counting(compact)
    asked = EmbedImagesJob("tiny", IMAGES, kind, np.zeros(8, np.float32))
    done = finished(background_jobs.embed_images(counting, asked, 32))
    assert counting.frames.total() == len(IMAGES)
    latents = compact.encode(torch.tensor(np.stack(IMAGES)))
    np.testing.assert_allclose(done.goal_distances, latents.square().mean(-1), rtol=1e-5)
    assert kind != "tokens" or done.embedding.shape == (5, 16, 24)


@pytest.fixture
def _every_precision_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: dict[str, Any] = {"LEAST_SPEEDUP": 0.0, "LEAST_COSINE": -1.0, "LARGEST_GAP": 9.0, "LARGEST_EXCESS": 9.0}
    for name, value in (bars | {"GATE_S": float("inf"), "_eight_bits": lambda model: torch.int8}).items():
        monkeypatch.setattr(precision, name, value)


def precision_of_engine(package: Path) -> torch.dtype:
    """The precision that an engine serves the package in, once it has loaded it."""
    settings = EngineSettings((str(package),), "cpu", 1, "auto", "off", 16, None)
    (served,) = process._load_and_describe(settings)[0].values()
    return served.dtype


def encoders() -> int:
    gc.collect()
    return sum(type(each) is Encoder for each in gc.get_objects())


@pytest.mark.usefixtures("_every_precision_is_taken")
def test_an_engine_reads_weights_once_and_holds_two_networks_at_most(
    tmp_path: Path, compact_folder: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    measure, before = precision._iterations_s, encoders()

    def counting(models: Any, size: SearchSize) -> list[float]:
        held.append(encoders() - before)
        return measure(models, size)

    monkeypatch.setattr(precision, "_iterations_s", counting)
    assert precision_of_engine(vjepa2_folder(tmp_path, acts=False)) == torch.int8
    assert (reads["tiny"], held) == (1, [2, 2]), "bfloat16 and int8 were tried, each beside the model as it is"
    reads.clear()
    assert precision_of_engine(compact_folder) == torch.bfloat16
    assert reads["tiny"] == 1


def test_a_proposer_is_checked_against_the_weights_that_were_read(reads: Counter[str]) -> None:
    assert load("pusht", CPU).proposer is not None
    assert reads["pusht"] == 1


def test_a_replay_makes_each_model_once_in_a_precision(compact_folder: Path, reads: Counter[str]) -> None:
    compact = load(str(compact_folder), CPU)
    asked = replace(recording.job("tiny"), start=Start(IMAGES[:1]), goal=np.zeros(8, np.float32))
    found = recording.done(asked, {"tiny": compact.to_precision(torch.bfloat16)})
    made = {"dtype": "bfloat16", "weights_digest": compact.package.weights_digest}
    record = Recorded(1, {}, {"observation_sequence": 1, "provenance": made}, asked, found)
    reads.clear()
    outcomes = list(replay(Recording(("tiny",), (record,) * 4, True), {"tiny": compact}, 1e-4))
    assert [outcome.verdict for outcome in outcomes] == ["same"] * 4
    assert reads["tiny"] == 1


def test_an_observation_becomes_tensors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tensor = Counter[tuple[int, ...]](), torch.tensor

    def counting(values: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        if isinstance(values, np.ndarray):
            made[values.shape] += 1
        return tensor(values, *arguments, **options)

    bench = Bench("historian")
    seen, proprioception = frame(0.6, 0.5), np.zeros((3, 1), np.float32)
    start = Start((seen,), (latent(0.0, 0.5), latent(0.3, 0.5)), proprioception)
    monkeypatch.setattr(torch, "tensor", counting)
    bench.scheduler.add(1, replace(job(bench), start=start))
    bench.run()
    assert bench.plan(1).iterations_done >= 1
    assert (made[seen.shape], made[proprioception.shape]) == (1, 1)
