"""The loop that every training runs: schedule, gradients, optimizer step, measurement, log line, checkpoint.

A training says how its gradients are made and how its log lines read; seeds, resuming and stopping are the loop's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from presage.user_error import UserError
from torch import Tensor, nn

from training.checkpoint import CHECKPOINT, Stateful, resume_checkpoint, save_checkpoint
from training.distributed import ALONE, ProcessGroup


class Recipe(Protocol):
    """The settings that every recipe has."""

    @property
    def steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def gradient_clip(self) -> float: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def seed(self) -> int: ...


class Line(Protocol):
    """What every training logs of a step."""

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def seconds(self) -> float: ...


LineT = TypeVar("LineT", bound=Line)


@dataclass(frozen=True)
class Moment:
    """Where a training is when a step has been taken."""

    step: int  # steps taken, those before an interruption included
    here: int  # of them, in this process
    steps: int  # in all
    seconds: float  # spent, those before an interruption included
    seconds_here: float
    measuring: bool  # whether held-out data is to be measured: before every checkpoint, and at the end

    @property
    def last(self) -> bool:
        return self.step == self.steps


class DivergedError(UserError, ArithmeticError):
    """A NaN or infinite loss; `checkpoint` is the last good one, if there is any."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        kept = f"{checkpoint} is from before" if checkpoint else "there is no checkpoint yet"
        super().__init__(f"the loss of step {step} is not finite: lower learning_rate or raise regularizer; {kept}")


@dataclass(frozen=True)
class Training:
    """What a loop changes and saves: parameters under an optimizer, the generator that draws batches.

    `made_with` guards the checkpoint: a run resumes only what was made with the same.
    """

    recipe: Recipe
    out: Path
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, Stateful]  # the networks; the optimizer is saved beside them
    generator: torch.Generator
    made_with: Mapping[str, str]  # settings and what is trained on, each by its name
    factor: Callable[[int], float]  # of the learning rate, at a step

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def run(
        self,
        gradients: Callable[[], Tensor],
        line: Callable[[Moment, list[float]], LineT],
        progress: Callable[[LineT], None],
        *,
        after_step: Callable[[], None] = lambda: None,
        generator_state: Callable[[], Tensor] | None = None,
        group: ProcessGroup = ALONE,
    ) -> LineT | None:
        """Train to the recipe's last step; the last log line, None where every step was taken before.

        `gradients` adds one step's gradients and returns its losses and other numbers, a vector. `line` turns their
        mean over processes into a log line, and measures where the moment asks. `generator_state` is the state to
        save where batches are drawn ahead. Raises DivergedError, ValueError for a checkpoint of another training, and
        OSError for one that cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        parts = {**self.parts, "optimizer": self.optimizer}
        first, spent = resume_checkpoint(self.checkpoint, parts, self.generator, self.made_with)
        began = time.monotonic()
        last_line: LineT | None = None
        for step in range(first, self.recipe.steps):
            values = group.mean(self._step(step, gradients, group))
            if not bool(values.isfinite().all()):
                raise DivergedError(step + 1, self.checkpoint if self.checkpoint.exists() else None)
            after_step()
            here = time.monotonic() - began
            taken = step + 1
            measuring = taken == self.recipe.steps or taken % self.recipe.checkpoint_every == 0
            moment = Moment(taken, taken - first, self.recipe.steps, spent + here, here, measuring)
            last_line = line(moment, values.tolist())
            progress(last_line)
            if measuring and not moment.last and group.first:
                generator = self.generator
                if generator_state is not None:
                    generator = torch.Generator()
                    generator.set_state(generator_state())
                save_checkpoint(self.checkpoint, parts, generator, self.made_with, taken, last_line.seconds)
        return last_line

    def _step(self, step: int, gradients: Callable[[], Tensor], group: ProcessGroup) -> Tensor:
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.recipe.learning_rate * self.factor(step)
        parameters = [parameter for settings in self.optimizer.param_groups for parameter in settings["params"]]
        self.optimizer.zero_grad(set_to_none=True)
        values = gradients()
        group.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, self.recipe.gradient_clip)
        self.optimizer.step()
        return values.detach()
