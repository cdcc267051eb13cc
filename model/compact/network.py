"""The compact network: the video encoder at a small size, a pooling head to one latent per frame, and the predictor.

Trained end to end (LeWorldModel's recipe, arXiv 2603.19312): nothing here is frozen, averaged or detached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.compact.predictor import Predictor
from model.compact.stem import ConvStem
from model.vjepa2.encoder import Encoder, EncoderConfig


@dataclass(frozen=True)
class CompactConfig:
    """Shapes. The encoder sees a frame as a still pair, as V-JEPA 2 sees an image."""

    action_width: int  # numbers per action block: actions x dimensions
    latent: int = 128
    encoder_width: int = 128
    encoder_depth: int = 6
    encoder_heads: int = 4
    patch: int = 16
    tubelet: int = 2
    predictor_width: int = 192
    predictor_depth: int = 3
    predictor_heads: int = 6
    horizon: int = 5  # model steps predicted in one call
    residual: bool = False  # the predictor tells what changes: what no action moves is carried over as it is
    proprioception: int = 0  # numbers a robot measures of itself, given beside the latent that a prediction starts from
    normed_stem: bool = False  # a batch norm after each of the encoder's convolutions
    placed_tokens: int = 0  # a frame's tokens, which the head then reads each in its place; 0: it reads their mean


class CompactNetwork(nn.Module):
    """Pixels to latents, and latents with actions to latents."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_width
        self.encoder = Encoder(
            EncoderConfig(
                width=width,
                depth=config.encoder_depth,
                heads=config.encoder_heads,
                mlp_hidden=4 * width,
                patch=config.patch,
                tubelet=config.tubelet,
                positions="interleaved",
                fused_attention=False,
            ),
            stem=ConvStem(width, config.patch, config.tubelet, normed=config.normed_stem),
        )
        # The transformer ends in a layer norm, under which no latent can be an isotropic Gaussian: a batch norm sets
        # its scale free again.
        self.head = nn.Sequential(
            nn.Linear(max(1, config.placed_tokens) * width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.GELU(),
            nn.Linear(4 * width, config.latent),
        )
        self.predictor = Predictor(
            config.latent,
            config.action_width,
            width=config.predictor_width,
            depth=config.predictor_depth,
            heads=config.predictor_heads,
            mlp_hidden=4 * config.predictor_width,
            horizon=config.horizon,
            residual=config.residual,
            proprioception=config.proprioception,
        )

    def tokens(self, frames: Float[Tensor, "batch 3 height w"]) -> Float[Tensor, "batch tokens width"]:
        """The encoder's tokens of single frames."""
        tokens: Tensor = self.encoder(frames)
        return tokens

    def pool(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch latent"]:
        """One latent from the tokens of one frame."""
        latent: Tensor = self.head(tokens.flatten(1) if self.config.placed_tokens else tokens.mean(dim=1))
        return latent

    def encode(self, frames: Float[Tensor, "batch 3 height w"]) -> Float[Tensor, "batch latent"]:
        """Frames in [-1, 1] to latents."""
        return self.pool(self.tokens(frames))

    def predict(
        self,
        latent: Float[Tensor, "batch latent"],
        actions: Float[Tensor, "batch steps block"],
        proprioception: Float[Tensor, "batch numbers"] | None = None,
    ) -> Float[Tensor, "batch steps latent"]:
        """Latents after each of any number of action blocks (network units); `proprioception` is measured at the start.

        Past `horizon` steps, the last prediction starts the next call, at which nothing is measured.
        """
        predicted: list[Tensor] = []
        for part in torch.split(actions, self.config.horizon, dim=1):
            predicted.append(self.predictor(latent, part, proprioception))
            latent, proprioception = predicted[-1][:, -1], None
        return predicted[0] if len(predicted) == 1 else torch.cat(predicted, dim=1)


def to_network_input(frames: Tensor) -> Float[Tensor, "batch 3 height w"]:
    """uint8 `[batch, height, width, 3]` to float32 in [-1, 1], colors first."""
    return frames.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)
