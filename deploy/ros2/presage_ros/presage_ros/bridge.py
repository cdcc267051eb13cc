"""The bridge's logic, free of ROS: sends images, receives plans, and stops on stale plans.

The middleware calls `see` for each image and `tick` at a steady rate, neither of which waits for the network;
`set_goal` and `maintain` do wait, and belong on a thread of their own. Not a safety system: it stops the plans, not the
robot.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import presage
from presage.limits import fault as broken_limit

from presage_ros.followed import Followed
from presage_ros.values import BridgeSettings, Frame, Report, Trajectory

REMEMBERED = 1000  # observations that a plan may still come for


@dataclass
class _Episode:
    """One goal and what it takes to go there."""

    session: presage.Session
    loop: presage.ControlLoop
    goal_id: str
    model: presage.Model


@dataclass
class _Counts:
    plans: int = 0
    failed: int = 0
    refused: int = 0
    old_images: int = 0


class Bridge:
    """One robot's plans. `publish` is what a tick calls with a plan, or with a stop; `clock` is monotonic."""

    def __init__(
        self,
        client: presage.Client,
        settings: BridgeSettings,
        publish: Callable[[Trajectory], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._client, self._publish, self._clock = client, publish, clock
        self._calls = threading.Lock()  # held while the service is asked; never by `see` and `tick`
        self._lock = threading.Lock()  # for all below
        self._episode: _Episode | None = None
        self._goal_image: bytes | None = None
        self._goal_number = 0
        self._measured: dict[str, float] = {}
        self._seen: OrderedDict[int, tuple[float, Frame]] = OrderedDict()  # when, by sequence
        self._followed: Followed | None = None
        self._judged: presage.ControlPlan | None = None
        self._counts = _Counts()
        self._trouble = "no goal"
        self._stopped = True
        self._names: tuple[str, ...] = ()
        self._frame_id = ""

    # What may wait for the network

    def set_goal(self, image: bytes) -> str:
        """Go where the scene looks like this image. The goal's id. Raises PresageError; the robot is stopped then."""
        with self._calls:
            with self._lock:
                self._goal_image, self._goal_number = image, self._goal_number + 1
                self._trouble = "the goal is being set"
            self._end_episode()
            return self._begin_episode(image)

    def clear_goal(self) -> None:
        """Stop, and ask for no more plans."""
        with self._calls:
            with self._lock:
                self._goal_image, self._goal_number = None, self._goal_number + 1
                self._trouble = "no goal"
            self._end_episode()

    def maintain(self) -> None:
        """Learn what a stop is, and begin anew where the service has lost the session. Call it each second."""
        with self._calls:
            with self._lock:
                image, episode, names = self._goal_image, self._episode, self._names
            if episode is not None or (image is None and names):
                return
            try:
                if image is None:
                    self._find_model()
                else:
                    self._begin_episode(image)
            except presage.PresageError as error:
                with self._lock:
                    self._trouble = str(error)

    def close(self) -> None:
        """Stop and hang up."""
        self.clear_goal()
        self.tick()
        self._client.close()

    def _begin_episode(self, image: bytes) -> str:
        settings, limit = self.settings, self.settings.call_timeout_s
        try:
            model = self._find_model()
            goal = self._client.goal(image, model=settings.model, timeout_s=limit)
            session = self._client.session(settings.model, goal, limits=settings.limits, timeout_s=limit)
        except presage.PresageError as error:
            with self._lock:
                self._trouble = str(error)
            raise
        loop = session.control(budget_ms=settings.budget_ms, settings=settings.planner)
        with self._lock:
            self._episode = _Episode(session, loop, goal.goal_id, model)
            self._trouble = "no plan yet"
        return goal.goal_id

    def _find_model(self) -> presage.Model:
        model = self._client.model(self.settings.model, timeout_s=self.settings.call_timeout_s)
        action = _check_model(model, self.settings)
        with self._lock:
            self._names = action.names
        return model

    def _end_episode(self) -> None:
        with self._lock:
            episode, self._episode = self._episode, None
            self._followed = self._judged = None
            self._seen.clear()
        if episode is not None:
            try:
                episode.session.close()
            except presage.PresageError as error:
                with self._lock:
                    self._trouble = str(error)

    # What never waits

    def feel(self, names: tuple[str, ...], values: tuple[float, ...]) -> None:
        """The newest proprioception, entries by name."""
        with self._lock:
            self._measured.update(zip(names, values, strict=False))

    def see(self, frame: Frame) -> None:
        """Offer an image. It replaces one that still waits; one that is old already is passed over."""
        with self._lock:
            episode = self._episode
            if episode is None:
                return
            if not -self.settings.max_image_age_s <= frame.age_s <= self.settings.max_image_age_s:
                self._counts.old_images += 1
                self._trouble = f"an image is {frame.age_s:.3f} s old by its stamp: are stamps and clocks right?"
                return
            wanted = episode.model.proprioception_names
            missing = [name for name in wanted if name not in self._measured]
            if missing:
                self._trouble = f"nothing is known of {', '.join(missing)}: is proprioception published?"
                return
            now = self._clock()
            followed = self._followed
            if followed is not None and followed.forgotten(self._judged):
                followed = None
            executed, committed = (0, 0) if followed is None else followed.progress(now)
            observation = presage.Observation(
                (frame.data,), [self._measured[name] for name in wanted] or None, frame.stamp_ns
            )
            counted_from = None if followed is None else followed.plan
            before = self._rest() if self._stopped else None  # what the robot does is none of a plan's actions
            try:
                sequence = episode.loop.send(
                    observation, executed=executed, committed=committed, plan=counted_from, previous_action=before
                )
            except presage.PresageError as error:  # the loop has ended: `maintain` begins another
                self._give_up(error)
                return
            self._frame_id = frame.frame_id
            self._seen[sequence] = (now, frame)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def tick(self) -> None:
        """Publish a plan that has come, or a stop for as long as there is none that is fresh."""
        with self._lock:
            out = self._next()
            if out is not None:
                self._stopped = out.is_stop
        if out is not None:
            self._publish(out)

    def report(self) -> Report:
        """How things stand."""
        with self._lock:
            episode, followed, counts = self._episode, self._followed, self._counts
            return Report(
                stopped=self._stopped,
                trouble=self._trouble,
                connected=episode is not None and episode.loop.connected,
                goal_id="" if episode is None else episode.goal_id,
                goal_distance=float("nan") if followed is None else followed.plan.plan.goal_distance,
                plans=counts.plans,
                failed=counts.failed,
                refused=counts.refused,
                old_images=counts.old_images,
                round_trip_ms=float("nan") if followed is None else 1e3 * followed.plan.round_trip_s,
            )

    @property
    def goal_number(self) -> int:
        """Counts goals: whoever set one sees by it that there is another."""
        with self._lock:
            return self._goal_number

    def _next(self) -> Trajectory | None:
        now, episode = self._clock(), self._episode
        if episode is not None:
            for failed in episode.loop.errors():
                self._counts.failed += 1
                self._trouble = str(failed.error)
            newest = episode.loop.latest()
            if newest is not None and newest is not self._judged:
                self._judged = newest
                accepted = self._accept(newest, episode, now)
                if accepted is not None:
                    return accepted
            if self._followed is not None and self._followed.stopped_after_s is None:
                if now < self._followed.fresh_until:
                    return None
                self._followed.stopped_after_s = now - self._followed.seen_at
                if not self._trouble:
                    self._trouble = "the newest plan is stale"
        return self._stop() if self._names else None  # before the first answer nobody knows what a stop is

    def _accept(self, newest: presage.ControlPlan, episode: _Episode, now: float) -> Trajectory | None:
        """The plan to publish, or None where it is no good; then the one before it goes on until it is stale."""
        origin = self._seen.get(newest.plan.observation_sequence)
        if origin is None or newest.plan.provenance.goal_id != episode.goal_id:
            return None
        seen_at, frame = origin
        spec = episode.model.action
        assert spec is not None
        rest = spec.rest or self._rest()
        fault = _fault(newest.plan, replace(spec, rest=rest), self.settings.limits, frame)
        length_s = len(newest.plan.actions) / spec.rate_hz
        fresh_until = seen_at + min(self.settings.stale_after_s, length_s)
        if not fault and now >= fresh_until:
            fault = f"a plan is late: {now - seen_at:.3f} s after its image"
        if fault:
            self._counts.refused += 1
            self._trouble = fault
            return None
        for sequence in [number for number in self._seen if number < newest.plan.observation_sequence]:
            del self._seen[sequence]
        self._followed = Followed(newest, seen_at, fresh_until, spec.rate_hz)
        self._counts.plans += 1
        self._trouble = ""
        return Trajectory(
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id,
            names=self._names,
            times_s=tuple(number / spec.rate_hz for number in range(len(newest.plan.actions))),
            points=tuple(tuple(float(entry) for entry in action) for action in newest.plan.actions),
        )

    def _stop(self) -> Trajectory:
        return Trajectory(None, self._frame_id, self._names, (0.0,), (self._rest(),))

    def _rest(self) -> tuple[float, ...]:
        return self.settings.stop or (0.0,) * len(self._names)

    def _give_up(self, error: presage.PresageError) -> None:
        """The loop has ended for good; closing it takes time, so its threads are left to end by themselves."""
        self._trouble = str(error)
        self._counts.failed += 1
        self._episode = self._followed = self._judged = None
        self._seen.clear()


def _check_model(model: presage.Model, settings: BridgeSettings) -> presage.ActionSpec:
    """The model's actions. Raises PresageError for a model that this bridge cannot serve."""
    if model.action is None:
        raise presage.InvalidRequest(f"model {model.name} only embeds: it cannot plan")
    if model.image.cameras != 1:
        raise presage.InvalidRequest(f"model {model.name} wants {model.image.cameras} cameras: one is bridged")
    width = len(model.action.names)
    if settings.stop and len(settings.stop) != width:
        raise presage.InvalidRequest(f"stop must have {width} entries for model {model.name}, got {len(settings.stop)}")
    return model.action


def _fault(plan: presage.Plan, spec: presage.ActionSpec, limits: presage.ActionLimits, frame: Frame) -> str:
    """What is wrong with a plan; "" if nothing is."""
    actions = np.asarray(plan.actions)
    if actions.ndim != 2 or actions.shape[1] != len(spec.names) or not len(actions):
        return f"a plan has actions of shape {list(actions.shape)}, not [time, {len(spec.names)}]"
    low, high = np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32)
    if not (np.isfinite(actions).all() and (actions >= low).all() and (actions <= high).all()):
        return "a plan has actions that are not finite or outside the model's bounds"
    if broken := broken_limit(actions, spec.names, limits, spec.rest):
        return f"a plan has {broken}"
    if plan.capture_time_ns != frame.stamp_ns:
        return f"a plan has another image's stamp: {plan.capture_time_ns}, not {frame.stamp_ns}"
    return ""
