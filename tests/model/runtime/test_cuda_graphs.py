"""Captured rollouts: the same results from the room of a larger batch, and none where they would be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.camera_yaw import CameraYawWorldModel, rotation
from model.layers.transformer import RotaryCache
from model.registry import as_trained, find
from model.runtime.cuda_graphs import Captured, CudaGraphs, Graphed, WorldModel, outside, rehearsed
from model.vjepa2.action_predictor import ActionPredictorConfig
from model.vjepa2.rollout import normalize
from model.vjepa2.world_model import VJepa2WorldModel
from tests.support.model.tiny_vjepa2 import ENCODER, action_predictor, encoder

CPU = torch.device("cpu")
SHAPE = ActionPredictorConfig(latent_width=32, width=24, depth=2, heads=2, mlp_hidden=48, grid=(2, 3))

Question = tuple[tuple[Tensor, ...], Tensor]


def compact(device: torch.device = CPU) -> tuple[WorldModel, Callable[[int, int, int], Question]]:
    arm = as_trained(find("arm"), device)

    def ask(batch: int, samples: int, seed: int) -> Question:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(batch, *arm.package.config.latent_shape, generator=generator)
        actions = 2 * torch.rand(batch, samples, 3 * arm.block, 2, generator=generator) - 1
        return (latents.to(device),), actions.to(device)

    return arm, ask


def vjepa2(device: torch.device = CPU) -> tuple[WorldModel, Callable[[int, int, int], Question]]:
    networks = encoder(ENCODER).to(device), action_predictor(SHAPE).to(device)
    world = VJepa2WorldModel(*networks, size=(16, 24))

    def ask(batch: int, samples: int, seed: int) -> Question:
        generator = torch.Generator().manual_seed(seed)
        latents = normalize(torch.randn(batch, 2, 6, 32, generator=generator))
        poses, past = torch.rand(batch, 2, 7, generator=generator), torch.rand(batch, 1, 7, generator=generator)
        actions = 0.1 * torch.randn(batch, samples, 3, 7, generator=generator)
        turned = torch.cat([rotation(0.1 * robot, CPU) for robot in range(batch)])
        return tuple(part.to(device) for part in (turned, latents, poses, past)), actions.to(device)

    return CameraYawWorldModel(world), ask


FAMILIES = pytest.mark.parametrize("family", [compact, vjepa2])


class Counted:
    """Counts the replays of what it captures."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Captured:
        captured = rehearsed(function, inputs)

        def run() -> Tensor:
            self.replays += 1
            return captured.run()

        return Captured(captured.inputs, run, captured.reads)


@FAMILIES
def test_a_batch_in_the_room_of_a_larger_one_gets_the_same_predictions(family: Callable[..., object]) -> None:
    world, ask = family()
    capture = Counted()
    graphed = Graphed(world, capture)
    graphed.capture(*ask(1, 20, 0), batches=(1, 4))
    assert graphed.sizes == ((1, 20), (4, 20))
    for batch, samples, replays in ((4, 20, 1), (1, 20, 2), (4, 17, 3), (1, 16, 4)):
        context, actions = ask(batch, samples, 1 + batch)
        found = graphed.rollout(context, actions)
        assert torch.allclose(found, world.rollout(context, actions), atol=1e-5)
        assert found.shape[:2] == (batch, samples)
        assert capture.replays == replays


@FAMILIES
def test_a_result_is_not_written_over_by_the_next(family: Callable[..., object]) -> None:
    world, ask = family()
    graphed = Graphed(world, rehearsed)
    graphed.capture(*ask(1, 8, 0), batches=(1, 2))
    first = graphed.rollout(*ask(2, 8, 1))
    kept = first.clone()
    graphed.rollout(*ask(2, 8, 2))
    assert torch.equal(first, kept)


def test_what_wastes_too_much_or_was_not_captured_runs_as_it_is() -> None:
    world, ask = compact()
    capture = Counted()
    graphed = Graphed(world, capture)
    graphed.capture(*ask(1, 20, 0), batches=(4,))
    for batch, samples in ((3, 20), (4, 15), (5, 20), (4, 21)):
        context, actions = ask(batch, samples, 0)
        assert torch.equal(graphed.rollout(context, actions), world.rollout(context, actions))
    context, actions = ask(4, 20, 0)
    longer = torch.cat([actions, actions], dim=2)
    assert torch.equal(graphed.rollout(context, longer), world.rollout(context, longer))
    assert capture.replays == 0


