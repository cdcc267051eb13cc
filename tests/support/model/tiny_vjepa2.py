"""Networks small enough for tests, with random weights of a size that makes every part matter."""

from __future__ import annotations

import torch
from torch import nn

from model.checkpoints.published import PublishedModel
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.config import EncoderConfig, version_2_1
from model.vjepa2.encoder import Encoder
from model.vjepa2.masked_predictor import MaskedPredictor, MaskedPredictorConfig


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, norms and biases too, a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.2 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + scale * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


ENCODER = EncoderConfig(width=32, depth=2, heads=2, mlp_hidden=64, patch=8)
ENCODER_2_1 = version_2_1(EncoderConfig(width=24, depth=12, heads=2, mlp_hidden=24, patch=8))
ACTION_PREDICTOR = ActionPredictorConfig(latent_width=32, width=24, depth=3, heads=2, mlp_hidden=48, grid=(2, 3))
MASKED_PREDICTOR = MaskedPredictorConfig(
    latent_width=32, width=24, depth=2, heads=2, mlp_hidden=48, grid=(2, 2), mask_tokens=3
)


def encoder(config: EncoderConfig = ENCODER, seed: int = 0) -> Encoder:
    network = randomized(Encoder(config), seed)
    assert isinstance(network, Encoder)
    return network


def action_predictor(config: ActionPredictorConfig = ACTION_PREDICTOR, seed: int = 1) -> ActionPredictor:
    network = randomized(ActionPredictor(config), seed)
    assert isinstance(network, ActionPredictor)
    return network


def masked_predictor(config: MaskedPredictorConfig = MASKED_PREDICTOR, seed: int = 2) -> MaskedPredictor:
    network = randomized(MaskedPredictor(config), seed)
    assert isinstance(network, MaskedPredictor)
    return network


def published(acts: bool) -> PublishedModel:
    """What a checkpoint of these networks is, as an import is told."""
    size = 16
    predictor = ActionPredictorConfig(latent_width=32, width=24, depth=2, heads=2, mlp_hidden=48, grid=(2, 2))
    return PublishedModel(
        name="tiny",
        file="tiny.pt",
        encoder=ENCODER,
        predictor=predictor if acts else MASKED_PREDICTOR,
        image_size=size,
        encoder_key="target_encoder",
        license="none",
        verified="by these tests",
    )
