"""Plan scheduler: searches join and leave between iterations, are batched, and each stops on time.

Runs in the engine process. One `step` is one piece of work: encode newcomers, or one iteration of searches that can
share a rollout. Whoever's time ends first goes first; in a round everyone gets one iteration. Before any piece of work,
those that could not wait for its end are given their plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from presage.fields import from_fields
from presage.values import Plan

from model.interface import LoadedModel
from planner import registry, types
from planner.anytime import IterationClock
from planner.proposals import with_proposals
from planner.receding import of_length
from planner.search import priced, stack
from planner.types import ActionSpace, PlanningError, Problem, StopReason
from planner.world_model import WorldModel
from server.engine.messages import Done, Failed, FromEngine, Pace, PlanDone, PlanJob, SearchSize
from server.errors import Reason
from server.worker import model_adapter
from server.worker.batch_invariance import BatchSizes
from server.worker.heartbeat import Watchdog
from server.worker.scheduling.failures import failed
from server.worker.scheduling.fair_queue import FairQueue, mixed
from server.worker.scheduling.fitting import Fitted, fitted
from server.worker.scheduling.running import Running, Seen
from server.worker.scheduling.timing import Durations

TOGETHER_S = 0.1  # the longest piece of work that several searches share where others may come meanwhile
COMPANY_S = 60.0  # how long after its last plan a caller is still expected to come again


class PlanScheduler:
    """Every plan of one engine. `send` takes its results; `worlds` are the models as searches see them, `sizes` how
    many requests to each are computed together (`max_batch` where none is stated)."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        max_batch: int,
        max_iteration_steps: int,
        send: Callable[[FromEngine], None],
        clock: Callable[[], float],
        worlds: Mapping[str, WorldModel] | None = None,
        sizes: Mapping[str, BatchSizes] | None = None,
    ) -> None:
        self._models, self._send, self._clock = models, send, clock
        self._max_steps = max_iteration_steps
        self._sizes = sizes or {name: BatchSizes(max_batch, max_batch) for name in models}
        self._worlds = worlds or {name: model_adapter.world_model(model) for name, model in models.items()}
        measuring = (name for name, model in models.items() if model_adapter.measures_goals(model))
        self._measuring = {name: model_adapter.measuring_world_model(models[name]) for name in measuring}
        self._waiting: dict[int, PlanJob] = {}
        self._callers: dict[int, str] = {}  # of those waiting
        self.fair, self.weights = FairQueue(), dict[str, float]()
        self._came: dict[str, float] = {}  # callers, and when each last did
        self._running: dict[int, Running] = {}
        self._round: list[Running] = []  # who has not had an iteration in this round
        self._newcomers_first = True
        self.durations = Durations()
        self.watchdog = Watchdog(clock)
        self._steps = {name: IterationClock() for name in models}  # per model step of one sample
        self._least_step_s = dict.fromkeys(models, math.inf)
        self._least_encode_s = dict.fromkeys(models, math.inf)
        self.least_serial_s = dict.fromkeys(models, 0.0)  # one model step, however few the samples

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def callers(self) -> set[str]:
        """Those who have plans here."""
        return {*self._callers.values(), *(running.caller for running in self._running.values())}

    def add(self, number: int, job: PlanJob, caller: str = "") -> None:
        self._waiting[number], self._callers[number] = job, caller
        now = self._clock()
        self._came[caller] = now
        self._came = {each: came for each, came in self._came.items() if now - came < COMPANY_S}

    def cancel(self, number: int) -> None:
        """Drop a plan, if it is here."""
        self._waiting.pop(number, None)
        self._callers.pop(number, None)
        self._running.pop(number, None)

    def measure_anew(self) -> None:
        """Forget durations: first runs are slower than all others."""
        self.durations.forget()
        self._steps = {name: IterationClock() for name in self._models}
        self._least_step_s = dict.fromkeys(self._models, math.inf)
        self._least_encode_s = dict.fromkeys(self._models, math.inf)

    def pace(self, model: str) -> Pace:
        """How fast this engine is with a model."""
        least_step_s, least_encode_s = self._least_step_s[model], self._least_encode_s[model]
        return Pace(
            self._encoding_s(model, 1),
            self._steps[model].mean_s,
            least_encode_s if math.isfinite(least_encode_s) else 0.0,
            least_step_s if math.isfinite(least_step_s) else 0.0,
            self.least_serial_s[model],
        )

    def step(self, caller: str | None = None) -> None:
        """One piece of work for this caller, if there is any. Newcomers and those at work take turns.

        None: for whoever was served least.
        """
        if caller is None:
            if not self.busy:
                return
            caller = self.fair.next(self.callers)
        waits = caller in self._callers.values()
        runs = any(running.caller == caller for running in self._running.values())
        newcomers = waits and (self._newcomers_first or not runs)
        self._newcomers_first = not newcomers
        if newcomers:
            self._encode_newcomers(caller)
        elif runs:
            self._iterate(caller)

    def protect(self, seconds: float, company: Sequence[Running] = (), caller: str | None = None) -> bool:
        """Before work of that long without them: answer those that could not wait. Whether that took an iteration.

        Those of others than the work's `caller` are only improved meanwhile as far as they were not served more.
        """
        iterated = False
        urgent = [r for r in self._running.values() if r not in company and r.limit < self._clock() + seconds]
        for running in sorted(urgent, key=lambda r: r.limit):
            owed = caller is None or running.caller == caller or self.fair.is_owed(running.caller, caller)
            in_time = self._clock() + self._iteration_s([running]) <= running.limit
            if owed and running.search.iterations == 0 and in_time:
                self._improve([running])
                iterated = True
            if running.number in self._running and running.limit < self._clock() + seconds:
                self._end_in_time(running)
        return iterated

    # Newcomers

    def _encode_newcomers(self, caller: str) -> None:
        """Encode what newcomers to one model see, and start their searches: this caller's, and some of others."""
        model = next(job.model for number, job in self._waiting.items() if self._callers[number] == caller)
        alike = [number for number, job in self._waiting.items() if job.model == model]
        chosen = mixed([self._callers[number] for number in alike], caller)
        numbers = [alike[index] for index in chosen][: self._sizes[model].encoded]
        while len(numbers) > 1 and self._encoding_s(model, len(numbers)) > self._together_s:
            numbers = numbers[: len(numbers) // 2]
        self.protect(self._encoding_s(model, len(numbers)), caller=caller)
        batch: dict[int, PlanJob] = {}
        for number in numbers:
            if number not in self._waiting:
                continue
            job = self._waiting.pop(number)
            first_ends = (
                self._clock() + self._encoding_s(model, 1) + self._unseen_s(model, job.size.steps_per_iteration)
            )
            if job.deadline is not None and first_ends > job.deadline and not job.on_trust:
                del self._callers[number]
                self._refuse_late(number)
            else:
                batch[number] = job
        if batch:
            self._encode(model, batch)

    def _encode(self, model: str, batch: dict[int, PlanJob]) -> None:
        began = self._clock()
        try:
            with self.watchdog.work(self.durations.predict(("encode", model), len(batch))):
                pictures = [torch.tensor(job.start.frames[0]) for job in batch.values()]
                latents = model_adapter.encode_pictures(self._models[model], pictures)
                on_host = model_adapter.to_host(latents)
        except Exception as error:
            if len(batch) == 1:
                self._callers.pop(next(iter(batch)))
                self._send(failed(next(iter(batch)), error))
            else:  # one may have spoilt it for all
                for number, job in batch.items():
                    self._encode(model, {number: job})
            return
        encoded = self._clock()
        callers = {number: self._callers.pop(number) for number in batch}
        self.observe_encoding(model, len(batch), encoded - began)
        self._charge(encoded - began, callers.values())
        for row, (number, job) in enumerate(batch.items()):
            try:
                seen = Seen(pictures[row], latents[row], on_host[row], began, encoded)
                self._running[number] = self._begin(number, callers[number], job, seen)
            except Exception as error:
                self._send(failed(number, error))

    def observe_encoding(self, model: str, count: int, seconds: float) -> None:
        """Learn how long encoding so many frames took."""
        self.durations.observe(("encode", model), count, seconds)
        self._least_encode_s[model] = min(self._least_encode_s[model], seconds / count)

    def _charge(self, seconds: float, callers: Iterable[str]) -> None:
        self.fair.charge(seconds, Counter(callers), self.weights)

    def _begin(self, number: int, caller: str, job: PlanJob, seen: Seen) -> Running:
        """Raises PlanningError and ObservationError."""
        latent = seen.latent
        model, own = self._models[job.model], model_adapter.cost_of(self._models[job.model])
        goal = model_adapter.to_device(model, job.goal)
        near = model_adapter.seen_part(model, goal)
        goal_distance = model_adapter.distances(own, latent[None], near[None]).item()
        goal_reached = job.next_goal is not None and goal_distance <= job.switch_below
        if job.next_goal is not None and goal_reached:
            job = replace(job, goal=job.next_goal, next_goal=None, warm_start=None, arrival=None)
            goal = model_adapter.to_device(model, job.goal)
            near = model_adapter.seen_part(model, goal)
            goal_distance = model_adapter.distances(own, latent[None], near[None]).item()
        allowed = model_adapter.action_space(model, job.limits)
        assert allowed is not None  # a model that only embeds has no plans
        space = registry.searched(allowed, job.size.dimensions)
        proprioception = model_adapter.measured_at(job.start)
        context = model_adapter.context_of(model, job.start, latent, proprioception)
        shapes = tuple(tuple(part.shape) for part in context)
        chosen = self._fitted(job, space, shapes)
        size = chosen.size
        optimizer = registry.configured(size)
        optimizer = registry.adjusted(optimizer, size.metric or "", size.narrowing, size.sample_decay)
        measured = model_adapter.says_measurements(model, goal)
        if measured:
            optimizer = model_adapter.with_measurements(model, optimizer)
        left = None if job.warm_start is None else torch.tensor(job.warm_start)
        problem = Problem(
            context=context,
            goal=goal,
            space=space,
            seed=job.seed,
            warm_start=None
            if left is None
            else of_length(size.horizon * model.block, left, space, registry.tail(size.optimizer)),
            previous_action=None if job.previous_action is None else torch.tensor(job.previous_action),
            held=job.held,
            committed=None if job.committed is None else torch.tensor(job.committed),
            arrival=job.arrival,
            replace_margin=size.replace_margin,
        )
        # A proposer knows no camera but the one it was trained on, and no goal but what is seen.
        if model.proposer is not None and not job.start.turn_rad and not measured:
            world = model_adapter.world_model(model)
            problem = with_proposals(problem, model_adapter.proposer(model, model.proposer), world, optimizer)
        search = optimizer.start(problem, model.block)
        return Running(
            number=number,
            caller=caller,
            job=job,
            chosen=chosen,
            optimizer=optimizer,
            search=search,
            beginning=search.best_actions,
            price_s=0.0 if optimizer.cost == own else self._unseen_s(job.model, size.horizon),
            seen=seen,
            goal_distance=goal_distance,
            goal_reached=goal_reached,
            warnings=model.observation_warnings(seen.picture, proprioception),
            measured=measured,
            shapes=shapes,
        )

    # Iterations

    def _iterate(self, caller: str) -> None:
        """One iteration for the caller's most urgent search, and for as many of its kind as its time allows."""
        self._round = [r for r in self._round if r.number in self._running]
        if not any(r.caller == caller for r in self._round):
            self._round += [r for r in self._running.values() if r.caller == caller]
        first = min((r for r in self._round if r.caller == caller), key=lambda r: r.limit)
        alike = sorted((r for r in self._round if r.kind == first.kind), key=lambda r: r.limit)
        batch = [alike[index] for index in mixed([r.caller for r in alike], caller)][: self._room(first)]
        while len(batch) > 1 and self._iteration_s(batch) > min(first.limit - self._clock(), self._together_s):
            batch = batch[: len(batch) // 2]
        seconds = self._iteration_s(batch)
        if self.protect(seconds, batch, caller):
            return  # time has passed: choose anew
        if self._clock() + seconds > first.limit:
            self._end_in_time(first)
            return
        self._round = [r for r in self._round if r not in batch]
        self._improve(batch)

    @property
    def _together_s(self) -> float:
        """The longest that searches may share a piece of work: others who come meanwhile wait for its end."""
        return TOGETHER_S if len(self._came) > 1 else math.inf

    def _room(self, first: Running) -> int:
        """How many searches like this one fit into one rollout."""
        return max(1, min(self._sizes[first.job.model].searched, self._max_steps // first.steps))

    def _improve(self, batch: Sequence[Running]) -> None:
        first, began = batch[0], self._clock()
        kind, steps = first.kind, first.steps
        try:
            with self.watchdog.work(self.durations.predict(kind, len(batch))):
                worlds = self._measuring if first.measured else self._worlds
                improved = first.optimizer.improve(worlds[first.job.model], [r.search for r in batch])
        except Exception as error:
            if len(batch) == 1:
                del self._running[first.number]
                self._send(failed(first.number, error))
            else:  # one may have spoilt it for all
                for running in batch:
                    self._improve([running])
            return
        seconds = self._clock() - began
        self.durations.observe(kind, len(batch), seconds)
        self._charge(seconds, (running.caller for running in batch))
        each_s = seconds / (len(batch) * steps)
        self._steps[first.job.model].observe(each_s)
        self._least_step_s[first.job.model] = min(self._least_step_s[first.job.model], each_s)
        for running, search in zip(batch, improved, strict=True):
            running.search = search
            reason = running.optimizer.stopped(search)
            if reason is None and search.iterations == running.job.stop_after:
                reason = "iterations"
            if reason is not None:
                self._finish(running, reason)

    def _end_in_time(self, running: Running) -> None:
        if running.search.iterations == 0:
            del self._running[running.number]
            self._refuse_late(running.number)
        else:
            self._finish(running, "deadline" if running.limit == running.job.deadline else "budget")

    def _finish(self, running: Running, reason: StopReason) -> None:
        assert reason != "cancelled"
        del self._running[running.number]
        try:
            plan = running.optimizer.finish(running.search, reason)
            step_costs = self._own_costs(running, plan)
        except PlanningError as error:
            self._send(Failed(running.number, Reason.PLAN_FAILED, str(error)))
            return
        found = from_fields(
            Plan,
            plan,
            running,
            actions=model_adapter.to_host(plan.actions),
            cost=math.fsum(step_costs),
            step_costs=step_costs,
            objective=plan.cost,
            iterations_done=plan.iterations,
            warm_started=running.job.warm_start is not None,
            proposal_share=plan.proposed,
        )
        done = from_fields(
            PlanDone,
            running.chosen,
            running,
            running.seen,
            plan=found,
            unimproved=reason in ("budget", "deadline") and torch.equal(plan.actions, running.beginning),
            latent=running.seen.on_host,
            ended=self._clock(),
        )
        self._send(Done(running.number, done, {running.job.model: self.pace(running.job.model)}))

    def _own_costs(self, running: Running, plan: types.Plan) -> tuple[float, ...]:
        """Each step's share of what the plan costs by the model's own measure, which `RolloutJob` prices by too."""
        model = self._models[running.job.model]
        own = model_adapter.cost_of(model)
        if running.optimizer.cost == own:
            return plan.step_costs
        world = self._worlds[running.job.model]
        with torch.no_grad(), self.watchdog.work(running.price_s):
            batch = stack([running.search], world.block)
            batch = replace(batch, goal=model_adapter.seen_part(model, batch.goal))  # as `RolloutJob` prices it
            costs, _ = priced(world, own, batch, plan.actions[None, None])
        return tuple(costs[0, 0].tolist())

    def _refuse_late(self, number: int) -> None:
        self._send(Failed(number, Reason.DEADLINE, "there is no time left for one iteration by the deadline"))

    # Predictions

    def _fitted(self, job: PlanJob, space: ActionSpace, shapes: tuple[tuple[int, ...], ...]) -> Fitted:
        """The search to run: the one asked for, if time allows; on trust, or when repeated, that one in any case."""
        ends = [instant for instant in (job.deadline, job.budget_until) if instant is not None]
        if not ends or job.on_trust or job.stop_after is not None:
            return Fitted(job.size, job.size.iterations)
        held = space.frozen or (None,) * space.dimensions
        moved = job.size.horizon * self._models[job.model].block * held.count(None)
        left_s = max(0.0, min(ends) - self._clock())
        is_warm = job.warm_start is not None
        return fitted(job.size, moved, is_warm, left_s, lambda size: self._sampling_s(job.model, size, shapes))

    def _encoding_s(self, model: str, count: int) -> float:
        return self.durations.predict(("encode", model), count) or 0.0

    def _iteration_s(self, batch: Sequence[Running]) -> float:
        seconds = self.durations.predict(batch[0].kind, len(batch))
        return len(batch) * self._unseen_s(batch[0].job.model, batch[0].steps) if seconds is None else seconds

    def _sampling_s(self, model: str, size: SearchSize, shapes: tuple[tuple[int, ...], ...]) -> float:
        """An iteration that draws all samples of a search, as it was last measured or as others lead to expect.

        The shorter of the two: what was measured in a busy moment would keep a search from being tried again.
        """
        steps = size.steps_per_iteration
        measured = self.durations.predict((model, size, steps, shapes), 1)
        expected = self._unseen_s(model, steps)
        return expected if measured is None else min(measured, expected)

    def _unseen_s(self, model: str, steps: int) -> float:
        """An iteration of a kind not seen yet: in proportion to its model steps."""
        return steps * self._steps[model].estimate_s
