"""The V-JEPA 2 family: video encoder, masked predictor, action-conditioned predictor and their world model."""

from __future__ import annotations

from model.vjepa2.encoder import Encoder, EncoderConfig

__all__ = ["Encoder", "EncoderConfig"]
