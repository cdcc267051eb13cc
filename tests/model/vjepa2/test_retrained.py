"""The action-conditioned predictors that jepa-wms released: their window, their files, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.families import ImportOptions, import_weights, inspect
from model.checkpoints.foreign import Foreign
from model.checkpoints.published import RETRAINED, RetrainedPredictor
from model.checkpoints.state_dict import CheckpointError
from model.registry import load
from model.vjepa2 import ActionPredictor, ActionPredictorConfig
from model.vjepa2.importing import import_predictor
from model.vjepa2.model import VJepa2Model
from model.vjepa2.poses import compose
from model.vjepa2.rollout import normalize, rollout
from tests.model.vjepa2.test_huggingface import hugging_face_folder
from tests.support.model.reference_files import worst
from tests.support.model.tiny_vjepa2 import action_predictor

SHAPE = ActionPredictorConfig(
    latent_width=32,
    width=24,
    depth=2,
    heads=2,
    mlp_hidden=48,
    grid=(2, 2),
    poses=False,
    extrinsics_layer=False,
    window=2,
)
WITH_POSES = replace(SHAPE, poses=True)
RELEASE = RetrainedPredictor("tiny_ac", "tiny_ac.pth.tar", SHAPE)


def predictor_file(
    path: Path, network: ActionPredictor, poses: str = "proprio_encoder", more: Mapping[str, Tensor] | None = None
) -> Path:
    """As it was released: wrappers' prefixes, poses under the name of proprioception, sections that are None."""
    held = {f"module.{key.replace('state_encoder', poses)}": tensor for key, tensor in network.state_dict().items()}
    sections = {"predictor": held | dict(more or {}), "action_encoder": None, "proprio_encoder": None}
    torch.save({**sections, "opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 315}, path)
    return path


@pytest.mark.parametrize("config", [SHAPE, WITH_POSES, replace(WITH_POSES, window=3), replace(SHAPE, window=1)])
@pytest.mark.parametrize("history", [1, 2, 4])
@torch.inference_mode()
def test_a_rollout_sees_a_window_whose_first_frame_is_always_number_0(
    config: ActionPredictorConfig, history: int
) -> None:
    """Slow reference: every step predicts its whole window at once, from its frames alone."""
    network, window = action_predictor(config).double(), config.window
    assert window is not None
    latents = normalize(torch.randn(2, history, 4, 32, dtype=torch.float64))
    poses = torch.rand(2, history, 7, dtype=torch.float64) * 0.1
    past, actions = torch.rand(2, history - 1, 7).double() * 0.1, torch.rand(2, 3, 5, 7).double() * 0.1
    found = rollout(network, latents, poses, past, actions)
    for robot in range(2):
        for sample in range(3):
            frames, states = list(latents[robot]), list(poses[robot])
            done = list(past[robot])
            for time in range(5):
                done.append(actions[robot, sample, time])
                newest = slice(-min(window, len(frames)), None)
                seen = (torch.stack(part[newest]).unsqueeze(0) for part in (frames, done, states))
                x, given, proprioception = seen
                predicted = normalize(network(x.flatten(1, 2), given, proprioception))[0, -4:]
                assert worst(found[robot, sample, time], predicted) <= 1e-10
                frames.append(predicted)
                states.append(compose(states[-1], done[-1]))


@pytest.mark.parametrize("chunk", [1, 2, 64])
@torch.inference_mode()
def test_windows_do_not_depend_on_how_many_samples_go_together(chunk: int) -> None:
    network = action_predictor(SHAPE)
    given = normalize(torch.randn(1, 1, 4, 32)), torch.zeros(1, 1, 7), torch.zeros(1, 0, 7), torch.rand(1, 5, 4, 7)
    assert worst(rollout(network, *given, chunk=chunk), rollout(network, *given)) <= 1e-5


def test_a_released_predictor_and_its_encoder_become_a_planner(tmp_path: Path) -> None:
    folder, network = hugging_face_folder(tmp_path / "vjepa2-tiny"), action_predictor(SHAPE)
    file = predictor_file(tmp_path / "tiny_ac.pth.tar", network)
    options = ImportOptions(dtype=torch.float32, encoder_weights=folder)
    done = import_predictor(Foreign(file), tmp_path / "out", options, RELEASE)
    assert done.license.startswith("CC-BY-NC 4.0")
    model = load(str(tmp_path / "out"), torch.device("cpu"))
    assert isinstance(model, VJepa2Model)
    config = model.package.config
    assert config.proprioception_names == ()
    assert config.image.crop_policy == "planning"
    assert config.action is not None
    assert config.action.high == (0.1,) * 6 + (0.75,)
    assert (config.planner.samples, config.planner.iterations, config.planner.horizon) == (300, 15, 3)
    latent = model.encode(torch.randint(256, (1, 16, 16, 3), dtype=torch.uint8))[0]
    actions = torch.rand(1, 2, 3, 7) * 0.1
    predicted = model.rollout(model.context([latent], None), actions)
    nothing = torch.zeros(1, 1, 7), torch.zeros(1, 0, 7)
    assert worst(predicted, rollout(network, latent[None, None], *nothing, actions)) <= 1e-5
    assert "CC-BY-NC 4.0" in model.package.card()


@pytest.mark.parametrize("poses", ["proprio_encoder", "state_encoder"])
def test_the_repackaged_predictor_takes_poses_under_either_name_and_leaves_the_camera_out(
    poses: str, tmp_path: Path
) -> None:
    folder, network = hugging_face_folder(tmp_path / "vjepa2-tiny"), action_predictor(WITH_POSES)
    camera = {"module.extrinsics_encoder.weight": torch.zeros(24, 6), "module.extrinsics_encoder.bias": torch.zeros(24)}
    file = predictor_file(tmp_path / "tiny_ac.pth.tar", network, poses, camera)
    options = ImportOptions(dtype=torch.float32, encoder_weights=folder)
    import_predictor(Foreign(file), tmp_path / "out", options, replace(RELEASE, predictor=WITH_POSES))
    model = load(str(tmp_path / "out"), torch.device("cpu"))
    assert isinstance(model, VJepa2Model)
    assert len(model.package.config.proprioception_names) == 7
    latent = model.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))[0]
    with pytest.raises(ValueError, match="proprioception: must be the robot's pose for this model, got none"):
        model.context([latent], None)
    assert model.rollout(model.context([latent], torch.zeros(1, 7)), torch.zeros(1, 1, 2, 7)).shape == (1, 1, 2, 4, 32)


