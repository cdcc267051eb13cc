"""Number of threads and precision of an engine, both measured when it starts.

Lower precision is taken where it is faster and chooses the same actions: plans toward goals that the model itself
imagines, made with both precisions from the same seeds, are compared by float32's own costs. Nothing here is learned
while serving.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from model.interface import LoadedModel
from model.layers.float8 import E4M3, has_units
from model.layers.int8 import has_vnni
from planner import registry
from planner.anytime import plan_in_time
from planner.types import ActionSpace, PlanningError, Problem
from planner.world_model import CostFunction
from server.engine.messages import SearchSize
from server.worker import model_adapter

PROBLEMS = 8  # imagined by a model to compare precisions on
GATE_S = 20.0  # what their plans may take together
FEWEST_PROBLEMS, FEWEST_ITERATIONS = 4, 5  # where the model's own search takes longer; less would prove little
WORK_S = 0.5  # the longest piece of work to measure with, where a model leaves a choice
LEAST_SPEEDUP = 1.2
LARGEST_GAP = 0.05  # of an action's range, mean over what would be executed; another seed moves `arm` by 0.09
LARGEST_EXCESS = 0.03  # of float32's own cost, over all problems; another seed changes each by 0.15 with `arm`
LEAST_COSINE = 0.999  # of embeddings, where a model does not act


@dataclass(frozen=True)
class Verdict:
    """Which precision a model computes in, and why."""

    dtype: torch.dtype
    why: str


@dataclass(frozen=True)
class Agreement:
    """What another precision changes in the plans for the same problems and seeds."""

    gap: float  # mean difference of the actions of the first model step, as a share of their range
    excess: float  # share by which its plans cost more, all priced in float32

    @property
    def holds(self) -> bool:
        return self.gap <= LARGEST_GAP and self.excess <= LARGEST_EXCESS


def fastest_threads(work: Callable[[], object], available: int) -> int:
    """How many threads do the work soonest: a power of two, or all that are available."""
    counts = sorted({available, *(1 << i for i in range(available.bit_length()) if 1 << i <= available)})
    if len(counts) == 1:
        return counts[0]
    before = torch.get_num_threads()
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(4):  # in turns, so that whatever else the machine does hits all of them alike
        for count in counts:
            torch.set_num_threads(count)
            work()
            taken[count].append(_seconds(work))
    torch.set_num_threads(before)
    return min(counts, key=lambda count: statistics.median(taken[count]))


def available_cpus() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Work:
    """What an engine does most with a model: a rollout as large as its own searches', or an encoding if it only embeds.

    A rollout of fewer samples where that many would take longer than `WORK_S`.
    """

    frames: Tensor
    context: tuple[Tensor, ...] = ()
    actions: Tensor | None = None

    @classmethod
    def of(cls, model: LoadedModel, size: SearchSize) -> Work:
        frames, space = _noise_image(model), model_adapter.action_space(model)
        if space is None:
            return cls(frames)
        context = _context(model, model.encode(frames)[0])
        few = cls(frames, context, _random_actions(model, space, min(4, size.samples), size.horizon, 0))
        few.done_by(model)
        each_s = _seconds(lambda: few.done_by(model)) / few.samples
        count = max(few.samples, min(size.samples, int(WORK_S / max(each_s, 1e-9))))
        return cls(frames, context, _random_actions(model, space, count, size.horizon, 0))

    @property
    def samples(self) -> int:
        return 1 if self.actions is None else self.actions.shape[1]

    @torch.no_grad()
    def done_by(self, model: LoadedModel) -> Tensor:
        return model.encode(self.frames) if self.actions is None else model.rollout(self.context, self.actions)


def in_precision(model: LoadedModel, precision: str) -> LoadedModel:
    """The model in the precision that was set. Raises RuntimeError where its device has no units for it."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": E4M3, "int8": torch.int8}[precision]
    if dtype == E4M3 and not has_units(model.device):
        rule = "needs a CUDA device of compute capability 8.9 or later (Ada, Hopper and newer)"
        raise RuntimeError(f"precision float8 {rule}, got {model.device}; auto takes the best there is")
    if dtype == torch.int8 and not has_vnni(model.device):
        rule = "needs a processor with VNNI"
        raise RuntimeError(f"precision int8 {rule}, got {model.device}; auto takes the best there is")
    return model.to_precision(dtype)


