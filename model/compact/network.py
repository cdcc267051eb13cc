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
from model.compact.step_predictor import StepPredictor
from model.layers.row_linear import RowLinear
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
    step_width: int = 0  # of a predictor beside the other that goes one block at a time; 0: there is none
    step_depth: int = 3  # its hidden layers
    step_products: bool = False  # whether it reads products of a latent's numbers and of those and actions, too
    step_share: float = 0.5  # how far from the other's answer towards its own a prediction lies; 1: there is no other

    @property
    def at_once(self) -> bool:
        """Whether there is a predictor that tells a horizon in one call."""
        return not self.step_width or self.step_share < 1


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
            RowLinear(max(1, config.placed_tokens) * width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.GELU(),
            RowLinear(4 * width, config.latent),
        )
        self.predictor = _predictor(config) if config.at_once else None
        self.stepper = (
            StepPredictor(
                config.latent,
                config.action_width,
                width=config.step_width,
                depth=config.step_depth,
                proprioception=config.proprioception,
                products=config.step_products,
            )
            if config.step_width
            else None
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
        stepped: Tensor | None = None if self.stepper is None else self.stepper(latent, actions, proprioception)
        if self.predictor is None:
            assert stepped is not None
            return stepped
        return self.between(self.predict_at_once(latent, actions, proprioception), stepped)

    def between(self, at_once: Tensor, stepped: Tensor | None) -> Tensor:
        """One prediction of what the two predictors say; the first alone where there is no second."""
        return at_once if stepped is None else torch.lerp(at_once, stepped.to(at_once.dtype), self.config.step_share)

    def predict_at_once(
        self, latent: Tensor, actions: Tensor, proprioception: Tensor | None
    ) -> Float[Tensor, "batch steps latent"]:
        """What the one-call predictor says alone."""
        assert self.predictor is not None
        predicted: list[Tensor] = []
        for part in torch.split(actions, self.config.horizon, dim=1):
            predicted.append(self.predictor(latent, part, proprioception))
            latent, proprioception = predicted[-1][:, -1], None
        return predicted[0] if len(predicted) == 1 else torch.cat(predicted, dim=1)


def _predictor(config: CompactConfig) -> Predictor:
    return Predictor(
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


def to_network_input(frames: Tensor) -> Float[Tensor, "batch 3 height w"]:
    """uint8 `[batch, height, width, 3]` to float32 in [-1, 1], colors first."""
    return frames.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)
