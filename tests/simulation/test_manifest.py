"""The committed pairs: reproducible from their seeds, possible, never solved at the start."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from simulation.episodes import HELD_OUT_SEED_START
from simulation.manifest import REPLAYED, Manifest, ManifestError, build_manifest, manifest_path, pair_count
from simulation.robots import arm, arm_push, cube, pusht, reacher, tworoom
from simulation.tasks import TASKS, make
from tests.support.simulation.simulators import require

needs_simulator = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="gym-pusht is not installed")
quiet = pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning", "ignore:.*pkg_resources:UserWarning")
RULES = {
    "arm": arm.successes,
    "arm-push": arm_push.successes,
    "cube": cube.successes,
    "pusht": pusht.successes,
    "reacher": reacher.successes,
    "tworoom": tworoom.successes,
}


@pytest.mark.parametrize("task", TASKS)
def test_a_manifest_holds_the_promised_pairs_from_held_out_seeds(task: str) -> None:
    manifest = Manifest.load(task)
    assert len(manifest) == pair_count(task)
    assert manifest.seed >= HELD_OUT_SEED_START
    assert len(np.unique(manifest.starts, axis=0)) == len(manifest)


@pytest.mark.parametrize("task", TASKS)
def test_no_pair_is_solved_at_the_start(task: str) -> None:
    manifest = Manifest.load(task)
    assert not RULES[task](manifest.starts, manifest.goals).any()


@pytest.mark.parametrize(
    "task", ["arm", "arm-push", "cube", "reacher", "tworoom", pytest.param("pusht", marks=[needs_simulator, quiet])]
)
def test_every_state_can_be_set(task: str) -> None:
    require(task)
    manifest, robot = Manifest.load(task), make(task, 16)
    for state in [*manifest.starts, *manifest.goals]:
        robot.set_state(state)
        np.testing.assert_allclose(robot.state, state, atol=1e-9)


def test_the_arms_manifest_is_what_its_seeds_give() -> None:
    built = build_manifest("arm", pair_count("arm"))
    assert json.loads(built.to_json()) == json.loads(manifest_path("arm").read_text())
    assert built.to_json() == manifest_path("arm").read_text()


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("arm-push", 40),
        ("cube", 4),
        ("reacher", 8),
        ("tworoom", 400),
        pytest.param("pusht", 4, marks=[needs_simulator, quiet]),
    ],
)
def test_the_first_pairs_of_a_manifest_are_what_its_seeds_give(task: str, count: int) -> None:
    require(task)
    built, committed = build_manifest(task, count), Manifest.load(task)
    np.testing.assert_allclose(built.starts, committed.starts[:count], atol=1e-3)
    np.testing.assert_allclose(built.goals, committed.goals[:count], atol=1e-3)
    assert (built.actions is None) == (committed.actions is None) == (task not in REPLAYED)
    if built.actions is not None and committed.actions is not None:
        np.testing.assert_allclose(built.actions, committed.actions[:count], atol=1e-3)


def test_a_choice_of_pairs_follows_its_seed_and_repeats_none() -> None:
    manifest = Manifest.load("arm")
    chosen = [pair.index for pair in manifest.pairs(100, seed=7)]
    assert len(set(chosen)) == 100
    assert chosen == [pair.index for pair in manifest.pairs(100, seed=7)]
    assert chosen[:20] == [pair.index for pair in manifest.pairs(20, seed=7)]
    assert chosen != [pair.index for pair in manifest.pairs(100, seed=8)]
    first = manifest.pairs(1, seed=7)[0]
    np.testing.assert_array_equal(first.start_state, manifest.starts[first.index])
    np.testing.assert_array_equal(first.goal_state, manifest.goals[first.index])


@pytest.mark.parametrize("count", [0, 401])
def test_more_pairs_than_there_are_is_an_error_that_says_how_many(count: int) -> None:
    with pytest.raises(ManifestError, match="count: must be within 1 and 400"):
        Manifest.load("arm").pairs(count, seed=0)


@pytest.mark.parametrize("offset", [50, 75])
def test_goals_further_ahead_have_pairs_of_their_own(offset: int) -> None:
    for task in ("arm", "arm-push", "pusht", "reacher", "tworoom"):
        manifest = Manifest.load(task, offset)
        assert (len(manifest), manifest.offset) == (pair_count(task, offset), offset)
        assert not RULES[task](manifest.starts, manifest.goals).any()
    built = build_manifest("arm", pair_count("arm", offset), offset=offset)
    assert built.to_json() == manifest_path("arm", offset).read_text()


def test_a_task_without_a_manifest_is_named() -> None:
    with pytest.raises(ManifestError, match="no manifest for 'walk'"):
        Manifest.load("walk")


def test_a_manifest_of_training_seeds_is_refused() -> None:
    with pytest.raises(ManifestError, match="seed: must be at least"):
        Manifest("arm", 5, 0, np.zeros((1, 2)), np.ones((1, 2)))
