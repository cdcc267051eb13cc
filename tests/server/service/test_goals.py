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


# Owners and holders


def test_an_owners_goals_are_found_and_deleted_by_no_other() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a"), "anna")
    assert cache.find("a", "boris") is None
    with pytest.raises(ServiceError):
        cache.delete("a", "boris")
    assert cache.find("a", "anna") is not None
    assert cache.seen("a").goal_id == "a"


def test_one_owners_goals_push_out_its_own_alone() -> None:
    cache = GoalCache(max_bytes=3 * 16)
    cache.put(goal("theirs"), "boris")
    for number in range(50):
        cache.put(goal(f"a{number}"), "anna")
    assert cache.find("theirs", "boris") is not None
    assert [cache.find(f"a{number}", "anna") is not None for number in (46, 47, 48, 49)] == [False, True, True, True]


def test_where_all_bytes_are_taken_whoever_has_more_than_an_equal_part_makes_room() -> None:
    cache = GoalCache(max_bytes=4 * 16, total_bytes=6 * 16)
    for owner in ("anna", "boris"):
        for number in range(3):
            cache.put(goal(f"{owner}{number}"), owner)
    cache.put(goal("anna3"), "anna")  # beyond its half: its own oldest goes
    assert cache.find("anna0", "anna") is None
    assert all(cache.find(f"boris{number}", "boris") is not None for number in range(3))
    cache.put(goal("carla0"), "carla")  # a third party has a third
    cache.put(goal("carla1"), "carla")
    assert cache.bytes == 6 * 16
    assert all(cache.find(f"carla{number}", "carla") is not None for number in range(2))


def test_what_a_session_holds_is_pushed_out_by_nothing() -> None:
    cache = GoalCache(max_bytes=3 * 16)
    cache.put(goal("held"))
    cache.hold("session", "", {"held"})
    for number in range(10):
        cache.put(goal(f"a{number}"))
    assert cache.find("held") is not None
    cache.release("session")
    for number in range(10, 13):
        cache.put(goal(f"a{number}"))
    assert cache.find("held") is None


def test_a_deleted_goal_stays_for_its_holders_alone_and_goes_with_the_last() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a"))
    for session in ("one", "two"):
        cache.hold(session, "", {"a"})
    cache.delete("a")
    assert cache.find("a") is None
    assert cache.find("a", holder="one") is not None
    cache.release("one")
    assert (cache.find("a", holder="one"), cache.bytes) == (None, 16)
    cache.hold("two", "", {"b"})
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_goal_that_is_made_again_is_there_for_all_of_its_owner() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a"))
    cache.hold("session", "", {"a"})
    cache.delete("a")
    cache.put(goal("a"))
    assert cache.find("a") is not None
    cache.release("session")
    assert cache.find("a") is not None


def test_goals_that_sessions_hold_leave_no_room_for_more_by_name() -> None:
    cache = GoalCache(max_bytes=2 * 16)
    for name in ("a", "b"):
        cache.put(goal(name))
        cache.hold(name, "", {name})
    with pytest.raises(ServiceError) as caught:
        cache.put(goal("c"))
    assert (caught.value.reason, caught.value.field) == (Reason.TOO_MANY_GOALS, "goal")
    assert cache.bytes == 2 * 16


def test_what_an_owner_had_is_forgotten_whole() -> None:
    cache = GoalCache(max_bytes=100)
    cache.put(goal("a"), "anna")
    cache.put(goal("b"), "boris")
    cache.hold("session", "anna", {"a"})
    cache.forget("anna")
    cache.release("session")
    assert (len(cache), cache.bytes) == (1, 16)
