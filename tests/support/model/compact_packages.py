"""A tiny untrained compact package for tests."""

from __future__ import annotations

from model.package import ActionSpec, ImageSpec, PackageConfig


def tiny_config(name: str = "tiny", horizon: int = 3) -> PackageConfig:
    """32 px, two actions of two dimensions per block, a latent of 8."""
    return PackageConfig(
        name=name,
        family="compact",
        image=ImageSpec(height=32, width=32),
        latent_shape=(8,),
        network={
            "action_width": 4,
            "latent": 8,
            "encoder_width": 16,
            "encoder_depth": 1,
            "encoder_heads": 2,
            "predictor_width": 16,
            "predictor_depth": 2,
            "predictor_heads": 2,
            "horizon": horizon,
        },
        action=ActionSpec(
            names=("a", "b"),
            units=("rad/s", "rad/s"),
            low=(-1.0, -2.0),
            high=(1.0, 2.0),
            rate_hz=10.0,
            block=2,
            mean=(0.1, 0.0),
            std=(0.5, 1.0),
        ),
    )
