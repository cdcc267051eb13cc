"""Stages of a session: which goal is current, and when the next one begins.

A stage is over once enough actions are executed, which the front counts, or once an observation is near enough its
goal, which the engine sees. Here is only the bookkeeping of both, by goal ids and without torch; the last stage stays
for as long as the robot goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.values.calls import GoalStage

MOST_STAGES = 16


@dataclass(frozen=True)
class Stages:
    """The stage pursued, of several."""

    goals: tuple[GoalStage, ...]
    at: int = 0
    since: int = 0  # actions the robot had executed in its episode when this stage began

    @property
    def current(self) -> GoalStage:
        return self.goals[self.at]

    @property
    def next(self) -> GoalStage | None:
        """The stage after this one; None for the last, which stays."""
        return self.goals[self.at + 1] if self.at + 1 < len(self.goals) else None

    def is_over(self, executed: int) -> bool:
        """Whether its actions are used up once `executed` actions of the episode are."""
        return self.next is not None and 0 < self.current.max_actions <= executed - self.since

    def advanced(self, executed: int) -> Stages:
        """The next stage, begun after so many actions of the episode."""
        assert self.next is not None, "the last stage stays"
        return replace(self, at=self.at + 1, since=executed)

    def restarted(self) -> Stages:
        """The first stage of a new episode."""
        return Stages(self.goals)


@dataclass(frozen=True)
class GoalChoice:
    """The goal of a plan, and the stages it belongs to, if any. `warnings` tell of a change."""

    goal_id: str
    stages: Stages | None = None
    warnings: tuple[str, ...] = ()

    def onward(self, executed: int, why: str) -> GoalChoice:
        """Toward the next stage's goal."""
        assert self.stages is not None
        stages = self.stages.advanced(executed)
        warning = f"stage {stages.at} begins: {why}"
        return GoalChoice(stages.current.goal_id, stages, (*self.warnings, warning))


def pursuit(stages: Stages | None, goal_id: str, wanted: str, executed: int) -> GoalChoice:
    """What to pursue after `executed` actions: the goal `wanted`, by default the stage's, or else `goal_id`.

    A wanted goal that is not the present stage's leaves the stages for good.
    """
    if stages is None:
        return GoalChoice(wanted or goal_id)
    if wanted and wanted != stages.current.goal_id:
        return GoalChoice(wanted, None, (f"goal_id is not the goal of stage {stages.at}: the stages end here",))
    present = GoalChoice(stages.current.goal_id, stages)
    if stages.is_over(executed):
        spent = executed - stages.since
        return present.onward(executed, f"{spent} actions were executed in stage {stages.at}")
    return present
