"""PlanScheduler and background_jobs of an engine around one model, on a clock that only the model's work moves."""

from __future__ import annotations

from presage.values import Plan
from torch import Tensor

from server.engine.messages import Done, Failed, FromEngine, PlanDone, PlanJob, SearchSize, Start
from server.worker.scheduling.background_jobs import BackgroundJobs
from server.worker.scheduling.plan_scheduler import PlanScheduler
from tests.support.server.linear import CONFIGS, Linear, frame, latent

ENCODE_S, ROLLOUT_S, SAMPLE_S = 0.01, 0.05, 0.001
SIZE = SearchSize(samples=50, iterations=5, elites=5, horizon=3)
ITERATION_S = ROLLOUT_S + SIZE.samples * SAMPLE_S  # 0.1


class Ticking(Linear):
    """A linear world that takes time: for each call, and for each sample of it. Keeps the size of every batch."""

    def __init__(self, name: str = "linear") -> None:
        super().__init__(CONFIGS[name])
        self.now = 100.0
        self.batches: list[int] = []

    def encode(self, frames: Tensor) -> Tensor:
        self.now += ENCODE_S
        return super().encode(frames)

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        self.batches.append(len(actions))
        self.now += ROLLOUT_S + SAMPLE_S * actions.shape[0] * actions.shape[1]
        if bool((context[0][:, 1] == 1).any()):
            raise RuntimeError("the bottom edge cannot be predicted from")
        return super().rollout(context, actions)


class Bench:
    """PlanScheduler and background_jobs around one ticking model, with their results."""

    def __init__(self, name: str = "linear", max_batch: int = 16, max_steps: int = 10_000) -> None:
        self.model = Ticking(name)
        self.sent: dict[int, FromEngine] = {}
        self.at: dict[int, float] = {}
        models = {name: self.model}
        self.scheduler = PlanScheduler(models, max_batch, max_steps, self._send, lambda: self.model.now)
        self.background_jobs = BackgroundJobs(models, self.scheduler, max_steps, self._send, lambda: self.model.now)

    def _send(self, message: FromEngine) -> None:
        assert isinstance(message, (Done, Failed))
        assert message.number not in self.sent, "answered twice"
        self.sent[message.number] = message
        self.at[message.number] = self.model.now

    def run(self) -> None:
        while self.scheduler.busy or self.background_jobs.busy:
            self.scheduler.step()
            self.background_jobs.step()

    def plan(self, number: int) -> Plan:
        return self.done(number).plan

    def done(self, number: int) -> PlanDone:
        message = self.sent[number]
        assert isinstance(message, Done), message
        assert isinstance(message.result, PlanDone)
        return message.result

    def failure(self, number: int) -> Failed:
        message = self.sent[number]
        assert isinstance(message, Failed)
        return message


def job(
    bench: Bench,
    right: float = 0.2,
    goal: float = 0.5,
    seed: int = 1,
    size: SearchSize = SIZE,
    left_s: float | None = None,
    budget_s: float | None = None,
    down: float = 0.5,
) -> PlanJob:
    now = bench.model.now
    return PlanJob(
        model=bench.model.package.config.name,
        start=Start((frame(right, down),)),
        goal=latent(goal, 0.5),
        size=size,
        seed=seed,
        deadline=None if left_s is None else now + left_s,
        budget_until=None if budget_s is None else now + budget_s,
    )


def measured(bench: Bench) -> Bench:
    """The bench, once it knows how long things take."""
    bench.scheduler.add(0, job(bench))
    bench.run()
    del bench.sent[0]
    bench.model.batches.clear()
    return bench
