"""The world model end to end: images to latents to predictions, and its package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.importer import import_checkpoint
from model.package import PackageError, read_package
from model.preprocessing import ObservationError
from model.vjepa2 import ActionPredictor, Encoder, VJepa2WorldModel
from model.vjepa2.model import VJepa2Model
from model.vjepa2.rollout import normalize
from model.vjepa2.world_model import CLIP_WINDOW, encode_clip
from planner.types import Problem
from tests.support.model.reference_files import fixture, worst
from tests.support.model.tiny_vjepa2 import action_predictor, encoder, masked_predictor, published
from tests.support.planner.recordings import recorded_search

POSE = torch.tensor([[0.4, 0.0, 0.3, 3.1, 0.0, -1.9, 0.5]])


def reference_world_model() -> VJepa2WorldModel:
    sees, acts = fixture("encoder_hd32"), fixture("ac_predictor")
    return VJepa2WorldModel(
        Encoder.from_reference(sees["config"], sees["state_dict"]),
        ActionPredictor.from_reference(acts["config"], acts["state_dict"]),
        (64, 64),
    )


def test_world_model_parity_from_pixels_to_latents() -> None:
    reference = fixture("world_model_plan")
    world = reference_world_model()
    images = torch.stack([reference["inputs"]["image"], reference["inputs"]["goal_image"]])
    seen, goal = world.encode(images)
    assert worst(seen.unsqueeze(0), reference["outputs"]["h1.z"]) <= 1e-5
    assert worst(goal.unsqueeze(0), reference["outputs"]["h1.z_goal"]) <= 1e-5


class Watched:
    """A world model that remembers which candidates it was asked about, and what it predicted for them."""

    block = 1

    def __init__(self, world: VJepa2WorldModel) -> None:
        self.world = world
        self.asked: list[tuple[Tensor, Tensor]] = []

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        predicted = self.world.rollout(context, actions)
        self.asked.append((actions, predicted))
        return predicted


@pytest.mark.parametrize("case", ["h1", "h2"])
def test_world_model_planning_parity_from_pixels_to_actions(case: str) -> None:
    """The published search, replayed draw by draw: the same costs, the same elites, the same actions."""
    reference = fixture("world_model_plan")
    inputs, settings = reference["inputs"], reference["config"][case]
    world = Watched(reference_world_model())
    seen, goal = world.world.encode(torch.stack([inputs["image"], inputs["goal_image"]]))
    search, space = recorded_search(settings, inputs[f"{case}.noise"])
    plan = search.plan(world, Problem(world.world.context([seen], inputs["pose"][0]), goal, space, seed=0))
    assert worst(plan.actions, reference["outputs"][f"{case}.result"]) <= 1e-6
    published = reference["outputs"][f"{case}.sims"]
    assert len(world.asked) == len(published) + 1  # the last mean is priced, too
    for (_, predicted), costs in zip(world.asked, published, strict=False):
        ours = (predicted[0, :, -1] - goal).abs().mean(dim=(1, 2))
        assert worst(ours, costs) <= 1e-5
        assert set(ours.topk(search.elites, largest=False).indices.tolist()) == set(
            costs.topk(search.elites, largest=False).indices.tolist()
        )


def small_world(chunk: int | None = None) -> VJepa2WorldModel:
    return VJepa2WorldModel(encoder(), action_predictor(), (16, 24), crop_policy="exact", chunk=chunk)


def test_encoding_many_frames_is_encoding_each() -> None:
    world, frames = small_world(), torch.randint(256, (20, 16, 24, 3), dtype=torch.uint8)
    together = world.encode(frames)
    assert together.shape == (20, 6, 32)
    assert worst(together[17:18], world.encode(frames[17:18])) <= 1e-5
    assert worst(together, normalize(together)) <= 1e-4


def test_a_history_gives_the_actions_between_its_poses() -> None:
    world = small_world()
    latents = world.encode(torch.randint(256, (3, 16, 24, 3), dtype=torch.uint8))
    poses = POSE.repeat(3, 1)
    poses[:, 0] += torch.tensor([0.0, 0.02, 0.05])
    tokens, seen, past = world.context(list(latents), poses)
    assert tokens.shape == (1, 3, 6, 32)
    assert torch.equal(seen[0], poses)
    assert torch.allclose(past[0, :, 0], torch.tensor([0.02, 0.03]), atol=1e-6)
    assert world.rollout((tokens, seen, past), torch.zeros(1, 4, 2, 7)).shape == (1, 4, 2, 6, 32)


def test_wrong_inputs_are_refused_by_name() -> None:
    world = small_world()
    latents = world.encode(torch.zeros(1, 16, 24, 3, dtype=torch.uint8))
    degrees = POSE.clone()
    degrees[0, 3] = -179.0
    with pytest.raises(ObservationError, match="in radians"):
        world.context([latents[0]], degrees)
    with pytest.raises(ValueError, match="poses: must be one for each of the latents, got 1 for 2"):
        world.context([latents[0]] * 2, POSE)
    with pytest.raises(ObservationError, match="frames must be 16 x 24"):
        world.encode(torch.zeros(1, 24, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="size: must give the predictor's grid"):
        VJepa2WorldModel(encoder(), action_predictor(), (16, 16))


def test_clips_of_any_length_are_embedded() -> None:
    network = encoder()
    for frames, tubelets in ((1, 1), (2, 1), (5, 3), (CLIP_WINDOW + 1, CLIP_WINDOW // 2 + 1)):
        clip = torch.randint(256, (frames, 16, 16, 3), dtype=torch.uint8)
        assert encode_clip(network, clip, (16, 16), "exact").shape == (tubelets, 4, 32)


def write_checkpoint(folder: Path, acts: bool) -> Path:
    predictor = action_predictor(published(True).predictor) if acts else masked_predictor()  # type: ignore[arg-type]
    weights = {f"module.backbone.{key}": value for key, value in encoder().state_dict().items()}
    path = folder / "tiny.pt"
    moved = {f"module.{key}": value for key, value in predictor.state_dict().items()}
    torch.save({"encoder": weights, "target_encoder": weights, "predictor": moved, "epoch": 3}, path)
    return path


def test_an_imported_package_acts_like_the_networks_it_came_from(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, acts=True)
    import_checkpoint(source, tmp_path / "package", torch.float32, model=published(acts=True))
    loaded = VJepa2Model.from_package(read_package(tmp_path / "package"), torch.device("cpu"))
    direct = VJepa2WorldModel(encoder(), action_predictor(published(True).predictor), (16, 16))  # type: ignore[arg-type]
    frames = torch.randint(256, (2, 20, 30, 3), dtype=torch.uint8)
    latents = loaded.encode(frames)
    assert worst(latents, direct.encode(frames)) == 0.0
    actions = 0.05 * torch.randn(1, 3, 2, 7)
    got = loaded.rollout(loaded.context(list(latents), POSE.repeat(2, 1)), actions)
    assert worst(got, direct.rollout(direct.context(list(latents), POSE.repeat(2, 1)), actions)) <= 1e-5
    assert loaded.package.config.action is not None
    assert loaded.package.config.image.crop_policy == "planning"
    assert loaded.embed_clip(frames).tokens.shape == (1, 4, 32)


def test_an_imported_package_without_actions_embeds_and_does_not_roll_out(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, acts=False)
    import_checkpoint(source, tmp_path / "package", torch.bfloat16, model=published(acts=False))
    loaded = VJepa2Model.from_package(read_package(tmp_path / "package"), torch.device("cpu"))
    embedding = loaded.embed_clip(torch.zeros(4, 16, 16, 3, dtype=torch.uint8))
    assert embedding.pooled.shape == (32,)
    assert embedding.per_frame.shape == (2, 32)
    with pytest.raises(PackageError, match="tiny only embeds"):
        loaded.rollout((), torch.zeros(1, 1, 1, 7))


def test_an_imported_package_whose_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, acts=True)
    import_checkpoint(source, tmp_path / "package", model=published(acts=True))
    config = (tmp_path / "package" / "config.json").read_text()
    (tmp_path / "package" / "config.json").write_text(config.replace('"depth": 2', '"depth": 3', 1))
    with pytest.raises(PackageError, match=r"encoder: key blocks\.2\.norm1\.weight is missing"):
        VJepa2Model.from_package(read_package(tmp_path / "package"), torch.device("cpu"))
