"""CUDA graphs captured at engine start: rollouts of each model's own search, by `model.runtime.cuda_graphs`."""

from __future__ import annotations

import torch

from model.interface import LoadedModel
from model.runtime.cuda_graphs import CudaGraphs, Graphed, rehearsed
from planner.world_model import WorldModel
from server.engine.messages import Graphs, SearchSize
from server.worker import model_adapter

ROBOTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
"""PlanScheduler in one rollout that are captured; a number between two of them takes the larger one's graph."""


def searched(
    model: LoadedModel, size: SearchSize, graphs: Graphs, max_batch: int, max_steps: int
) -> tuple[WorldModel, str]:
    """The model as searches see it, and in words which of its rollouts are replayed as graphs, or why none.

    A model that cannot be captured plans all the same, only slower.
    """
    world = model_adapter.world_model(model)
    if graphs == "off":
        return world, "no graphs: they are off"
    if model.package.config.action is None:
        return world, "no graphs: it only embeds"
    if model.device.type != "cuda" and graphs == "auto":
        return world, f"no graphs: {model.device.type} has none"
    graphed = Graphed(world, CudaGraphs(model.device) if model.device.type == "cuda" else rehearsed)
    most = min(max_batch, max(1, max_steps // size.steps_per_iteration))
    context, actions = _resting(model, size)
    graphed.capture(context, actions, [robots for robots in ROBOTS if robots <= most])
    if not graphed.sizes:
        return world, f"no graphs: {graphed.why_not}"
    told = f"graphs of {size.samples} samples for {', '.join(str(robots) for robots, _ in graphed.sizes)} robots"
    return graphed, f"{told}; none of {graphed.why_not}" if graphed.why_not else told


def _resting(model: LoadedModel, size: SearchSize) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """A rollout as large as the model's own search makes them: of a robot at its zero that does nothing."""
    config = model.package.config
    assert config.action is not None
    image = config.image
    latent = model.encode(torch.zeros(1, image.height, image.width, 3, dtype=torch.uint8))[0]
    proprioception = None
    if config.proprioception_names:
        proprioception = torch.zeros(config.history, len(config.proprioception_names))
    context = model_adapter.context(model, [latent] * config.history, proprioception, turn_rad=0.0)
    time = size.horizon * model.block
    return context, torch.zeros(1, size.samples, time, len(config.action.names), device=model.device)
