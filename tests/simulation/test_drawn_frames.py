from __future__ import annotations

import numpy as np
import pytest

from simulation.drawn_frames import collect_unseen
from simulation.episodes import collect


@pytest.mark.parametrize("task", ["arm", "pusht"])
def test_episodes_gathered_unseen_are_the_same_and_drawn_when_looked_at(task: str) -> None:
    seen = collect(task, 3, 6, seed=5, image_size=32)
    unseen = collect_unseen(task, 3, 6, seed=5, image_size=32)
    for name in ("actions", "proprioception", "states"):
        np.testing.assert_array_equal(getattr(unseen, name), getattr(seen, name))
    assert (unseen.frames.shape, unseen.frames.dtype) == (seen.frames.shape, seen.frames.dtype)
    np.testing.assert_array_equal(unseen.frames[1, ::2], seen.frames[1, ::2])
    np.testing.assert_array_equal(unseen.frames[1:][0, np.array([4])], seen.frames[1, [4]])
