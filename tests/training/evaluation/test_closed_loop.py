"""Closed-loop evaluation of models that are known exactly: one that sees the arm's joints, and one that is blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from presage.limits import ActionLimits, fault
from torch import Tensor

from model.interface import ClipEmbedding
from model.package import ActionSpec, ImageSpec, Package, PackageConfig, PackageError, PlannerDefaults, limited
from planner.optimizers.cem import CEM
from simulation.manifest import Manifest, Pair
from simulation.policies import oracle_policy, random_policy
from simulation.robots.arm import ACTION_NAMES, ACTION_UNITS, ELBOW_LIMIT, MAX_JOINT_SPEED, RATE_HZ, Arm
from training.evaluation.closed_loop import Evaluation, evaluate, run_episode, success_rate
from training.evaluation.statistics import episode_seed

CONFIG = PackageConfig(
    name="joints",
    family="test",
    image=ImageSpec(height=16, width=16),
    latent_shape=(4,),
    network={},
    action=ActionSpec(
        names=ACTION_NAMES,
        units=ACTION_UNITS,
        low=(-MAX_JOINT_SPEED,) * 2,
        high=(MAX_JOINT_SPEED,) * 2,
        rate_hz=RATE_HZ,
        block=5,
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
    ),
    planner=PlannerDefaults(samples=48, iterations=4, elites=6, horizon=4, execute=5),
)
PACKAGE = Package(CONFIG, Path(), "0" * 64)
CPU = torch.device("cpu")
SEARCH = CEM(samples=48, iterations=4, elites=6, horizon=4)


class ArmInFigures(Arm):
    """The arm seen through a camera whose picture is the joint angles' own bytes."""

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        picture = np.zeros((16, 16, 3), np.uint8)
        picture.reshape(-1)[:8] = np.asarray(state, "<f4").view(np.uint8)
        return picture


@dataclass(frozen=True)
class JointModel:
    """Reads the angles from the picture and predicts them exactly; `sight` 0 makes every latent the same."""

    package: Package = PACKAGE
    sight: float = 1.0
    device: torch.device = CPU
    proposer: None = None
    block: int = 5

    def encode(self, frames: Tensor) -> Tensor:
        return self.latent(frames.flatten(1)[:, :8].contiguous().view(torch.float32))

    def latent(self, angles: Tensor) -> Tensor:
        return self.sight * torch.cat([angles.cos(), angles.sin()], dim=-1)

    def observation_warnings(self, frame: Tensor, proprioception: Tensor | None) -> tuple[str, ...]:
        return ()

    def embed_clip(self, frames: Tensor) -> ClipEmbedding:
        latents = self.encode(frames)
        return ClipEmbedding(latents.mean(0), latents, latents.unsqueeze(1))

    def context(self, latents: Sequence[Tensor], proprioception: Tensor | None) -> tuple[Tensor, ...]:
        assert proprioception is None
        assert len(latents) == 1
        return (latents[-1].unsqueeze(0),)

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        cos, sin = context[0].split(2, dim=-1)
        angles = torch.atan2(sin, cos)[:, None].expand(-1, actions.shape[1], -1)
        seen = []
        for step in range(actions.shape[2]):
            angles = angles + actions[:, :, step] / RATE_HZ
            elbow = angles[..., 1].clamp(-ELBOW_LIMIT, ELBOW_LIMIT)
            angles = torch.stack([angles[..., 0], elbow], dim=-1)
            seen.append(self.latent(angles))
        return torch.stack(seen[self.block - 1 :: self.block], dim=2)


def evaluated(model: JointModel, pairs: Sequence[Pair], seed: int = 7) -> Evaluation:
    return evaluate(
        model,
        SEARCH,
        lambda: ArmInFigures(16),
        pairs,
        seed=seed,
        random_policy=random_policy,
        oracle_policy=oracle_policy,
    )


def test_what_a_robot_is_told_over_an_episode_keeps_to_the_packages_limits() -> None:
    """From plan to plan, too: four plans of five actions each."""
    limits = ActionLimits(slew=(0.3, 0.3), dwell=(2, 3), max_norm=2.0)
    told: list[NDArray[np.float32]] = []

    class Listening(ArmInFigures):
        def act(self, action: NDArray[np.float32]) -> None:
            told.append(np.array(action))
            super().act(action)

    model = JointModel(Package(limited(CONFIG, limits), Path(), "0" * 64))
    (pair,) = Manifest.load("arm").pairs(1, 7)
    run_episode(model, SEARCH, Listening(16), pair, seed=3, budget_steps=20)
    assert len(told) > 5
    assert fault(np.stack(told), ACTION_NAMES, limits, (0.0, 0.0)) == ""


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return Manifest.load("arm").pairs(30, 7)


