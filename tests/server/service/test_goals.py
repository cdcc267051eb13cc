"""The goal cache: ids by content, least recently used first out, errors by name."""

from __future__ import annotations

import numpy as np
import pytest

from server.errors import Reason, ServiceError
from server.service.goals import Goal, GoalCache, content_id

IMAGE = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def goal(name: str, size: int = 4, model: str = "linear") -> Goal:
    return Goal(name, model, np.zeros(size, np.float32), create_time_ns=1)


def test_the_same_content_has_the_same_id() -> None:
    assert content_id(IMAGE, "m", "d", "exact") == content_id(IMAGE.copy(), "m", "d", "exact")


def test_whatever_changes_a_latent_changes_the_id() -> None:
    other = IMAGE.copy()
    other[0, 0, 0] += 1
    ids = {
        content_id(IMAGE, "m", "d", "exact"),
        content_id(other, "m", "d", "exact"),
        content_id(IMAGE.reshape(4, 1, 3), "m", "d", "exact"),
        content_id(IMAGE.view(np.int8), "m", "d", "exact"),
        content_id(IMAGE, "n", "d", "exact"),
        content_id(IMAGE, "m", "e", "exact"),
        content_id(IMAGE, "m", "d", "planning"),
    }
    assert len(ids) == 7


def test_an_image_that_is_a_view_has_the_id_of_its_copy() -> None:
    assert content_id(IMAGE[:, ::-1], "m", "d", "e") == content_id(IMAGE[:, ::-1].copy(), "m", "d", "e")


def test_the_goal_unused_for_longest_goes_first() -> None:
    cache = GoalCache(max_bytes=3 * 16)
    for name in ("a", "b", "c"):
        cache.put(goal(name))
    cache.get("a")
    cache.put(goal("d"))
    assert [name for name in "abcd" if cache.find(name) is not None] == ["a", "c", "d"]
    assert cache.bytes == 3 * 16


def test_one_goal_is_kept_however_large() -> None:
    cache = GoalCache(max_bytes=0)
    cache.put(goal("a", size=1000))
    assert cache.find("a") is not None
    cache.put(goal("b", size=1000))
    assert (cache.find("a"), len(cache)) == (None, 1)


def test_replacing_and_deleting_give_their_bytes_back() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a", size=4))
    cache.put(goal("a", size=8))
    assert (cache.bytes, len(cache)) == (32, 1)
    cache.delete("a")
    assert (cache.bytes, len(cache)) == (0, 0)


@pytest.mark.parametrize("call", [GoalCache.get, GoalCache.delete])
def test_an_unknown_goal_is_named(call: object) -> None:
    assert callable(call)
    with pytest.raises(ServiceError) as caught:
        call(GoalCache(max_bytes=10), "x" * 1000)
    assert caught.value.reason is Reason.UNKNOWN_GOAL
    assert len(caught.value.value) == 40


def test_a_call_needs_a_goal_of_its_own_model() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a", model="other"))
    with pytest.raises(ServiceError) as missing:
        cache.toward("", "linear")
    with pytest.raises(ServiceError) as foreign:
        cache.toward("a", "linear")
    assert missing.value.reason is Reason.GOAL_REQUIRED
    assert (foreign.value.reason, foreign.value.field) == (Reason.INVALID_FIELD, "goal_id")
    assert cache.toward("a", "other").goal_id == "a"
