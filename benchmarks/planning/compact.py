"""Planning with the compact family (the package `arm`): speed, quality over time, deadlines, batching."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.baselines.compact import PlainLoop, load_network
from benchmarks.planning.problems import ArmProblem, Served, problem_of
from benchmarks.planning.timing import Table, Work, interleaved, matrix_rate, operations
from planner import registry
from planner.anytime import Pace, plan_in_time
from planner.cost import GoalDistance
from planner.noise import Stream
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.receding import warm_start
from planner.types import Plan, Problem
from simulation.tasks import make

COST = GoalDistance()
FULL = CEM(samples=300, iterations=30, elites=30)
ENDLESS = replace(FULL, iterations=100_000)
# about what fits into 100 ms on two cores
DESCENDING = Hybrid(CEM(samples=100, iterations=1, elites=8), Gradient(starts=4, iterations=20, step=0.2))
STEPPING = Hybrid(
    CEM(samples=100, iterations=2, elites=8), GaussNewton(starts=4, iterations=20, opening=1), search_when_warm=False
)
PARETO = ("cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton")


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: int
    problems: int
    deadlines: int
    robots: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # samples and horizon
    pareto: tuple[tuple[int, int], ...]  # samples and iterations


QUICK = Scale(2, 4, 15, (1, 8), ((100, 5), (300, 5)), ((50, 4), (200, 8)))
WHOLE = Scale(
    7, 100, 1000, (1, 2, 4, 8, 16, 32), ((100, 5), (300, 5), (1000, 5), (100, 10), (300, 10), (1000, 10)),
    ((25, 2), (50, 4), (100, 6), (200, 8), (300, 15), (300, 30)),
)  # fmt: skip


def against_plain_loops(served: Served, problem: ArmProblem, scale: Scale) -> tuple[Table, dict[str, float]]:
    """300 x 30, horizon 5: the same search by plain loops, in float32, and as an engine serves it; and the floor."""
    fast, network = CEM.lewm_paper(unbounded=False), load_network(served.exact.package)
    action = served.exact.package.config.action
    assert action is not None
    shape = (fast.samples, fast.horizon * served.exact.block, len(action.names))

    def draw(iteration: int) -> torch.Tensor:
        return torch.randn(shape, generator=Stream(problem.problem.seed, iteration).generator(torch.device("cpu")))

    def from_pixels(model_name: str) -> Work:
        model = served.fast if model_name == "served" else served.exact
        space, seed = problem.problem.space, problem.problem.seed
        return lambda: fast.plan(model, problem_of(model, space, problem.image, problem.goal_image, seed)).actions

    def plain(stepwise: bool) -> Work:
        loop = PlainLoop(stepwise=stepwise)
        return lambda: loop.plan(network, action, problem.image, problem.goal_image, draw)

    works = {
        "plain loop, step by step as published": plain(stepwise=True),
        "plain loop, one call for the horizon": plain(stepwise=False),
        "Presage, float32": from_pixels("exact"),
        f"Presage, as served ({served.precision})": from_pixels("served"),
    }
    ms = interleaved(works, max(1, scale.repeats // 2))
    names = list(works)
    candidates = torch.zeros(1, *shape)
    counted = operations(lambda: served.exact.rollout(problem.problem.context, candidates)) * fast.iterations
    rate = matrix_rate(served.fast.dtype, served.fast.device)
    floor_ms = 1e3 * counted / rate
    rows: list[tuple[object, ...]] = [(name, ms[name], ms[names[0]] / ms[name]) for name in names]
    rows.append((f"floor: {counted / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s", floor_ms, ms[names[0]] / floor_ms))
    note = f"Both images encoded within each plan. Precision: {served.why}."
    ratios = {
        "plan_ms": ms[names[3]],
        "of_published_loop": ms[names[0]] / ms[names[3]],
        "of_one_call_loop": ms[names[1]] / ms[names[3]],
        "of_floor": ms[names[3]] / floor_ms,
    }
    return Table("One plan, 300 samples x 30 iterations, horizon 5", note, ("", "ms", "times as fast"), rows), ratios


def sizes(served: Served, problem: ArmProblem, scale: Scale) -> Table:
    """Time of one iteration; a plan takes as many of them as it has iterations."""
    rows: list[tuple[object, ...]] = []
    for samples, horizon in scale.sizes:
        optimizer = CEM(samples=samples, iterations=3, elites=max(2, samples // 10), horizon=horizon)
        works: dict[str, Work] = {
            name: lambda model=model, optimizer=optimizer: optimizer.plan(model, problem.problem).actions  # type: ignore[misc]
            for name, model in (("exact", served.exact), ("fast", served.fast))
        }
        ms = interleaved(works, scale.repeats)
        rows.append((samples, horizon, ms["exact"] / 3, ms["fast"] / 3, 30 * ms["fast"] / 3))
    as_served = f"served ({served.precision}) ms/iteration"
    columns = ("samples", "horizon", "float32 ms/iteration", as_served, "30 iterations ms")
    return Table("Time against samples, horizon and iterations", "Means over plans of 3 iterations.", columns, rows)


def company(served: Served, problems: list[ArmProblem], scale: Scale) -> tuple[Table, float]:
    """Robots in one batch against the same robots one after another."""
    optimizer = CEM(samples=200, iterations=2, elites=20)
    rows: list[tuple[object, ...]] = []
    gain = 1.0
    for count in scale.robots:
        asked = [problems[i % len(problems)].problem for i in range(count)]

        def together(asked: list = asked) -> object:  # type: ignore[type-arg]
            searches = [optimizer.start(problem, served.fast.block) for problem in asked]
            for _ in range(optimizer.iterations):
                searches = optimizer.improve(served.fast, searches)
            return searches

        def in_turn(asked: list = asked) -> object:  # type: ignore[type-arg]
            return [optimizer.plan(served.fast, problem) for problem in asked]

        ms = interleaved({"together": together, "in turn": in_turn}, scale.repeats)
        gain = ms["in turn"] / ms["together"]
        rows.append((count, 1e3 * count / ms["in turn"], 1e3 * count / ms["together"], gain))
    columns = ("robots", "plans/s one after another", "plans/s in one batch", "gain")
    return Table("Robots in one batch", "200 samples x 2 iterations, horizon 5.", columns, rows), gain


def punctuality(served: Served, problems: list[ArmProblem], scale: Scale) -> tuple[Table, float]:
    """How far plans overshoot a budget, seen from outside: setting up and finishing counted."""
    rows: list[tuple[object, ...]] = []
    worst = 0.0
    for budget_ms in (50, 100, 200):
        pace = Pace()
        ENDLESS.plan(served.fast, problems[0].problem, budget_s=0.2, pace=pace)
        over, iterations = [], []
        for index in range(scale.deadlines):
            problem = replace(problems[index % len(problems)].problem, seed=index)
            began = time.perf_counter()
            plan = ENDLESS.plan(served.fast, problem, budget_s=budget_ms / 1e3, pace=pace)
            over.append(max(0.0, 1e3 * (time.perf_counter() - began) - budget_ms))
            iterations.append(plan.iterations)
        p50, p99 = (float(np.percentile(over, percent)) for percent in (50, 99))
        worst = max(worst, p99)
        rows.append((budget_ms, len(over), float(np.mean(iterations)), p50, p99, max(over)))
    columns = ("budget ms", "plans", "iterations", "overshoot p50 ms", "p99 ms", "largest ms")
    return Table("Overshoot of a budget", "300 samples, horizon 5, never converging.", columns, rows), worst


def warm_starts(served: Served, problems: list[ArmProblem], scale: Scale) -> tuple[Table, float]:
    """A robot on its way: a second plan of 100 ms, warm-started, against 300 x 30 from nothing at the same place."""
    robot = make("arm")
    space, execute = problems[0].problem.space, served.exact.package.config.planner.execute
    searches = {"gauss-newton": (STEPPING, Pace()), "hybrid": (DESCENDING, Pace()), "cem": (ENDLESS, Pace())}
    for search, pace in searches.values():
        plan_in_time(search, served.fast, problems[0].problem, budget_s=0.5, pace=pace)

    def planned(name: str, problem: Problem) -> Plan:
        search, pace = searches[name]
        return plan_in_time(search, served.fast, problem, budget_s=0.1, pace=pace)

    costs: dict[tuple[str, str], list[float]] = {}
    full_costs, iterations = [], []
    for each in problems[: scale.problems]:
        first = planned("gauss-newton", each.problem)
        robot.set_state(each.pair.start_state)
        for action in first.actions[:execute].numpy():
            robot.act(action)
        now = torch.from_numpy(robot.render_state(robot.state).copy())
        cold = problem_of(served.exact, space, now, each.goal_image, each.problem.seed + 1)
        warm = replace(cold, warm_start=warm_start(first, execute, space))
        for name in searches:
            for kind, problem in (("warm-started", warm), ("from nothing", cold)):
                plan = planned(name, problem)
                costs.setdefault((name, kind), []).append(served.price(cold, plan.actions, COST))
        iterations.append(planned("gauss-newton", warm).iterations)
        full_costs.append(served.price(cold, FULL.plan(served.exact, cold).actions, COST))
    rows: list[tuple[object, ...]] = []
    full = np.array(full_costs)
    for (name, kind), found in costs.items():
        ratio = np.array(found) / full
        share = float(np.mean(ratio <= 1.02))
        rows.append((f"{name}, 100 ms, {kind}", float(np.sum(found) / full.sum()), float(np.median(ratio)), share))
    columns = ("plan", "cost / 300 x 30 (of sums)", "median of ratios", "share within 2 %")
    note = (
        f"{len(full)} held-out problems, float32 costs. gauss-newton: {STEPPING.polish.starts} starts, from "
        f"nothing after sampling {STEPPING.search.samples} twice; {np.mean(iterations):.1f} iterations of it fit into "
        f"100 ms of a warm-started plan. hybrid: "
        f"{DESCENDING.search.samples} samples, then descent from {DESCENDING.polish.starts}. cem: 300 samples. Each "
        f"plan continues a first gauss-newton one of 100 ms, {execute} actions of which were executed."
    )
    ratio = float(np.sum(costs["gauss-newton", "warm-started"]) / full.sum())
    return Table("Warm-started plans of 100 ms", note, columns, rows), ratio


def pareto(served: Served, problems: list[ArmProblem], scale: Scale) -> Table:
    """Final cost against time for every optimizer, means over the same problems."""
    chosen = problems[: min(20, scale.problems)]
    rows: list[tuple[object, ...]] = []
    for name in PARETO:
        for samples, iterations in scale.pareto:
            starts = max(2, samples // 25) if name == "gradient" else samples  # a gradient costs more, so fewer of them
            optimizer = registry.optimizer(name, starts, iterations, max(2, samples // 10), 5)
            costs, taken = [], []
            for each in chosen:
                began = time.perf_counter()
                plan = plan_in_time(optimizer, served.fast, each.problem)
                taken.append(1e3 * (time.perf_counter() - began))
                costs.append(served.price(each.problem, plan.actions, COST))
            rows.append((name, starts, iterations, float(np.median(taken)), float(np.mean(costs))))
    columns = ("optimizer", "samples", "iterations", "ms", "cost")
    return Table("Final cost against time", f"Mean float32 cost over {len(chosen)} problems.", columns, rows)