@pytest.fixture(scope="module")
def exact(pairs: list[Pair]) -> Evaluation:
    return evaluated(JointModel(), pairs)


def test_an_exact_model_reaches_nearly_every_goal(exact: Evaluation) -> None:
    assert exact.successes >= 29
    assert all(episode.steps <= 50 for episode in exact.episodes)
    low, high = exact.interval
    assert low <= success_rate(exact.episodes) <= high


def test_the_oracle_reaches_every_goal_and_random_few(exact: Evaluation) -> None:
    assert exact.oracle is not None
    assert success_rate(exact.oracle) == 1.0
    assert success_rate(exact.random) <= 0.3


def test_a_blind_model_does_no_better_than_random(pairs: list[Pair], exact: Evaluation) -> None:
    blind = evaluated(JointModel(sight=0.0), pairs)
    assert success_rate(blind.episodes) <= success_rate(exact.random) + 0.1
    assert blind.random == exact.random


def test_outcomes_depend_neither_on_the_order_of_pairs_nor_on_their_number(
    pairs: list[Pair], exact: Evaluation
) -> None:
    some = evaluated(JointModel(), [pairs[4], pairs[1]])
    whole = {episode.pair: (episode.success, episode.steps) for episode in exact.episodes}
    assert [whole[episode.pair] for episode in some.episodes] == [(e.success, e.steps) for e in some.episodes]
    assert some.random == (exact.random[4], exact.random[1])


def test_another_seed_searches_otherwise(pairs: list[Pair], exact: Evaluation) -> None:
    other = evaluated(JointModel(), pairs[:10], seed=8)
    assert [e.steps for e in other.episodes] != [e.steps for e in exact.episodes[:10]]


def test_every_plan_is_timed_and_made_after_the_actions_of_the_last_one(exact: Evaluation) -> None:
    assert all(len(episode.plan_ms) == -(-episode.steps // 5) for episode in exact.episodes)
    median, slow = exact.plan_ms(50), exact.plan_ms(95)
    assert median is not None
    assert slow is not None
    assert 0 < median <= slow


def test_the_budget_ends_an_episode_in_the_middle_of_a_plan(pairs: list[Pair]) -> None:
    model = JointModel(sight=0.0)
    episode = run_episode(model, SEARCH, ArmInFigures(16), pairs[0], episode_seed(7, pairs[0].index), 12)
    assert (episode.success, episode.steps, len(episode.plan_ms)) == (False, 12, 3)


def test_pairs_solved_at_their_start_are_left_out_and_counted(pairs: list[Pair]) -> None:
    solved = replace(pairs[0], goal_state=pairs[0].start_state + 0.01)
    assert evaluated(JointModel(), [solved, pairs[1]]).initially_solved == 1
    with pytest.raises(ValueError, match="pairs must hold one that is not solved at its start, got 1 pairs"):
        evaluated(JointModel(), [solved])


def test_a_model_that_only_embeds_is_refused(pairs: list[Pair]) -> None:
    model = JointModel(package=Package(replace(CONFIG, action=None), Path(), ""))
    with pytest.raises(PackageError, match="joints only embeds"):
        evaluated(model, pairs[:1])


@dataclass(frozen=True)
class Twice:
    """A rule that wants a success for two steps in a row."""

    name: str = "twice"

    def met(self, states: NDArray[np.float64], goal: NDArray[np.float64]) -> bool:
        robot, held = ArmInFigures(16), 0
        for state in states:
            robot.set_state(state)
            held = held + 1 if robot.is_success(goal) else 0
            if held == 2:
                return True
        return False


def test_a_try_goes_on_for_the_other_rules_and_counts_its_first_success() -> None:
    pair = Manifest.load("arm").pairs(1, seed=3)[0]
    first = run_episode(JointModel(), SEARCH, ArmInFigures(16), pair, 1, 50)
    longer = run_episode(JointModel(), SEARCH, ArmInFigures(16), pair, 1, 50, rules=(Twice(),))
    assert first.success
    assert (longer.success, longer.steps) == (True, first.steps)
    assert "twice" in longer.met
    assert len(longer.states) > len(first.states)