def with_best_precision(model: LoadedModel, size: SearchSize) -> tuple[LoadedModel, Verdict]:
    """The model in the lowest precision that is faster than the next and agrees with the model as it is."""
    served, why, share = _lowered(model, model.dtype, torch.bfloat16, size, 1.0)
    eight_bits = _eight_bits(model)
    if eight_bits is None:
        return served, Verdict(served.dtype, why)
    next_best = served.dtype
    del served  # two networks at most are held: if need be it is made again
    lowest, of_lowest, _ = _lowered(model, next_best, eight_bits, size, share)
    if lowest is not model:
        return lowest, Verdict(lowest.dtype, of_lowest)
    served = model.to_precision(next_best)
    return served, Verdict(served.dtype, f"{why}; {of_lowest}")


def _eight_bits(model: LoadedModel) -> torch.dtype | None:
    """The 8-bit numbers worth trying: floats for rollouts, integers for encoders; None without units for them."""
    if model_adapter.action_space(model) is not None:
        return E4M3 if has_units(model.device) else None
    return torch.int8 if has_vnni(model.device) else None


def _lowered(
    model: LoadedModel, best: torch.dtype, dtype: torch.dtype, size: SearchSize, share: float
) -> tuple[LoadedModel, str, float]:
    """The model in `dtype` where that is faster than in `best` and agrees with `model`, else the model; and why.

    `share` is of the model's own time what it takes in `best`. The last value is that of what is to be served now.
    """
    lowered = model.to_precision(dtype)
    if lowered.dtype == best:
        return model, "it is loaded so", share
    own_s, lowered_s = _iterations_s((model, lowered), size)
    name, than, speedup = _name(lowered), _name(model), share * own_s / lowered_s
    if speedup < LEAST_SPEEDUP:
        return model, f"{name} is {speedup:.2f} times as fast here, not {LEAST_SPEEDUP}", share
    if model_adapter.action_space(model) is None:
        cosine = _embedding_cosine(model, lowered)
        if not cosine >= LEAST_COSINE:
            return model, f"{name} embeddings have a cosine of {cosine:.5f} to {than}'s", share
        return lowered, f"{speedup:.2f} times as fast, cosine of embeddings {cosine:.5f}", lowered_s / own_s
    problems = PROBLEMS
    if problems * size.iterations * (own_s + lowered_s) > GATE_S:
        problems, iterations = FEWEST_PROBLEMS, int(GATE_S / (FEWEST_PROBLEMS * (own_s + lowered_s)))
        if iterations < FEWEST_ITERATIONS:
            needed_s = FEWEST_PROBLEMS * FEWEST_ITERATIONS * (own_s + lowered_s)
            return model, f"comparing precisions would take {needed_s:.0f} s, over {GATE_S:.0f}", share
        size = replace(size, iterations=min(size.iterations, iterations))
    try:
        measured = agreement(model, lowered, size, imagined_problems(model, size, problems))
    except PlanningError as error:
        return model, f"precisions could not be compared: {error}", share
    text = (
        f"{problems} plans of {size.iterations} iterations: actions differ by {measured.gap:.4f} of their range, "
        f"{than} cost {1 + measured.excess:.4f} of its plans'"
    )
    if not measured.holds:
        return model, f"{name} does not agree: {text}", share
    return lowered, f"{speedup:.2f} times as fast; {text}", lowered_s / own_s


