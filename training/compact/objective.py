"""Loss of compact training: prediction of the next latents, SIGReg, inverse dynamics, and labels.

Where recordings say more of a frame than its pixels, latents can be made to tell it too. One batch's losses; the loop
around them is in `training.compact.train`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from model.compact.network import CompactConfig, CompactNetwork, to_network_input
from model.normalizer import ActionNormalizer
from training.compact.sigreg import sigreg
from training.compact.windows import Batch
from training.distributed import ALONE, ProcessGroup, share_batch_norms


class Learner(nn.Module):
    """What is trained: the network that will be kept, and the heads that will not: inverse dynamics, and what tells
    `labels` numbers from one latent by a straight line."""

    def __init__(self, config: CompactConfig, normalizer: ActionNormalizer, labels: int = 0) -> None:
        super().__init__()
        self.network = CompactNetwork(config)
        self.normalizer = normalizer
        self.inverse = nn.Sequential(nn.Linear(2 * config.latent, 256), nn.GELU(), nn.Linear(256, config.action_width))
        self.labeling = nn.Linear(config.latent, labels) if labels else None


@dataclass(frozen=True)
class Losses:
    """The parts of one batch's loss, and the latents `[batch, times, latent]` they were computed from."""

    prediction: Tensor
    regularizer: Tensor
    inverse: Tensor
    latents: Tensor
    labels: Tensor  # 0 where there are none


def losses(
    learner: Learner,
    frames: UInt8[Tensor, "batch times height width 3"],
    actions: Float[Tensor, "batch time action"],
    directions: Float[Tensor, "latent directions"],
    *,
    proprioception: Float[Tensor, "batch times numbers"] | None = None,
    labels: Float[Tensor, "batch times labels"] | None = None,
    bfloat16: bool,
    group: ProcessGroup = ALONE,
) -> Losses:
    """Prediction, SIGReg and inverse-dynamics losses of one batch of windows.

    Targets are not detached: the encoder is pulled towards what can be predicted, SIGReg keeps it from giving up, and
    inverse dynamics makes it keep what the actions move (without it the sign of the arm's elbow comes last).
    `proprioception` is NaN where it was not measured; `labels` have mean 0 and variance 1. With `bfloat16`, matrix
    products are in bfloat16 and the rest stays in float32.
    """
    batch, times = frames.shape[:2]
    images = to_network_input(frames.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
    blocks = learner.normalizer(actions).reshape(batch, times - 1, -1)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        latents = learner.network.encode(images).float().unflatten(0, (batch, times))
        prediction = prediction_loss(learner.network, latents, blocks, proprioception)
        guessed = learner.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)).float()
        told = None if learner.labeling is None else learner.labeling(latents).float()
    return Losses(
        prediction=prediction,
        regularizer=sigreg(latents.transpose(0, 1), directions, group),
        inverse=F.mse_loss(guessed, blocks),
        latents=latents,
        labels=latents.new_zeros(()) if told is None or labels is None else F.mse_loss(told, labels),
    )


def losses_of_latents(
    learner: Learner,
    latents: Float[Tensor, "batch times latent"],
    actions: Float[Tensor, "batch time action"],
    *,
    proprioception: Float[Tensor, "batch times numbers"] | None = None,
    bfloat16: bool,
) -> Losses:
    """The prediction loss alone, where latents are given and the encoder is not trained; the others are 0."""
    blocks = learner.normalizer(actions).reshape(*latents.shape[:1], latents.shape[1] - 1, -1)
    with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        prediction = prediction_loss(learner.network, latents, blocks, proprioception)
    nothing = latents.new_zeros(())
    return Losses(prediction, nothing, nothing, latents, nothing)


@torch.no_grad()
def held_out_loss(learner: Learner, batch: Batch, *, bfloat16: bool) -> float:
    """Prediction loss on held-out windows, with the network in evaluation mode."""
    device = next(learner.parameters()).device
    frames, actions = batch.frames.to(device), batch.actions.to(device)
    proprioception = None if batch.proprioception is None else batch.proprioception.to(device)
    rows, times = frames.shape[:2]
    learner.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        latents = learner.network.encode(to_network_input(frames.flatten(0, 1))).float().unflatten(0, (rows, times))
    loss = losses_of_latents(
        learner, latents, actions, proprioception=proprioception, bfloat16=bfloat16
    ).prediction.item()
    learner.train()
    return loss


def prediction_loss(
    network: CompactNetwork,
    latents: Float[Tensor, "batch times latent"],
    blocks: Float[Tensor, "batch steps block"],
    proprioception: Float[Tensor, "batch times numbers"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over 1 to `steps` model steps ahead, each as heavy as another.

    Every frame of a window starts a prediction of all that follow it: the expectation is that of starting from the
    first frame alone, but an encoded frame, which is what a step's time goes into, is used up to `steps` times.
    """
    steps = blocks.shape[1]
    errors = latents.new_zeros(steps)
    for start in range(steps):
        measured = None if proprioception is None else proprioception[:, start]
        predicted = network.predict(latents[:, start], blocks[:, start:], measured).float()
        ahead = (predicted - latents[:, start + 1 :]).square().mean(dim=(0, 2))
        errors = errors + F.pad(ahead, (0, start))
    starts = torch.arange(steps, 0, -1, device=errors.device)  # that see 1, 2, ... steps ahead
    return (errors / starts).mean()


def make_learner(
    config: CompactConfig, normalizer: ActionNormalizer, device: torch.device, group: ProcessGroup, labels: int = 0
) -> Learner:
    """A fresh learner, laid out for speed and, with several processes, counting the rows of all of them."""
    learner = Learner(config, normalizer, labels).to(device)
    share_batch_norms(learner, group)
    learner.network.to(memory_format=torch.channels_last)
    return learner
