"""Episodes and windows of them: kept apart, and only what was recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.training.dots import dot_episodes
from training.compact.recipe import action_spec
from training.compact.windows import Windows, sample_batch
from training.data.episodes import Episodes


def test_windows_never_leave_their_episode_and_pair_actions_with_frames() -> None:
    count, steps = 5, 9
    frames = np.zeros((count, steps + 1, 2, 2, 3), np.uint8)
    frames += (np.arange(count)[:, None] * 16 + np.arange(steps + 1)).astype(np.uint8)[:, :, None, None, None]
    actions = np.arange(count)[:, None] * 16.0 + np.arange(steps)
    episodes = Episodes(
        frames, actions[..., None].astype(np.float32), ("a",), ("m",), (0.0,), (100.0,), 10.0, "numbered"
    )
    windows = Windows(batch=16, horizon=2, block=2, latent=4, directions=3)
    drawn = sample_batch(episodes, windows, torch.Generator().manual_seed(0))
    shown, between = drawn.frames, drawn.actions
    first = shown[:, 0, 0, 0, 0].long()
    assert (shown[:, :, 0, 0, 0].long() == first[:, None] + torch.tensor([0, 2, 4])).all()
    assert (shown[:, 0, 0, 0, 0].long() // 16 == shown[:, -1, 0, 0, 0].long() // 16).all()
    assert (between[:, :, 0].long() == first[:, None] + torch.arange(4)).all()


def test_windows_of_episodes_that_differ_in_length_stay_within_what_was_recorded() -> None:
    lengths = np.array([9, 4, 3, 6])
    frames = np.zeros((4, 10, 2, 2, 3), np.uint8)
    actions = np.full((4, 9, 1), np.float32(1e9))  # what was not recorded would show
    for row, length in enumerate(lengths):
        actions[row, :length, 0] = row * 16 + np.arange(length)
    episodes = Episodes(
        frames, actions, ("a",), ("m",), (0.0,), (100.0,), 10.0, "numbered", probe_targets=None, lengths=lengths
    )
    rows, starts = episodes.draw_windows(4000, 4, torch.Generator().manual_seed(0))
    found, counts = np.unique(rows * 16 + starts, return_counts=True)
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 16, 48, 49, 50]  # every window there is, and no other
    assert counts.min() > 300  # each about as often: 400
    assert episodes.action_spread()[0] < 100
    assert episodes.split(2)[1].lengths.tolist() == [3, 6]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="at least horizon x block = 10 steps, got 9"):
        episodes.draw_windows(1, 10, torch.Generator())


def test_an_action_that_never_changes_is_held_at_its_value() -> None:
    episodes = dot_episodes()
    actions = episodes.actions.copy()
    actions[..., 1] = 0.5
    still = replace(episodes, actions=actions, action_low=(-1.0, 0.5), action_high=(1.0, 0.5))
    assert still.held() == {"right": 0.5}
    spec = action_spec(still, block=2)
    assert (spec.low[1], spec.high[1], spec.std[1], spec.rest) == (0.5, 0.5, 1.0, (0.0, 0.5))
    assert episodes.held() == {}


def test_an_action_that_changes_in_held_out_episodes_alone_is_held_as_well() -> None:
    episodes = dot_episodes()
    actions = episodes.actions.copy()
    actions[:-2, :, 1] = 0.25
    fitting, held_out = replace(episodes, actions=actions).split(2)
    assert (fitting.held(), held_out.held()) == ({"right": 0.25}, {})
    spec = action_spec(fitting, block=2)
    assert (spec.low[1], spec.high[1]) == (0.25, 0.25)
    assert spec.low[0] < spec.high[0]


def test_what_episodes_are_is_told_by_their_content() -> None:
    episodes = dot_episodes()
    same = replace(episodes, frames=episodes.frames.copy(), source="elsewhere")
    assert same.identity() == episodes.identity()
    frames, actions = episodes.frames.copy(), episodes.actions.copy()
    frames[-1, -1, 0, 0, 0] ^= 1
    actions[0, 0, 0] *= 57.29578
    for changed in (replace(episodes, frames=frames), replace(episodes, actions=actions)):
        differing = [name for name, value in changed.identity().items() if value != episodes.identity()[name]]
        assert differing == ["recordings"]
