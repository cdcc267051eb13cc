"""Open-loop diagnostics of models that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.exploration import explore
from tests.training.evaluation.test_closed_loop import ArmInFigures, JointModel
from training.evaluation.diagnostics import open_loop, plan_worthiness


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames that an exact model can read, the actions between them, and what the robot proprioception."""
    group = explore("arm", 3, range(24), 30, 16)
    robot = ArmInFigures(16)
    frames = np.stack([[robot.render_state(state) for state in episode] for episode in group.states])
    return frames, group.actions, group.proprioception


def test_an_exact_model_predicts_without_error_and_finds_the_true_actions(
    recorded: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    found = open_loop(JointModel(), *recorded)
    assert found.actions == (5, 10, 15, 20, 25, 30)
    assert max(found.error) < 1e-9
    assert min(found.unchanged) > 0.05
    worth = plan_worthiness(JointModel(), *recorded, horizon=4)
    assert (worth.candidates, worth.first, worth.median_rank) == (24, 1.0, 0.0)


def test_a_model_that_is_wrong_about_a_sign_is_told_apart(recorded: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    frames, actions, proprioception = recorded
    found = open_loop(JointModel(), frames, -actions, proprioception)
    assert found.error[-1] > found.unchanged[-1]
    assert plan_worthiness(JointModel(), frames, -actions, proprioception, horizon=4).median_rank > 0.1


def test_episodes_shorter_than_the_horizon_are_refused(recorded: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="episodes must have 40 steps, got 30"):
        plan_worthiness(JointModel(), *recorded, horizon=8)
