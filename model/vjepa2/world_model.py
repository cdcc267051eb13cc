"""V-JEPA 2-AC as a world model: camera frames to latents, and what robot actions make of them.

Fits `planner.WorldModel` by shape alone; planning itself is not here. Latents are layer-normed without parameters, as
the predictor was trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.interface import Steps, finished
from model.preprocessing import CropPolicy, prepare
from model.runtime.memory import to_device
from model.vjepa2.action_predictor import ActionPredictor
from model.vjepa2.encoder import Encoder
from model.vjepa2.poses import check_poses, difference
from model.vjepa2.rollout import normalize, rollout

FRAMES_AT_ONCE = 16
CLIP_WINDOW = 64
"""Frames of a clip that see each other: the length the models were trained with last."""


class VJepa2WorldModel:
    """An encoder, and the predictor trained on its latents. Immutable; on the device and in the type of its weights."""

    def __init__(
        self,
        encoder: Encoder,
        predictor: ActionPredictor,
        size: tuple[int, int],
        crop_policy: CropPolicy = "planning",
        chunk: int | None = None,
    ) -> None:
        """`size` is height and width in pixels; `chunk` bounds the samples rolled out at once (None: what fits)."""
        patch = encoder.config.patch
        if (size[0] // patch, size[1] // patch) != predictor.config.grid:
            raise ValueError(f"size: must give the predictor's grid {predictor.config.grid} of {patch} px, got {size}")
        if encoder.config.width != predictor.config.latent_width:
            widths = f"{encoder.config.width} and {predictor.config.latent_width}"
            raise ValueError(f"encoder and predictor: must agree in latent width, got {widths}")
        self.block = 1
        self.size = size
        self.crop_policy = crop_policy
        self.chunk = chunk
        self.encoder = encoder.eval().requires_grad_(False)
        self.predictor = predictor.eval().requires_grad_(False)

    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch tokens latent"]:
        """Normalized latents of single frames, each seen as a still pair."""
        return encode_frames(self.encoder, frames, self.size, self.crop_policy)

    def context(
        self,
        latents: Sequence[Float[Tensor, "tokens latent"]],
        poses: Float[Tensor, "history 7"] | None,
        extrinsics: Float[Tensor, "history 6"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Where one robot's rollout starts: latents and poses of the frames seen, oldest first; batch axis 1.

        What was done between them is the difference of the poses. A model without poses starts from the newest frame
        alone. Raises `ObservationError` for impossible poses.
        """
        if not self.predictor.config.poses:
            latents, poses = latents[-1:], torch.zeros(1, self.predictor.config.action_width)
        if poses is None:
            raise ValueError("proprioception: must be the robot's pose for this model, got none")
        if len(latents) < 1 or len(latents) != len(poses):
            raise ValueError(f"poses: must be one for each of the latents, got {len(poses)} for {len(latents)}")
        check_poses(poses)
        device = next(self.encoder.parameters()).device
        placed = to_device(poses, device)
        start = to_device(torch.stack(list(latents)), device), placed, difference(placed[:-1], placed[1:])
        camera = () if extrinsics is None else (to_device(extrinsics, device),)
        return tuple(tensor.unsqueeze(0) for tensor in (*start, *camera))

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time 7"]
    ) -> Float[Tensor, "batch samples time tokens latent"]:
        """Predicted normalized latents after every action, each a change of pose (`model.vjepa2.poses`).

        `context` holds latents `[batch, history, tokens, latent]`, poses `[batch, history, 7]`, past actions `[batch,
        history - 1, 7]` and, for models that take it, the camera `[batch, history, 6]`.
        """
        latents, poses, past_actions, *camera = context
        latents = latents.to(self.predictor.predictor_proj.weight.dtype)  # what comes from a host is float32
        extrinsics = camera[0] if camera else None
        return rollout(self.predictor, latents, poses, past_actions, actions, extrinsics, self.chunk)


@torch.no_grad()
def encode_frames(
    encoder: Encoder,
    frames: UInt8[Tensor, "batch height width 3"],
    size: tuple[int, int],
    crop_policy: CropPolicy,
) -> Float[Tensor, "batch tokens latent"]:
    """Normalized latents of single frames, on the encoder's device and in its type."""
    parts = [
        normalize(encoder(_input(encoder, part, size, crop_policy))) for part in torch.split(frames, FRAMES_AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def clip_steps(
    encoder: Encoder,
    frames: UInt8[Tensor, "time height width 3"],
    size: tuple[int, int],
    crop_policy: CropPolicy,
) -> Steps[Float[Tensor, "tubelets tokens latent"]]:
    """The encoder's tokens of a clip, as it gives them, by tubelet; a block of the encoder at a time.

    Longer clips are encoded in windows of 64 frames. A last tubelet that is not full is filled with its last frame.
    """
    tubelet = encoder.config.tubelet
    if len(frames) > 1:  # a single frame is an image, which encoders may see in their own way
        frames = torch.cat([frames, frames[-1:].expand(-len(frames) % tubelet, -1, -1, -1)])
    windows = []
    for window in torch.split(frames, CLIP_WINDOW):
        video = _input(encoder, window, size, crop_policy).transpose(0, 1).unsqueeze(0)
        tokens = (yield from encoder.steps(video))[0]
        windows.append(tokens.view(max(len(window) // tubelet, 1), -1, tokens.shape[-1]))
        yield
    return torch.cat(windows)


def encode_clip(
    encoder: Encoder,
    frames: UInt8[Tensor, "time height width 3"],
    size: tuple[int, int],
    crop_policy: CropPolicy,
) -> Float[Tensor, "tubelets tokens latent"]:
    """What `clip_steps` gives, at once."""
    return finished(clip_steps(encoder, frames, size, crop_policy))


def _input(encoder: Encoder, frames: Tensor, size: tuple[int, int], crop_policy: CropPolicy) -> Tensor:
    """Frames as the encoder takes them, cropped on the encoder's device."""
    weight = next(encoder.parameters())
    return prepare(to_device(frames, weight.device), crop_policy, size).to(weight.dtype)