def agreement(model: LoadedModel, lowered: LoadedModel, size: SearchSize, problems: Sequence[Problem]) -> Agreement:
    """Plan each problem with both, and price both plans with `model`."""
    optimizer = registry.configured(size)
    gaps, costs, lowered_costs = [], 0.0, 0.0
    for problem in problems:
        own, other = (plan_in_time(optimizer, each, problem).actions for each in (model, lowered))
        span = torch.tensor(problem.space.high) - torch.tensor(problem.space.low)
        free = span > 0  # of a dimension that is held nothing differs
        shares = (own - other).abs().cpu()[: model.block, free] / span[free]
        gaps.append(float(shares.mean()) if shares.numel() else 0.0)
        costs += _price(model, problem, own, optimizer.cost)
        lowered_costs += _price(model, problem, other, optimizer.cost)
    return Agreement(statistics.fmean(gaps), lowered_costs / max(costs, 1e-12) - 1)


def imagined_problems(model: LoadedModel, size: SearchSize, count: int = PROBLEMS) -> list[Problem]:
    """Problems that need no pictures: goals where random actions lead by the model, each start the last one's goal."""
    space = model_adapter.action_space(model)
    assert space is not None
    space = registry.searched(space, size.dimensions)
    latent = model.encode(_noise_image(model))[0]
    problems = []
    for seed in range(count):
        context = _context(model, latent)
        actions = _random_actions(model, space, 1, size.horizon, seed)
        with torch.no_grad():
            goal = model.rollout(context, actions)[0, 0, -1]
        problems.append(Problem(context, goal, space, seed))
        latent = goal
    return problems


def _iterations_s(models: Sequence[LoadedModel], size: SearchSize) -> list[float]:
    """What an iteration of the size takes with each of the models."""
    work = Work.of(models[0], size)
    taken: list[list[float]] = [[] for _ in models]
    for model in models:
        work.done_by(model)  # first runs build caches
    for _ in range(5):  # in turns, so that whatever else the machine does hits all alike
        for times, model in zip(taken, models, strict=True):
            times.append(_work_seconds(models[0].device, partial(work.done_by, model)))
    return [statistics.median(times) * size.samples / work.samples for times in taken]


def _name(model: LoadedModel) -> str:
    return "float8" if model.dtype == E4M3 else str(model.dtype).removeprefix("torch.")


@torch.no_grad()
def _price(model: LoadedModel, problem: Problem, actions: Tensor, cost: CostFunction) -> float:
    candidate = actions[None, None]
    return float(cost(model.rollout(problem.context, candidate), problem.goal[None], candidate).sum())


def _context(model: LoadedModel, latent: Tensor) -> tuple[Tensor, ...]:
    """As if the latent had been seen all along by a robot at its zero."""
    config = model.package.config
    proprioception = None
    if config.proprioception_names:
        proprioception = torch.zeros(config.history, len(config.proprioception_names), device=model.device)
    return model.context([latent] * config.history, proprioception)


def _random_actions(model: LoadedModel, space: ActionSpace, samples: int, horizon: int, seed: int) -> Tensor:
    """[1, samples, time, action], anywhere within the bounds, held for one model step each: so they lead somewhere."""
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    drawn = torch.rand(1, samples, horizon, len(low), generator=torch.Generator().manual_seed(seed))
    return (low + (high - low) * drawn).repeat_interleave(model.block, dim=2).to(model.device)


def _noise_image(model: LoadedModel) -> Tensor:
    image = model.package.config.image
    shape = (1, image.height, image.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _embedding_cosine(model: LoadedModel, lowered: LoadedModel) -> float:
    """The lowest cosine between two precisions' tokens of one image."""
    own, other = (each.encode(_noise_image(model)).float().flatten(0, -2) for each in (model, lowered))
    return float(torch.cosine_similarity(own, other, dim=-1).min())


def _work_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """What one run costs: processor time on processors, so that the choice is the same on a busy machine."""
    if device.type != "cpu":
        return _seconds(work)
    began = time.process_time()
    work()
    return time.process_time() - began


def _seconds(work: Callable[[], object]) -> float:
    """What one run takes. An accelerator is waited for through the result."""
    began = time.perf_counter()
    result = work()
    if isinstance(result, Tensor):
        result.flatten()[0].item()
    return time.perf_counter() - began
