"""The slow references choose what the fast path chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.baselines.compact import PlainLoop, load_network
from benchmarks.baselines.lewm import LeWMLoop
from benchmarks.baselines.vjepa2_ac import PublishedLoop, poses_after, predict
from benchmarks.planning import lewm
from model.lewm.config import from_released
from model.lewm.network import LeWM
from model.registry import as_trained, find
from model.vjepa2.action_predictor import ActionPredictorConfig
from model.vjepa2.poses import compose
from model.vjepa2.rollout import normalize
from model.vjepa2.world_model import VJepa2WorldModel
from planner.noise import Stream
from planner.optimizers.cem import CEM
from planner.types import Problem
from planner.vjepa2_ac import vjepa2_ac_space
from server.worker.model_adapter import action_space
from simulation.tasks import make
from tests.support.model.lewm import released_config
from tests.support.model.tiny_vjepa2 import ENCODER, action_predictor, encoder
from tests.support.planner.recordings import RecordedNoise

CPU = torch.device("cpu")
SHAPE = ActionPredictorConfig(latent_width=32, width=24, depth=3, heads=2, mlp_hidden=48, grid=(2, 3))


def test_the_published_forward_is_ours() -> None:
    predictor = action_predictor(SHAPE)
    generator = torch.Generator().manual_seed(0)
    seen, actions = torch.randn(3, 4 * 6, 32, generator=generator), torch.randn(3, 4, 7, generator=generator)
    states = torch.randn(3, 4, 7, generator=generator)
    assert torch.allclose(predict(predictor, seen, actions, states), predictor(seen, actions, states), atol=1e-5)


def test_poses_on_the_host_are_ours() -> None:
    generator = torch.Generator().manual_seed(0)
    poses, actions = (torch.rand(20, 7, generator=generator) - 0.5 for _ in range(2))
    reached = torch.from_numpy(poses_after(poses.numpy(), actions.numpy()))
    assert torch.allclose(reached, compose(poses, actions), atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_published_loop_and_the_fast_path_choose_the_same_actions(horizon: int) -> None:
    predictor = action_predictor(SHAPE)
    world_model = VJepa2WorldModel(encoder(ENCODER), predictor, size=(16, 24))
    loop = PublishedLoop(samples=24, iterations=4, elites=5, horizon=horizon)
    generator = torch.Generator().manual_seed(1)
    latent, goal = normalize(torch.randn(2, 6, 32, generator=generator))
    pose = torch.tensor([0.4, 0.0, 0.3, 3.0, 0.1, -1.0, 0.5])
    draws = torch.randn(4, horizon, 24, 4, generator=generator)
    slow = loop.plan(predictor, latent, pose, goal, draws)

    rotation = torch.zeros(*draws.shape[:3], 3)
    noise = RecordedNoise(torch.cat([draws[..., :3], rotation, draws[..., 3:]], dim=-1))
    fast = replace(CEM.vjepa2_ac_paper(), samples=24, iterations=4, elites=5, horizon=horizon, noise=noise)
    problem = Problem(world_model.context([latent], pose[None]), goal, vjepa2_ac_space(), seed=0)
    assert torch.allclose(fast.plan(world_model, problem).actions, slow, atol=1e-5)
    assert bool((slow[:, :3].abs() > 1e-3).any())


@pytest.mark.parametrize("stepwise", [True, False])
def test_the_plain_loop_and_the_fast_path_choose_the_same_actions(stepwise: bool) -> None:
    model = as_trained(find("arm"), CPU)
    robot = make("arm")
    image, goal_image = (
        torch.from_numpy(robot.render_state([angle, 0.5, *([0.0] * (len(robot.state) - 2))]).copy())
        for angle in (0.2, 1.0)
    )
    fast = replace(CEM.lewm_paper(unbounded=False), samples=40, iterations=3, elites=8)
    space, action = action_space(model), model.package.config.action
    assert space is not None
    assert action is not None
    problem = Problem((model.encode(image[None]),), model.encode(goal_image[None])[0], space, seed=3)

    def draw(iteration: int) -> torch.Tensor:
        return torch.randn(40, 25, 2, generator=Stream(3, iteration).generator(CPU))

    loop = PlainLoop(samples=40, iterations=3, elites=8, stepwise=stepwise)
    slow = loop.plan(load_network(model.package), action, image, goal_image, draw)
    assert torch.allclose(fast.plan(model, problem).actions, slow, atol=1e-4)
    assert float(slow.abs().max()) > 0.1


def test_the_published_lewm_loop_and_the_fast_path_choose_the_same_actions(tmp_path: Path) -> None:
    config = from_released(released_config())
    model = lewm.random_model(config, tmp_path)
    network = LeWM(config).eval().requires_grad_(False)
    network.load_state_dict(model.package.weights())
    image, goal_image = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    search = replace(CEM.lewm_paper(), samples=40, iterations=3, elites=8)

    def draw(iteration: int) -> torch.Tensor:
        return torch.randn(40, 25, 2, generator=Stream(3, iteration).generator(CPU))

    slow = LeWMLoop(40, 3, 8).plan(network, lewm.ACTION, image, goal_image, draw)
    context = model.context([model.encode(image[None])[0]], None)
    problem = Problem(context, model.encode(goal_image[None])[0], lewm.SPACE, seed=3)
    assert torch.allclose(search.plan(model, problem).actions, slow, atol=1e-5)


def test_the_table_of_lewm_says_what_was_measured() -> None:
    search = replace(CEM.lewm_paper(), samples=20, iterations=1, elites=4, horizon=2)
    table, ratios = lewm.plans(from_released(released_config()), search, repeats=1)
    assert [row[0] for row in table.rows] == ["as published, float32", "Presage, float32", "Presage, bfloat16"]
    assert set(ratios) == {"float32", "bfloat16"}
