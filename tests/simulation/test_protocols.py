"""Protocols judge hand-made states as published, and published actions become the robots'."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.manifest import Pair
from simulation.protocols import ProtocolError, action_scale, protocol
from simulation.tasks import make

GOAL = np.array([100.0, 100.0, 250.0, 250.0, 0.1, 3.0, 4.0])


def off(pusher: float, block: float, degrees: float) -> np.ndarray:
    return GOAL + np.array([pusher, 0.0, block, 0.0, np.deg2rad(degrees), 0.0, 0.0])


@pytest.mark.parametrize(
    ("state", "left"),
    [
        (off(0, 0, 0), {"lewm"}),
        (off(200, 5, 5), {"lewm", "moderate"}),
        (off(12, 12, 12), {"lewm", "strict"}),
        (off(15, 15, 0), {"lewm", "moderate", "strict"}),
    ],
)
def test_pairs_solved_by_a_protocols_own_rule_are_left_out(state: np.ndarray, left: set[str]) -> None:
    kept = {name for name in ("lewm", "moderate", "strict") if protocol(name).prepared("pusht", [Pair(0, state, GOAL)])}
    assert kept == left


def test_only_the_clear_protocols_start_at_rest() -> None:
    pair = Pair(0, off(200, 100, 0), GOAL)
    assert protocol("lewm").prepared("pusht", [pair])[0].start_state[5:].tolist() == [3.0, 4.0]
    assert protocol("strict").prepared("pusht", [pair])[0].start_state[5:].tolist() == [0.0, 0.0]


def test_a_published_push_t_action_is_a_share_of_100_px() -> None:
    own = make("pusht", 16).action_names
    assert action_scale("pusht", own, ("x", "y"), ("1", "1"), "lewm") == 100.0
    assert action_scale("pusht", own, own, ("px", "px"), "ours") == 1.0


@pytest.mark.parametrize("names", [("x", "y", "z"), (), ("dx", "dy")])
def test_actions_of_another_robot_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError, match="but robot pusht in"):
        action_scale("pusht", ("displacement_x", "displacement_y"), names, ("1",) * len(names), "other")


def test_unknown_protocols_and_rules_are_named() -> None:
    with pytest.raises(ProtocolError, match="must be one of lewm, moderate, strict, got 'loose'"):
        protocol("loose")
    with pytest.raises(ProtocolError, match="tworoom must be judged by one of lewm, strict"):
        protocol("moderate").success_rule("tworoom")
