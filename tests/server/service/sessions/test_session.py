"""Sessions: sequences, epochs, history, continuations, repeated calls, expiry. All on a hand-held clock."""

from __future__ import annotations

import numpy as np
import pytest
from presage.values import Plan, PlannerSettings, Provenance, Timings

from server.engine.messages import Floats
from server.errors import Reason, ServiceError
from server.service.sessions.session import (
    KEPT_PLANS,
    KEPT_REPLIES,
    CurrentPlan,
    EncodedObservation,
    PlanProgress,
    Session,
)
from server.service.sessions.stages import Stages
from server.values.calls import GoalStage

BLOCK = 2


def session(history: int = 3, ttl_s: float = 10.0, name: str = "robot") -> Session:
    return Session(name, "linear", "goal", history, ttl_s, seed=5, wall_ns=1)


def plan(actions: int = 6, goal_id: str = "goal", sequence: int = 1, at: PlanProgress | None = None) -> CurrentPlan:
    place = at or PlanProgress(0)
    numbered = 10 * sequence + np.arange(actions, dtype=np.float32)[:, None]
    return CurrentPlan(
        actions=numbered,
        step_costs=tuple(float(step) for step in range(actions // BLOCK)),
        block=BLOCK,
        goal_id=goal_id,
        goal_distance=0.5,
        sequence=sequence,
        begins_at=place.since_reset,
        previous_action=place.previous_action,
    )


def seen(sequence: int) -> EncodedObservation:
    return EncodedObservation(sequence, np.full(2, sequence, np.float32), None)


def planned(at: Session, sequence: int = 0, executed: int = 0, goal_id: str = "goal", follows: int = 0) -> int:
    """A plan of six actions, numbered from ten times its sequence on."""
    place, turn = at.place(executed, follows), at.begin(sequence)
    at.commit(turn, plan(goal_id=goal_id, sequence=turn.sequence, at=place), seen(turn.sequence))
    return turn.sequence


def reply(epoch: int = 0) -> Plan:
    actions = np.zeros((1, 1), np.float32)
    provenance = Provenance("linear", "0", "exact", "goal", PlannerSettings(), "cpu", "float32", "")
    return Plan(
        actions, 0.0, (0.0,), 0.0, (), (), 0, "deadline", 0, False, False, 1, None, epoch, Timings(), provenance
    )


def first(values: Floats | None) -> list[float]:
    assert values is not None
    found: list[float] = values[:, 0].tolist()
    return found


def test_sequence_zero_counts_up_from_the_newest() -> None:
    robot = session()
    assert [planned(robot), planned(robot), planned(robot, 9), planned(robot)] == [1, 2, 9, 10]
    assert robot.describe().last_sequence == 10
    assert robot.describe().plans == 4


@pytest.mark.parametrize("sequence", [3, 4])
def test_equal_and_older_observations_are_stale(sequence: int) -> None:
    robot = session()
    planned(robot, 4)
    with pytest.raises(ServiceError) as caught:
        robot.begin(sequence)
    assert caught.value.reason is Reason.STALE_OBSERVATION
    assert (caught.value.field, caught.value.value) == ("observation.sequence", str(sequence))


def test_an_observation_being_planned_for_is_used_already() -> None:
    robot = session()
    robot.begin(4)
    with pytest.raises(ServiceError):
        robot.begin(4)


def test_an_observation_whose_plan_failed_may_be_sent_again() -> None:
    robot = session()
    robot.give_back(robot.begin(4))
    assert robot.begin(4).sequence == 4
    assert robot.describe().plans == 0


def test_reset_starts_a_new_epoch_with_nothing_but_model_and_goal() -> None:
    robot = session()
    planned(robot, 4)
    robot.keep_reply("call", reply())
    robot.reset()
    told = robot.describe()
    assert (told.epoch, told.plans, told.last_sequence, told.goal_id) == (1, 0, 0, "goal")
    assert robot.earlier(0) == ()
    assert robot.continuation(PlanProgress(0), 0, "goal").warm_start is None
    assert robot.reply("call") is None
    assert robot.begin(1).epoch == 1


def test_an_overtaken_observation_does_not_take_a_stage_back() -> None:
    stages = Stages((GoalStage("a", max_actions=1), GoalStage("b")))
    robot = Session("robot", "linear", "", 1, 10.0, seed=5, wall_ns=1, stages=stages)
    assert (robot.goal_id, robot.describe().stage) == ("a", 0)
    first, second = robot.begin(1), robot.begin(2)
    robot.commit(first, plan(goal_id="b"), None, stages.advanced(1))
    robot.commit(second, plan(goal_id="a", sequence=2), None, stages)  # begun before the first one ended the stage
    assert (robot.goal_id, robot.describe().stage) == ("b", 1)


def test_a_plan_that_a_reset_overtook_leaves_no_trace() -> None:
    robot = session()
    turn = robot.begin(4)
    robot.reset()
    robot.commit(turn, plan(), seen(4))
    robot.keep_reply("call", reply(epoch=0))
    assert robot.describe().plans == 0
    assert robot.current is None
    assert robot.reply("call") is None
    assert robot.begin(1).sequence == 1


def test_a_plan_that_a_newer_observation_overtook_does_not_become_the_current_one() -> None:
    robot = session()
    older, newer = robot.begin(1), robot.begin(2)
    robot.commit(newer, plan(6, sequence=2), seen(2))
    robot.commit(older, plan(4), seen(1))
    assert robot.current is not None
    assert len(robot.current.actions) == 6
    assert [past.sequence for past in robot.earlier(0)] == [2]


def test_history_is_as_long_as_the_model_looks_back() -> None:
    robot = session(history=3)
    for _ in range(5):
        planned(robot)
    assert [past.sequence for past in robot.earlier(0)] == [4, 5]
    assert [past.sequence for past in robot.earlier(5)] == [4]  # an observation does not precede itself
    forgetful = session(history=1)
    planned(forgetful)
    assert forgetful.earlier(0) == ()


def test_the_warm_start_is_what_the_robot_has_not_executed() -> None:
    robot = session()
    planned(robot)
    follows = robot.continuation(robot.place(2), 3, "goal")
    assert first(follows.warm_start) == [12, 13, 14, 15]
    assert first(follows.committed) == [12, 13, 14]
    assert follows.previous_action is not None
    assert follows.previous_action.tolist() == [11]
    assert follows.warnings == ()


def test_the_last_action_executed_outlives_its_plan() -> None:
    robot = session()
    planned(robot)
    planned(robot, executed=3)
    follows = robot.continuation(robot.place(0), 0, "goal")
    assert follows.previous_action is not None
    assert follows.previous_action.tolist() == [12]


def test_a_count_into_an_older_plan_is_translated_into_the_last_one() -> None:
    robot = session()
    planned(robot)  # plan 1
    planned(robot, executed=2)  # plan 2 begins two actions into plan 1
    place = robot.place(executed=3, plan_sequence=1)
    follows = robot.continuation(place, 2, "goal")
    assert first(follows.warm_start) == [21, 22, 23, 24, 25]  # one action into plan 2
    assert first(follows.committed) == [13, 14]  # of the plan it follows
    assert follows.previous_action is not None
    assert follows.previous_action.tolist() == [12]
    rest = robot.rest(place, "goal")
    assert rest is not None
    assert first(rest.actions) == [21, 22, 23, 24, 25]


def test_counts_are_translated_over_several_plans() -> None:
    robot = session()
    planned(robot)
    planned(robot, executed=1)
    planned(robot, executed=2)  # three actions after plan 1 began
    planned(robot, executed=4, follows=1)  # four after it
    assert robot.place(5, 1).since_reset == robot.place(4, 2).since_reset == robot.place(1, 4).since_reset == 5
    assert robot.place(2, 3).since_reset == 5


def test_a_count_that_ends_before_the_last_plan_begins_is_refused() -> None:
    robot = session()
    planned(robot)
    planned(robot, executed=2)
    with pytest.raises(ServiceError) as caught:
        robot.place(1, plan_sequence=1)
    assert (caught.value.reason, caught.value.field, caught.value.value) == (Reason.INVALID_FIELD, "executed", "1")
    assert "at least 2" in caught.value.rule


def test_only_the_last_plans_can_be_counted_from() -> None:
    robot = session()
    for _ in range(KEPT_PLANS + 1):
        planned(robot)
    assert robot.place(0, 2).followed is not None
    for forgotten in (1, KEPT_PLANS + 2):
        with pytest.raises(ServiceError) as caught:
            robot.place(0, forgotten)
        assert (caught.value.reason, caught.value.field) == (Reason.INVALID_FIELD, "plan_sequence")


def test_a_plan_toward_another_goal_is_no_warm_start_but_what_is_committed_stays() -> None:
    robot = session()
    planned(robot, goal_id="other")
    assert robot.describe().goal_id == "other"
    follows = robot.continuation(robot.place(1), 2, "goal")
    assert follows.warm_start is None
    assert first(follows.committed) == [11, 12]
    assert robot.rest(robot.place(1), "goal") is None


def test_a_plan_executed_past_its_end_gives_a_warning_and_no_warm_start() -> None:
    robot = session()
    planned(robot)
    follows = robot.continuation(robot.place(9), 0, "goal")
    assert follows.warm_start is None
    assert follows.warnings == ("executed is 9, but the last plan had 6 actions",)
    assert robot.rest(robot.place(6), "goal") is None


def test_executed_without_a_plan_gives_a_warning() -> None:
    follows = session().continuation(PlanProgress(2), 0, "goal")
    assert len(follows.warnings) == 1
    assert "no plan" in follows.warnings[0]


@pytest.mark.parametrize(("has_plan", "executed", "committed"), [(False, 0, 1), (True, 4, 3), (True, 9, 1)])
def test_more_cannot_be_committed_than_the_plan_has_left(has_plan: bool, executed: int, committed: int) -> None:
    robot = session()
    if has_plan:
        planned(robot)
    with pytest.raises(ServiceError) as caught:
        robot.continuation(robot.place(executed), committed, "goal")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_FIELD, "committed")


@pytest.mark.parametrize(
    ("executed", "actions", "step_costs"),
    [(0, [10, 11, 12, 13, 14, 15], (0.0, 1.0, 2.0)), (3, [13, 14, 15], (1.0, 2.0)), (4, [14, 15], (2.0,))],
)
def test_the_rest_of_a_plan_keeps_the_costs_of_its_steps(
    executed: int, actions: list[float], step_costs: tuple[float, ...]
) -> None:
    robot = session()
    planned(robot)
    rest = robot.rest(robot.place(executed), "goal")
    assert rest is not None
    assert first(rest.actions) == actions
    assert rest.step_costs == step_costs


def test_seeds_follow_from_session_epoch_and_observation() -> None:
    robot = session()
    assert robot.seed_for(3) == session().seed_for(3)
    seeds = [robot.seed_for(sequence) for sequence in range(1000)]
    robot.reset()
    seeds += [robot.seed_for(sequence) for sequence in range(1000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 1 << 53 for seed in seeds)


def test_replies_are_kept_for_repeated_calls_up_to_a_bound() -> None:
    robot = session()
    for number in range(KEPT_REPLIES + 1):
        robot.keep_reply(f"call {number}", reply())
    assert robot.reply("call 0") is None
    assert robot.reply(f"call {KEPT_REPLIES}") is not None


def moved(at: Session, executed: int) -> PlanProgress:
    """The robot observes and is given a plan, after so many actions of its last one."""
    place, turn = at.place(executed), at.begin(0)
    observed = EncodedObservation(turn.sequence, np.full(2, turn.sequence, np.float32), None, place.since_reset)
    at.commit(turn, plan(sequence=turn.sequence, at=place), observed, None, place)
    return at.place(0)


def test_whole_steps_before_come_with_the_actions_that_were_executed() -> None:
    robot = Session("robot", "linear", "goal", history=3, ttl_s=10.0, seed=5, wall_ns=1, block=BLOCK)
    assert robot.steps_before(0, robot.place(0), BLOCK, 2) == ((), None)  # the first frame of an episode
    moved(robot, 0)
    found, actions = robot.steps_before(0, robot.place(2), BLOCK, 2)
    assert [earlier.sequence for earlier in found] == [1]
    assert first(actions) == [10.0, 11.0]
    moved(robot, 2)
    found, actions = robot.steps_before(0, robot.place(2), BLOCK, 2)
    assert [earlier.sequence for earlier in found] == [1, 2]
    assert first(actions) == [10.0, 11.0, 20.0, 21.0]
    moved(robot, 2)
    found, actions = robot.steps_before(0, robot.place(2), BLOCK, 2)
    assert [earlier.sequence for earlier in found] == [2, 3]
    assert first(actions) == [20.0, 21.0, 30.0, 31.0]


def test_observations_between_steps_are_passed_over_and_gaps_end_the_past() -> None:
    robot = Session("robot", "linear", "goal", history=3, ttl_s=10.0, seed=5, wall_ns=1, block=BLOCK)
    for executed in (0, 1, 1, 1):  # seen at 0, 1, 2, 3 actions
        moved(robot, executed)
    found, actions = robot.steps_before(0, robot.place(1), BLOCK, 2)  # at 4
    assert [earlier.since_reset for earlier in found] == [0, 2]
    assert first(actions) == [10.0, 20.0, 30.0, 40.0]
    assert robot.steps_before(0, robot.place(4), BLOCK, 2) == ((), None)  # at 7: nothing was seen at 5
    assert robot.steps_before(0, robot.place(9), BLOCK, 2) == ((), None)  # more than the plan had


def test_a_reset_forgets_what_was_executed() -> None:
    robot = Session("robot", "linear", "goal", history=3, ttl_s=10.0, seed=5, wall_ns=1, block=BLOCK)
    moved(robot, 0)
    moved(robot, 2)
    robot.reset()
    assert robot.steps_before(0, robot.place(2), BLOCK, 2) == ((), None)