def test_differentiated_rollouts_are_not_replayed() -> None:
    world, ask = compact()
    graphed = Graphed(world, rehearsed)
    graphed.capture(*ask(1, 8, 0), batches=(1,))
    context, actions = ask(1, 8, 0)
    actions.requires_grad_()
    (slope,) = torch.autograd.grad(graphed.rollout(context, actions).sum(), actions)
    assert bool((slope != 0).any())


def test_a_rollout_that_cannot_be_captured_runs_as_it_is_and_the_reason_is_kept() -> None:
    world, ask = compact()

    def short_of_memory(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Captured:
        if len(inputs[-1]) > 2:
            raise RuntimeError("out of\n  memory")
        return rehearsed(function, inputs)

    graphed = Graphed(world, short_of_memory)
    graphed.capture(*ask(1, 8, 0), batches=(4, 2, 1, 8))
    assert graphed.sizes == ((1, 8), (2, 8))
    assert graphed.why_not == "4 x 8 samples: out of memory"
    context, actions = ask(4, 8, 0)
    assert torch.equal(graphed.rollout(context, actions), world.rollout(context, actions))


def test_what_a_graph_reads_is_kept() -> None:
    weight, cache = torch.randn(3, 3), RotaryCache(limit=1)
    made = []

    def function(given: Tensor) -> Tensor:
        table = cache.get("table", lambda: made.append(1) or torch.ones(3))
        return (given @ weight.t()).relu() * table

    function(torch.ones(2, 3))
    captured = rehearsed(function, [torch.ones(2, 3)])
    places = {tensor.data_ptr() for tensor in captured.reads}
    assert places == {weight.data_ptr(), cache.get("table", lambda: None).data_ptr()}
    assert len(made) == 1


def test_a_graph_of_a_rollout_keeps_its_weights_and_tables() -> None:
    predictor = action_predictor(SHAPE)
    world = VJepa2WorldModel(encoder(ENCODER), predictor, size=(16, 24))
    generator = torch.Generator().manual_seed(0)
    inputs = [normalize(torch.randn(1, 1, 6, 32, generator=generator)), torch.rand(1, 1, 7), torch.zeros(1, 0, 7)]
    actions = torch.zeros(1, 2, 2, 7)
    world.rollout(tuple(inputs), actions)  # makes the tables
    read = outside(lambda *given: world.rollout(given[:-1], given[-1]), [*inputs, actions])
    tables = [predictor.rotary(step, 1, inputs[0]).cos for step in range(2)]
    needed = [weight for name, weight in predictor.named_parameters() if "extrinsics" not in name]
    assert {tensor.data_ptr() for tensor in (*needed, *tables)} <= {tensor.data_ptr() for tensor in read}


@pytest.mark.gpu
@FAMILIES
def test_cuda_graphs_replay_what_the_rollout_gives(family: Callable[..., object], tmp_path: Path) -> None:
    device = torch.device("cuda")
    world, ask = family(device)
    graphed = Graphed(world, CudaGraphs(device))
    graphed.capture(*ask(1, 20, 0), batches=(1, 2, 4))
    assert graphed.why_not == ""
    for batch, samples in ((4, 20), (1, 20), (2, 17), (4, 20)):
        context, actions = ask(batch, samples, batch + samples)
        assert torch.allclose(graphed.rollout(context, actions), world.rollout(context, actions), atol=1e-4)


@pytest.mark.gpu
def test_a_cuda_graph_over_the_memory_allowed_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.runtime.cuda_graphs.MEMORY_SHARE", 0.0)
    device = torch.device("cuda")
    world, ask = compact(device)
    graphed = Graphed(world, CudaGraphs(device))
    graphed.capture(*ask(1, 20, 0), batches=(1,))
    assert graphed.sizes == ()
    assert "MiB" in graphed.why_not
