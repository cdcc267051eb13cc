"""The action-conditioned predictor: from frames, robot poses and actions, the latents of the next frames.

One call predicts all frames of a window at once (training, scoring); rollouts, which feed predictions back, are
`model.vjepa2.rollout`. Inputs and outputs are layer-normed latents (`model.vjepa2.world_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.state_dict import CheckpointError, load_strict, refuse_unknown, strip_prefixes
from model.layers.transformer import (
    Block,
    RotaryCache,
    RotaryTable,
    grid_positions,
    initialize_blocks,
    rotary_table,
    table_dtype,
)
from model.vjepa2.config import HARMLESS, image_size


@dataclass(frozen=True)
class ActionPredictorConfig:
    """Shape of an action-conditioned predictor. The defaults are the published one's but for `latent_width`."""

    latent_width: int
    """Width of the encoder whose latents it takes and gives."""
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_hidden: int = 4096
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of one frame of tokens."""
    action_width: int = 7
    """Numbers in an action, and in a pose."""
    extrinsics: bool = False
    """Whether a frame also carries the camera's position and angles (6 numbers)."""
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    poses: bool = True
    """Whether a frame carries the robot's pose."""
    extrinsics_layer: bool = True
    """Whether the weights hold the camera's layer, which the published ones do even where nothing uses it."""
    window: int | None = None
    """Frames that a step of a rollout sees, itself included, the first of them frame 0; None: all there are."""

    def __post_init__(self) -> None:
        if self.extrinsics and not self.extrinsics_layer:
            raise ValueError("extrinsics_layer: must be there where extrinsics are used, got False")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: must be at least 1, got {self.window}")
        for field in ("latent_width", "width", "depth", "heads", "mlp_hidden", "action_width"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid: must be rows and columns, at least 1 x 1, got {self.grid}")

    @property
    def frame_tokens(self) -> int:
        """Patch tokens in a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def condition_tokens(self) -> int:
        """Tokens before the patches of a frame: action, and the pose and the camera where they are used."""
        return 1 + self.poses + self.extrinsics


class ActionPredictor(nn.Module):
    """Predict the next frame's latents under an action (V-JEPA 2-AC, arXiv 2506.09985).

    A frame is `[action, pose, (camera), patches]`; attention is free within a frame and looks back at all earlier ones.
    """

    def __init__(self, config: ActionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.predictor_embed = nn.Linear(config.latent_width, config.width)
        self.action_encoder = nn.Linear(config.action_width, config.width)
        self.state_encoder = nn.Linear(config.action_width, config.width) if config.poses else None
        camera = nn.Linear(config.action_width - 1, config.width) if config.extrinsics_layer else None
        self.extrinsics_encoder = camera
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_hidden, eps=config.layer_norm_eps, qkv_bias=config.qkv_bias)
            for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.predictor_proj = nn.Linear(config.width, config.latent_width)
        initialize_blocks(self.predictor_blocks)
        self._tables = RotaryCache(limit=32)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ActionPredictor:
        """Build from a published configuration and its weights, strictly; `CheckpointError` names what does not fit."""
        with torch.device("meta"):
            predictor = cls(action_predictor_config(config))
        load_strict(predictor, strip_prefixes(state_dict), "action predictor")
        return predictor

    def forward(
        self,
        x: Float[Tensor, "batch time*tokens latent"],
        actions: Float[Tensor, "batch time action"],
        states: Float[Tensor, "batch time action"],
        extrinsics: Float[Tensor, "batch time camera"] | None = None,
    ) -> Float[Tensor, "batch time*tokens latent"]:
        """Latents of every following frame: the tokens at time t predict time t+1 under `actions[:, t]`.

        `states` are poses (`model.vjepa2.poses`); positions in time count from the first frame given.
        """
        frames = actions.shape[1]
        if x.shape[1] != frames * self.config.frame_tokens:
            expected = f"{frames} x {self.config.frame_tokens}"
            raise ValueError(f"x: must hold {expected} tokens, one grid for each action, got {x.shape[1]}")
        embedded = self.predictor_embed(x).unflatten(1, (frames, -1))
        tokens = self.frame(embedded, actions, states, extrinsics).flatten(1, 2)
        rotary = self.rotary(0, frames, tokens)
        mask = None if frames == 1 else frame_causal_mask(frames, tokens.shape[1] // frames, tokens.device)
        for block in self.predictor_blocks:
            tokens = block(tokens, rotary, mask)
        by_frame = tokens.view(len(tokens), frames, -1, self.config.width)
        return self.read(by_frame[:, :, self.config.condition_tokens :].flatten(1, 2))

    def frame(
        self,
        embedded: Float[Tensor, "*batch tokens width"],
        actions: Float[Tensor, "*batch action"],
        states: Float[Tensor, "*batch action"],
        extrinsics: Float[Tensor, "*batch camera"] | None = None,
    ) -> Float[Tensor, "*batch frame width"]:
        """The tokens of frames: conditions first, then the embedded patches; a model without poses ignores `states`."""
        if (extrinsics is not None) != self.config.extrinsics:
            raise ValueError(f"extrinsics: must {'' if self.config.extrinsics else 'not '}be given to this model")
        conditions = [linear_in(self.action_encoder, actions)]
        if self.state_encoder is not None:
            conditions.append(linear_in(self.state_encoder, states))
        if extrinsics is not None and self.extrinsics_encoder is not None:
            conditions.append(linear_in(self.extrinsics_encoder, extrinsics))
        return torch.cat([*(token.unsqueeze(-2) for token in conditions), embedded], dim=-2)

    def read(self, patches: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens latent"]:
        """Predicted latents from the last block's patch tokens."""
        predicted: Tensor = self.predictor_proj(self.predictor_norm(patches))
        return predicted

    def rotary(self, first: int, frames: int, tokens: Tensor) -> RotaryTable:
        """Positions of `frames` whole frames from number `first` on: conditions sit at row 0, column 0 of their frame.

        On a grid that is not square, columns are squeezed to the range of the rows.
        """
        dtype = table_dtype(tokens.dtype)

        def build() -> RotaryTable:
            rows, columns = self.config.grid
            patches = grid_positions((frames, rows, columns), tokens.device).view(3, frames, -1)
            patches[2] = (patches[2].float() * (rows / columns)).double()  # in float32, as the published model does
            conditions = torch.zeros_like(patches[:, :, : self.config.condition_tokens])
            conditions[0] = torch.arange(frames, device=tokens.device).unsqueeze(-1)
            positions = torch.cat([conditions, patches], dim=2).flatten(1)
            positions[0] += first
            return rotary_table(positions, self.config.width // self.config.heads, "tiled", dtype)

        return self._tables.get((first, frames, tokens.device, dtype), build)


def linear_in(layer: nn.Linear, values: Tensor) -> Tensor:
    """Apply a layer in the precision of its input, give the result in the layer's own.

    Centimeters lose their meaning in bfloat16: 0.5 m is known to 2 mm there.
    """
    bias = layer.bias.to(values.dtype)
    return F.linear(values, layer.weight.to(values.dtype), bias).to(layer.weight.dtype)


def frame_causal_mask(frames: int, frame_tokens: int, device: torch.device) -> Bool[Tensor, "tokens tokens"]:
    """True where a token (row) may look: its own frame and all earlier ones."""
    frame = torch.arange(frames, device=device).repeat_interleave(frame_tokens)
    return frame.unsqueeze(1) >= frame.unsqueeze(0)


ACTION_PREDICTOR_SETTINGS = HARMLESS | {
    *("img_size", "patch_size", "num_frames", "tubelet_size", "embed_dim", "predictor_embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "norm_eps", "use_rope", "action_embed_dim", "use_extrinsics", "is_frame_causal", "tokens_per_frame"),
}


def action_predictor_config(config: Mapping[str, Any]) -> ActionPredictorConfig:
    """Our settings for a published configuration."""
    refuse_unknown(config, ACTION_PREDICTOR_SETTINGS, "action predictor")
    for name in ("use_rope", "is_frame_causal"):
        if not config.get(name, True):
            raise CheckpointError(f"action predictor: setting {name} must be true, got {config[name]!r}")
    height, wide = image_size(config)
    patch, width = int(config.get("patch_size", 16)), int(config.get("predictor_embed_dim", 1024))
    return ActionPredictorConfig(
        latent_width=int(config["embed_dim"]),
        width=width,
        depth=int(config.get("depth", 24)),
        heads=int(config.get("num_heads", 16)),
        mlp_hidden=int(width * float(config.get("mlp_ratio", 4.0))),
        grid=(height // patch, wide // patch),
        action_width=int(config.get("action_embed_dim", 7)),
        extrinsics=bool(config.get("use_extrinsics", False)),
        layer_norm_eps=float(config.get("norm_eps", 1e-6)),
        qkv_bias=bool(config.get("qkv_bias", True)),
    )
