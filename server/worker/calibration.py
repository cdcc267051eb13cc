"""Camera calibration from exploratory moves: fits the yaw between inferred and executed actions.

For each move, the action that the model thinks happened is searched for: one step from the image before toward the
image after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from presage.optimizers import PROPOSER_ALONE

from model.camera_yaw import fit_camera_yaw
from model.interface import LoadedModel
from planner import registry
from planner.types import Problem
from server.engine.messages import CalibrateDone, CalibrateJob, Move, SearchSize
from server.errors import Reason, invalid
from server.worker import model_adapter
from server.worker.scheduling.job import BackgroundJob, WorkItem


def calibrate(model: LoadedModel, job: CalibrateJob, max_steps: int) -> BackgroundJob:
    """Fit the turn. Raises ServiceError where the model's account of the moves explains nothing of them."""
    at_once = max(1, max_steps // job.size.samples)
    understood = []
    for first in range(0, len(job.moves), at_once):
        moves = job.moves[first : first + at_once]
        yield WorkItem(("encode", job.model), 2 * len(moves))
        named = "cem" if job.size.optimizer == PROPOSER_ALONE else job.size.optimizer  # nothing is proposed for a frame
        optimizer = registry.optimizer(named, job.size.samples, job.size.iterations, job.size.elites, horizon=1)
        world = model_adapter.world_model(model)
        searches = [optimizer.start(problem, model.block) for problem in _problems(model, moves, job.size)]
        running = dict(enumerate(searches))
        while running:
            yield WorkItem(("calibrate", job.model, job.size), len(running))
            improved = optimizer.improve(world, list(running.values()))
            searches = [*searches]
            for row, search in zip(list(running), improved, strict=True):
                searches[row] = running[row] = search
                if optimizer.stopped(search) is not None:
                    del running[row]
        understood += [_action(optimizer.finish(search, "iterations").actions) for search in searches]
    moved = torch.from_numpy(np.stack([move.action for move in job.moves]))[:, :2]
    found = fit_camera_yaw(moved, torch.stack(understood)[:, :2])
    length = float(moved.double().square().sum(-1).mean().sqrt())
    if found.residual >= length:
        rule = f"must be moves that the model can see: what it made of them leaves all {length:.3g} of them unexplained"
        raise invalid("moves", rule, f"{found.residual:.3g}", Reason.UNSUPPORTED)
    return CalibrateDone(found)


def _problems(model: LoadedModel, moves: Sequence[Move], size: SearchSize) -> list[Problem]:
    """One step from each move's image before toward its image after, not turned yet."""
    space = model_adapter.action_space(model)
    assert space is not None
    before = model_adapter.encode_frames(model, [move.before.frames[0] for move in moves])
    after = model_adapter.encode_frames(model, [move.after for move in moves])
    return [
        Problem(
            context=model_adapter.context_of(
                model, replace(move.before, turn_rad=0.0), seen, model_adapter.measured_at(move.before)
            ),
            goal=goal,
            space=registry.searched(space, size.dimensions),
            seed=number,
        )
        for number, (move, seen, goal) in enumerate(zip(moves, before, after, strict=True))
    ]


def _action(actions: torch.Tensor) -> torch.Tensor:
    """One action for the block [block, action] of a step."""
    return actions.mean(0).cpu()
