# Generated from aio/session.py by scripts/sync-client. Edit that file.
"""A robot's session at the server, for programs without asyncio: history, goal and warm start live there."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Sequence

from presage.connection import Connection
from presage.control import ControlLoop
from presage.errors import DeadlineExceeded, NotFound, PresageError, Unavailable
from presage.limits import ActionLimits
from presage.protocol import codec, requests
from presage.protocol.conversation import ControlSettings
from presage.protocol.memory import SequenceCounter, SessionMemory, SessionWish
from presage.protocol.requests import Seen
from presage.values import (
    CalibrationMove,
    Goal,
    ImageLike,
    Landscape,
    Plan,
    PlannerSettings,
    Rollout,
    Score,
    SessionStatus,
    Surprise,
)

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike


class Session:
    """One episode. Made by `Client.session()`; a context manager that closes the session at the server.

    Every call raises a PresageError: NotFound when the session has been forgotten for want of calls.
    """

    def __init__(self, connection: Connection, status: SessionStatus, wish: SessionWish | None = None) -> None:
        self.model = status.model
        self._connection = connection
        self._memory = SessionMemory(status, connection.goals, wish)
        self._sequences = SequenceCounter(status.last_sequence)

    @property
    def session_id(self) -> str:
        """Its name at the server; another one after a control loop had to make it again there."""
        return self._memory.session_id

    def plan(
        self,
        seen: Seen,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        budget_ms: float | None = None,
        executed: int = 0,
        committed: int = 0,
        follows: Plan | None = None,
        seed: int | None = None,
        settings: PlannerSettings | None = None,
        limits: ActionLimits | None = None,
        previous_action: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> Plan:
        """Plans from what the robot sees now: an image, one image per camera, or an Observation.

        `goal`: None for the session's. `proprioception`: [entries], robot units. `budget_ms`: time to think; the plan
        is the best found when it ends. `executed`: actions taken of plan `follows`, by default the session's last one;
        the rest is the warm start. Where a reply may have been lost, name it: the server may have a plan more.
        `committed`: how many more of its actions are taken while this plan is made; they head the new plan unchanged.
        `seed`: None follows from the session's. Repeated after a lost reply, it answers with the same plan. `limits`:
        what this plan keeps to, narrower than the session's and the model's. `previous_action`: [action], the last one
        executed, where it was none of a plan's, such as a stop: slew and dwell begin there.
        """
        call = requests.plan(
            seen,
            session_id=self.session_id,
            model="",
            goal=goal,
            proprioception=proprioception,
            budget_ms=budget_ms,
            executed=executed,
            committed=committed,
            follows=follows,
            seed=seed,
            settings=settings,
            limits=limits,
            previous_action=previous_action,
        )
        plan = self._connection.send(call, timeout_s)
        self._sequences.saw(plan.observation_sequence)
        self._memory.saw(plan)
        return plan

    def rollout(
        self,
        seen: Seen,
        actions: ArrayLike,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Rollout:
        """Predicts where `actions` [time, action], robot units, lead. Time is a multiple of the model's block."""
        call = requests.rollout(
            seen, actions, session_id=self.session_id, model="", goal=goal, proprioception=proprioception
        )
        return self._connection.send(call, timeout_s)

    def score(
        self,
        seen: Seen,
        candidates: ArrayLike,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Score:
        """Costs `candidates` [candidates, time, action], robot units. `goal`: None for the session's."""
        call = requests.score(
            seen, candidates, session_id=self.session_id, model="", goal=goal, proprioception=proprioception
        )
        return self._connection.send(call, timeout_s)

    def distance(
        self, images: Sequence[ImageLike], *, goal: Goal | str | None = None, timeout_s: float | None = None
    ) -> tuple[float, ...]:
        """How far each image's latent is from the goal's (None: the session's), in the planner's cost for one step."""
        call = requests.distance(images, session_id=self.session_id, model="", goal=goal)
        return self._connection.send(call, timeout_s)

    def surprise(self, seen: Sequence[Seen], actions: ArrayLike, *, timeout_s: float | None = None) -> Surprise:
        """How far each step of the model led from what it predicted; the session learns what is usual here.

        `seen`: at least two observations, one per step of the model. `actions`: [time, action], robot units, what was
        done between them, the model's block of actions per step. Not sent again after a lost reply.
        """
        call = requests.surprise(seen, actions, session_id=self.session_id, model="")
        return self._connection.send(call, timeout_s)

    def landscape(
        self,
        seen: Seen,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        dimensions: Sequence[str] = (),
        points: int = 5,
        extent: float = 1.0,
        plot: bool = False,
        timeout_s: float | None = None,
    ) -> Landscape:
        """Costs a grid of actions around rest: what a search sees from where the robot stands.

        `dimensions`: up to three action entries to vary, none for the first three searched; `points` along each, odd;
        `extent`: how far to go, as a fraction of the bounds; `plot`: whether to draw it too.
        """
        call = requests.landscape(
            seen,
            session_id=self.session_id,
            model="",
            goal=goal,
            proprioception=proprioception,
            dimensions=dimensions,
            points=points,
            extent=extent,
            plot=plot,
        )
        return self._connection.send(call, timeout_s)

    def calibrate(self, moves: Sequence[CalibrationMove], *, timeout_s: float | None = None) -> SessionStatus:
        """Learns from exploratory moves how the camera is turned; plans of the session are turned back from now on.

        At least two moves, in different directions of x and y. Observations hold the poses where the model uses them.
        """
        status = self._connection.send(requests.calibrate_session(self.session_id, moves), timeout_s)
        self._memory.calibrated(moves)
        return status

    def control(
        self,
        *,
        goal: Goal | str | None = None,
        budget_ms: float | None = None,
        settings: PlannerSettings | None = None,
        limits: ActionLimits | None = None,
        heartbeat_s: float = 1.0,
        stall_s: float = 3.0,
    ) -> ControlLoop:
        """Opens a control loop in the background and returns at once. `goal`: None for the session's.

        `budget_ms`: time to think for each plan. `limits`: what its plans keep to, narrower than the session's and the
        model's. A server silent for `stall_s` seconds is dialled anew.
        """
        self._memory.choose(codec.goal_id(goal))
        control = ControlSettings(
            session_id=self.session_id,
            goal_id=codec.goal_id(goal),
            planner=settings,
            limits=limits,
            budget_ms=budget_ms,
            heartbeat_s=heartbeat_s,
            stall_s=stall_s,
            can_be_remade=self._memory.can_be_remade,
        )
        return self._connection.control(control, self._memory, self._sequences)

    def status(self, *, timeout_s: float | None = None) -> SessionStatus:
        """The session as the server sees it."""
        return self._connection.send(requests.get_session(self.session_id), timeout_s)

    def reset(self, *, timeout_s: float | None = None) -> SessionStatus:
        """Starts an episode anew: history and warm start go, model and goal stay. Close its control loop first."""
        return self._connection.send(requests.reset_session(self.session_id), timeout_s)

    def close(self) -> None:
        """Ends its control loops and closes it at the server. One that is gone forgets it by itself: no error."""
        self._connection.close_loops(self.session_id)
        with suppress(NotFound, Unavailable, DeadlineExceeded):
            self._connection.send(requests.delete_session(self.session_id))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PresageError:
            if error is None:  # otherwise what went wrong inside is the news
                raise

    def __repr__(self) -> str:
        return f"Session({self.session_id!r}, model {self.model!r})"
