"""Collected episodes: the same from any number of workers, true to the physics, and kept without loss."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simulation.episodes import (
    GROUP,
    HELD_OUT_SEED_START,
    TRAINING_SEED_LIMIT,
    EpisodeBatch,
    EpisodeError,
    collect,
    collect_to,
    open_episodes,
    save_episodes,
)
from simulation.robots import arm, arm_push, tworoom

ARRAYS = ("frames", "actions", "proprioception", "states")


def assert_same(one: EpisodeBatch, other: EpisodeBatch) -> None:
    """Both hold the same episodes, to the bit."""
    for field in dataclasses.fields(EpisodeBatch):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if field.name in ARRAYS:
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second)
        else:
            assert first == second


@pytest.fixture(scope="module", params=["arm", "arm-push", "tworoom"])
def batch(request: pytest.FixtureRequest) -> EpisodeBatch:
    return collect(request.param, episodes=GROUP + 5, steps=30, seed=4, image_size=16)


@pytest.mark.process
def test_two_workers_collect_what_one_does(batch: EpisodeBatch) -> None:
    assert_same(batch, collect(batch.task, episodes=GROUP + 5, steps=30, seed=4, workers=2, image_size=16))


def test_an_episode_does_not_depend_on_how_many_are_collected(batch: EpisodeBatch) -> None:
    fewer = collect(batch.task, episodes=3, steps=30, seed=4, image_size=16)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(fewer, name), getattr(batch, name)[:3], atol=1e-9)


def test_another_seed_gives_other_episodes(batch: EpisodeBatch) -> None:
    other = collect(batch.task, episodes=4, steps=30, seed=5, image_size=16)
    assert not np.isclose(other.states[:4, 0], batch.states[:4, 0]).any()


def test_shapes_and_units_are_told(batch: EpisodeBatch) -> None:
    assert batch.frames.shape == (GROUP + 5, 31, 16, 16, 3)
    assert batch.actions.shape == (GROUP + 5, 30, 2)
    assert (batch.episodes, batch.steps, batch.image_size) == (GROUP + 5, 30, 16)
    assert batch.rate_hz == 10.0
    assert batch.action_units == (("m/s", "m/s") if batch.task == "tworoom" else ("rad/s", "rad/s"))
    assert np.abs(batch.actions).max() <= batch.action_high[0]


def test_the_recorded_actions_lead_from_state_to_state_and_the_frames_show_them(batch: EpisodeBatch) -> None:
    world = {"arm": arm, "arm-push": arm_push, "tworoom": tworoom}[batch.task]
    for step in (0, 13, 29):
        np.testing.assert_array_equal(
            world.step_states(batch.states[:, step], batch.actions[:, step]), batch.states[:, step + 1]
        )
        np.testing.assert_array_equal(world.render_states(batch.states[:, step], 16), batch.frames[:, step])
    np.testing.assert_array_equal(batch.proprioception, batch.states[..., :2].astype(np.float32))


def test_exploring_covers_the_whole_joint_space() -> None:
    states = collect("arm", episodes=200, steps=50, seed=6, image_size=16).states.reshape(-1, 2)
    cells, _, _ = np.histogram2d(states[:, 0], states[:, 1], bins=8, range=[[-np.pi, np.pi], [-2.5, 2.5]])
    assert cells.min() > 0.3 * len(states) / 64  # every cell has at least a third of its share


def test_exploring_pushes_the_puck_in_every_direction() -> None:
    states = collect("arm-push", episodes=128, steps=40, seed=6, image_size=16).states
    moves = np.diff(states[..., 2:], axis=1).reshape(-1, 2)
    moves = moves[np.linalg.norm(moves, axis=1) > 1e-3]
    assert len(moves) > 0.1 * 128 * 40
    shares, _ = np.histogram(np.arctan2(moves[:, 1], moves[:, 0]), bins=8, range=(-np.pi, np.pi))
    assert shares.min() > 0.4 * len(moves) / 8


def test_progress_counts_episodes_to_the_end() -> None:
    heard: list[tuple[int, int]] = []
    collect("arm", 2 * GROUP + 1, 3, seed=1, image_size=16, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(GROUP, 65), (2 * GROUP, 65), (65, 65)]


def test_saved_episodes_come_back_to_the_bit_and_mapped(batch: EpisodeBatch, tmp_path: Path) -> None:
    save_episodes(batch, tmp_path / "kept")
    kept = open_episodes(tmp_path / "kept")
    assert isinstance(kept.frames, np.memmap)
    assert_same(batch, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # nothing half-written is left


def test_collecting_to_a_folder_keeps_what_collecting_gives(batch: EpisodeBatch, tmp_path: Path) -> None:
    assert_same(batch, collect_to(tmp_path / "kept", batch.task, GROUP + 5, 30, seed=4, image_size=16))
    with pytest.raises(FileExistsError):
        collect_to(tmp_path / "kept", batch.task, 1, 3, seed=4, image_size=16)


def test_a_broken_off_collection_leaves_no_folder(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_to(tmp_path / "kept", "arm", 2, 3, seed=4, image_size=16, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_collection_killed_half_way_leaves_nothing_that_the_next_one_trusts(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    command = [sys.executable, "-m", "cli", "data", "collect", "--out", str(folder), "--json", "--workers", "1"]
    command += ["--episodes", "960", "--steps", "10", "--image-size", "32", "--seed", "4"]

    def half_written() -> list[Path]:
        return [path for path in tmp_path.glob(".kept.*.partial") if (path / "states.npy").exists()]

    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not half_written() and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    assert killed.wait(timeout=60) == -signal.SIGKILL
    (left,) = half_written()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        open_episodes(left)  # without its header a folder is no collection, whatever its arrays hold
    with pytest.raises(FileNotFoundError):
        open_episodes(folder)

    batch = collect_to(folder, "arm", 960, 10, seed=4, image_size=32)
    assert_same(batch, collect("arm", 960, 10, seed=4, image_size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # and what was left has been removed


def test_what_another_process_is_still_collecting_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".kept.other.partial"
    other.mkdir()
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(other)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        collect_to(tmp_path / "kept", "arm", 2, 3, seed=4, image_size=16)
        assert other.is_dir()
        holder.communicate("\n", timeout=60)


def test_a_folder_that_is_not_what_was_saved_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    save_episodes(collect("arm", 2, 3, seed=1, image_size=16), folder)
    header = json.loads((folder / "episodes.json").read_text())

    (folder / "episodes.json").write_text("{")
    with pytest.raises(EpisodeError, match=r"episodes\.json: not JSON"):
        open_episodes(folder)
    (folder / "episodes.json").write_text(json.dumps(header | {"format": "something/9"}))
    with pytest.raises(EpisodeError, match="'format' must be"):
        open_episodes(folder)
    (folder / "episodes.json").write_text(json.dumps({key: header[key] for key in header if key != "rate_hz"}))
    with pytest.raises(EpisodeError, match="lacks rate_hz"):
        open_episodes(folder)
    (folder / "episodes.json").write_text(json.dumps(header))
    np.save(folder / "actions.npy", np.zeros((2, 9, 2), dtype=np.float32))
    with pytest.raises(EpisodeError, match=r"actions\.npy: holds"):
        open_episodes(folder)
    np.save(folder / "actions.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(EpisodeError, match=r"actions\.npy: not a readable array"):
        open_episodes(folder)


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"steps": 0}, {"workers": 0}, {"seed": -1}, {"task": "juggling"}])
def test_a_senseless_request_is_refused_by_name(wrong: dict[str, object]) -> None:
    arguments = {"task": "arm", "episodes": 1, "steps": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: must"):
        collect(**arguments)


def test_training_seeds_and_held_out_seeds_cannot_meet() -> None:
    assert TRAINING_SEED_LIMIT < HELD_OUT_SEED_START


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="gym-pusht is not installed")
@pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning", "ignore:.*pkg_resources:UserWarning")
def test_pusht_episodes_are_the_same_from_two_workers() -> None:
    batch = collect("pusht", episodes=GROUP + 1, steps=4, seed=4, image_size=16)
    assert_same(batch, collect("pusht", episodes=GROUP + 1, steps=4, seed=4, workers=2, image_size=16))
    assert batch.action_units == ("px", "px")
