"""Closed-loop success rate on given starts and goals, beside a random policy and an oracle.

Robots and policies come in as arguments (this floor knows no simulator), the service is not involved, and how the
numbers are shown is the caller's affair. Robots run one after another: a batch would change no outcome and save nothing
on a CPU (`arm`: 0.07 s of CPU for each search and iteration, alone or eight together), and the plan times measured are
then those of one robot that has the machine to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from presage.limits import held_for
from torch import Tensor

from model.interface import LoadedModel
from model.package import PackageError
from planner import registry
from planner.anytime import Optimizer, plan_in_time
from planner.proposals import with_proposals
from planner.receding import warm_start
from planner.types import ActionSpace, Plan, Problem
from training.evaluation.statistics import episode_seed, percentile, plan_seed, wilson_interval

State = NDArray[np.float64]
Policy = Callable[[State, State], NDArray[np.float32]]
"""From a state and the goal's state to the next action, in robot units."""


class Robot(Protocol):
    """What an evaluation needs of a robot; `simulation.tasks.RobotTask` is one."""

    @property
    def state(self) -> State: ...

    @property
    def proprioception(self) -> NDArray[np.float32]: ...

    def set_state(self, state: State, /) -> None: ...

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, RGB [height, width, 3], of the size the model takes."""
        ...

    def render_state(self, state: State, /) -> NDArray[np.uint8]: ...

    def act(self, action: NDArray[np.floating], /) -> None: ...

    def is_success(self, goal_state: State, /) -> bool: ...


class Rule(Protocol):
    """Another rule of success; `simulation.rules.Rule` is one."""

    @property
    def name(self) -> str: ...

    def met(self, states: NDArray[np.float64], goal: State, /) -> bool:
        """Whether it was met at some time; `states` [T, S] are those after each action."""
        ...


class Pair(Protocol):
    """A start and a goal; `index` names the pair, and its episode's seeds follow from it."""

    @property
    def index(self) -> int: ...

    @property
    def start_state(self) -> State: ...

    @property
    def goal_state(self) -> State: ...


AnyRobot = TypeVar("AnyRobot", bound=Robot)
PolicyMaker = Callable[[AnyRobot, np.random.Generator], Policy | None]
"""A policy for one episode; None where the task has no such policy."""


@dataclass(frozen=True)
class Episode:
    """One try at one pair. Success is latched: the try ends the first time the goal is reached."""

    pair: int
    success: bool
    steps: int  # robot actions taken
    plan_ms: tuple[float, ...] = ()  # search time of each plan, without encoding
    states: tuple[State, ...] = field(default=(), compare=False, repr=False)  # where it began, and after each action
    met: frozenset[str] = frozenset()  # names of the other rules that it met


@dataclass(frozen=True)
class Evaluation:
    """Every episode, and the same pairs under the baselines. `oracle` is None for a task that has none."""

    episodes: tuple[Episode, ...]
    random: tuple[Episode, ...]
    oracle: tuple[Episode, ...] | None
    initially_solved: int  # pairs left out because their start already counts as success

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, len(self.episodes))

    def plan_ms(self, percent: float) -> float | None:
        """A percentile of the time one plan took; None where no plan was needed."""
        return percentile([ms for episode in self.episodes for ms in episode.plan_ms], percent)


class Track:
    """One try under way: where it has been, and which rules it has met. It is over once it has met them all."""

    def __init__(self, pair: Pair, states: list[State], rules: Sequence[Rule]) -> None:
        self._pair, self._states = pair, states
        self._unmet = list(rules)
        self._met: set[str] = set()
        self._solved_at: int | None = None

    @property
    def over(self) -> bool:
        return self._solved_at is not None and not self._unmet

    def note(self, robot: Robot) -> None:
        """The robot has taken one more action."""
        self._states.append(robot.state)
        if self._solved_at is None and robot.is_success(self._pair.goal_state):
            self._solved_at = len(self._states) - 1
        after = np.stack(self._states[1:])
        for rule in [rule for rule in self._unmet if rule.met(after, self._pair.goal_state)]:
            self._unmet.remove(rule)
            self._met.add(rule.name)

    def episode(self, steps: int, plan_ms: tuple[float, ...] = ()) -> Episode:
        """The try as it ended; its steps are those up to its success, where there was one."""
        solved = self._solved_at is not None
        taken = steps if self._solved_at is None else self._solved_at
        return Episode(self._pair.index, solved, taken, plan_ms, tuple(self._states), frozenset(self._met))


def success_rate(episodes: Sequence[Episode]) -> float:
    """The share of episodes that reached their goal; ValueError without any."""
    if not episodes:
        raise ValueError("episodes must hold at least one")
    return sum(episode.success for episode in episodes) / len(episodes)


def evaluate(
    model: LoadedModel,
    optimizer: Optimizer,
    make_robot: Callable[[], AnyRobot],
    pairs: Sequence[Pair],
    *,
    seed: int,
    random_policy: PolicyMaker[AnyRobot],
    oracle_policy: PolicyMaker[AnyRobot],
    budget_steps: int = 50,
    rules: Sequence[Rule] = (),
    progress: Callable[[Episode], None] = lambda episode: None,
    execute: int | None = None,
    action_scale: float = 1.0,
) -> Evaluation:
    """Drive a robot from every pair's start towards the image of its goal, and let the baselines try the same pairs.

    Seeds belong to pairs: outcomes depend neither on the order of pairs nor on how many there are. With `rules`, a try
    goes on after its success until they are met too, or the budget is spent. `progress` is called after each episode of
    the model. `execute` is how many actions of a plan are taken, instead of the package's; the robot gets the model's
    actions times `action_scale`. Raises ValueError for no pairs left or a budget below 1, PackageError for a model
    that has no actions.
    """
    if budget_steps < 1:
        raise ValueError(f"budget_steps must be >= 1, got {budget_steps}")
    robot = make_robot()
    unsolved = [pair for pair in pairs if not _starts_solved(robot, pair)]
    if not unsolved:
        raise ValueError(f"pairs must hold one that is not solved at its start, got {len(pairs)} pairs")
    episodes = []
    for pair in unsolved:
        own = episode_seed(seed, pair.index)
        episodes.append(run_episode(model, optimizer, robot, pair, own, budget_steps, rules, execute, action_scale))
        progress(episodes[-1])
    random = run_policy(robot, random_policy, unsolved, seed, budget_steps, rules)
    assert random is not None
    oracle = run_policy(robot, oracle_policy, unsolved, seed, budget_steps, rules)
    return Evaluation(tuple(episodes), random, oracle, len(pairs) - len(unsolved))