def test_released_files_are_known_by_name_and_by_whether_they_take_poses() -> None:
    with torch.device("meta"):
        for released in RETRAINED:
            keys = ActionPredictor(released.predictor).state_dict()
            assert ("state_encoder.weight" in keys) == (released.name == "vjepa2_ac_oss")
            assert "extrinsics_encoder.weight" not in keys
            assert keys["predictor_proj.weight"].shape == (1408, 1024)


def test_predictors_that_do_not_belong_are_refused_by_name(tmp_path: Path) -> None:
    folder, out = hugging_face_folder(tmp_path / "vjepa2-tiny"), tmp_path / "out"
    file = predictor_file(tmp_path / "vjepa2_ac_droid.pth.tar", action_predictor(SHAPE))
    with pytest.raises(
        CheckpointError, match="is not vjepa2_ac_droid: predictor: key predictor_embed.weight must have"
    ):
        import_weights(file, out, ImportOptions(encoder_weights=folder))
    assert inspect(file).misfit
    with pytest.raises(CheckpointError, match="holds an action-conditioned predictor alone"):
        import_predictor(Foreign(file), out, ImportOptions(), RELEASE)
    twice = predictor_file(
        tmp_path / "twice.pth.tar", action_predictor(WITH_POSES), more={"state_encoder.weight": torch.zeros(24, 7)}
    )
    with pytest.raises(CheckpointError, match="is there twice, by either of its names"):
        import_predictor(Foreign(twice), out, ImportOptions(encoder_weights=folder), RELEASE)
    wide = replace(RELEASE, predictor=replace(SHAPE, latent_width=48))
    with pytest.raises(CheckpointError, match="is not the encoder of tiny_ac: width must be 48, got 32"):
        import_predictor(Foreign(file), out, ImportOptions(encoder_weights=folder), wide)
    assert not out.exists()


def test_a_window_and_a_camera_layer_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="window: must be at least 1, got 0"):
        replace(SHAPE, window=0)
    with pytest.raises(ValueError, match="extrinsics_layer: must be there where extrinsics are used"):
        replace(SHAPE, extrinsics=True)
