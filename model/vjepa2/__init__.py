"""The V-JEPA 2 family: video encoder, masked predictor, action-conditioned predictor and their world model."""

from __future__ import annotations

from model.checkpoints.state_dict import CheckpointError
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.config import EncoderConfig
from model.vjepa2.encoder import Encoder
from model.vjepa2.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from model.vjepa2.probe import AttentiveProbe, ProbeConfig
from model.vjepa2.world_model import VJepa2WorldModel

__all__ = [
    "ActionPredictor",
    "ActionPredictorConfig",
    "AttentiveProbe",
    "CheckpointError",
    "Encoder",
    "EncoderConfig",
    "MaskedPredictor",
    "MaskedPredictorConfig",
    "ProbeConfig",
    "VJepa2WorldModel",
]