def run_episode(
    model: LoadedModel,
    optimizer: Optimizer,
    robot: Robot,
    pair: Pair,
    seed: int,
    budget_steps: int,
    rules: Sequence[Rule] = (),
    execute: int | None = None,
    action_scale: float = 1.0,
) -> Episode:
    """Receding horizon from images alone: look, search from the last plan's rest, execute a few actions, look again."""
    settings = model.package.config.planner
    space, execute = action_space(model), execute or settings.execute
    robot.set_state(pair.start_state)
    goal = encode_image(model, robot.render_state(pair.goal_state))
    latents: list[Tensor] = []
    taken: list[NDArray[np.float32]] = []
    proprioception: list[NDArray[np.float32]] = []
    plan: Plan | None = None
    held: tuple[float, ...] | None = None
    executed = steps = 0
    plan_ms: list[float] = []
    track = Track(pair, [robot.state], rules)
    while steps < budget_steps and not track.over:
        latents = [*latents, encode_image(model, robot.render())][-model.package.config.history :]
        proprioception = [*proprioception, robot.proprioception][-model.package.config.history :]
        problem = Problem(
            context=_context(model, latents, proprioception, taken, execute),
            goal=goal,
            space=space,
            seed=plan_seed(seed, len(plan_ms)),
            warm_start=None if plan is None else warm_start(plan, executed, space, registry.tail(settings.optimizer)),
            previous_action=None if plan is None else plan.actions[executed - 1],
            held=held,
            arrival=None if plan is None else plan.arrival_after(executed),
            replace_margin=model.package.config.planner.replace_margin,
        )
        began = time.perf_counter()
        if model.proposer is not None:
            problem = with_proposals(problem, model.proposer, model, optimizer)
        before = None if plan is None else plan.actions[executed - 1].tolist()
        plan = plan_in_time(optimizer, model, problem)
        actions = plan.actions.cpu().numpy()
        plan_ms.append((time.perf_counter() - began) * 1000)
        for executed, action in enumerate(actions[: min(execute, budget_steps - steps)], start=1):  # noqa: B007  # used below
            robot.act(action * np.float32(action_scale))
            taken.append(action)
            track.note(robot)
            if track.over:
                break
        held = held_for(actions[:executed].tolist(), before, held)
        steps += executed
    return track.episode(steps, tuple(plan_ms))


def run_policy(
    robot: AnyRobot,
    make_policy: PolicyMaker[AnyRobot],
    pairs: Sequence[Pair],
    seed: int,
    budget_steps: int,
    rules: Sequence[Rule] = (),
) -> tuple[Episode, ...] | None:
    """A policy that needs no model on every pair, or None where the task has none. Each pair has its own generator."""
    episodes = []
    for pair in pairs:
        robot.set_state(pair.start_state)
        policy = make_policy(robot, np.random.default_rng([seed, pair.index]))
        if policy is None:
            return None
        track, steps = Track(pair, [robot.state], rules), 0
        while not track.over and steps < budget_steps:
            robot.act(policy(robot.state, pair.goal_state))
            track.note(robot)
            steps += 1
        episodes.append(replace(track.episode(steps), states=()))
    return tuple(episodes)


def _context(
    model: LoadedModel,
    latents: Sequence[Tensor],
    proprioception: Sequence[NDArray[np.float32]],
    taken: Sequence[NDArray[np.float32]],
    execute: int,
) -> tuple[Tensor, ...]:
    """Where rollouts start. Models that look back on past actions get them where images are a model step apart."""
    config, measured = model.package.config, proprioception_of(model, proprioception)
    back = (len(latents) - 1) * model.block
    if not (config.past_actions and execute == model.block and back):
        return model.context(latents, measured)
    past = torch.from_numpy(np.stack(taken[len(taken) - back :])).to(model.device)
    return model.context(latents, measured, past)


def encode_image(model: LoadedModel, image: NDArray[np.uint8]) -> Float[Tensor, "*latent"]:
    """The latent of one RGB image [height, width, 3]."""
    return model.encode(torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0))[0]


def proprioception_of(
    model: LoadedModel, proprioception: Sequence[NDArray[np.float32]]
) -> Float[Tensor, "history p"] | None:
    """The newest measurements as the model takes them; None for a model that uses none."""
    if not model.package.config.proprioception_names:
        return None
    return torch.from_numpy(np.stack(proprioception)).to(model.device)


def action_space(model: LoadedModel) -> ActionSpace:
    """What a search with this model may tell its robot to do. PackageError for a model that only embeds."""
    action = model.package.config.action
    if action is None:
        raise PackageError(f"{model.package.config.name} only embeds: it has no actions to plan with")
    return registry.searched(registry.action_space(action), model.package.config.planner.dimensions)


def _starts_solved(robot: Robot, pair: Pair) -> bool:
    robot.set_state(pair.start_state)
    return robot.is_success(pair.goal_state)
