"""What an imported model's package says of itself: its parts, its config, its card. Reads and writes no file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from presage.fields import from_fields

from model.checkpoints.published import PublishedModel
from model.package import WEIGHTS, ActionSpec, ImageSpec, PackageConfig, PlannerDefaults
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.encoder import Encoder
from model.vjepa2.masked_predictor import MaskedPredictor
from model.vjepa2.model import Network, describe
from model.vjepa2.poses import POSE_NAMES
from model.vjepa2.probe import AttentiveProbe


def parts(model: PublishedModel) -> dict[str, tuple[str, Network]]:
    """The networks of a model's package: by name there, the checkpoint's section and the network (without memory)."""
    with torch.device("meta"):
        held: dict[str, tuple[str, Network]] = {"encoder": (model.encoder_key, Encoder(model.encoder))}
        if isinstance(model.predictor, ActionPredictorConfig):
            held["action_predictor"] = "predictor", ActionPredictor(model.predictor)
        elif model.predictor is not None:
            held["masked_predictor"] = "predictor", MaskedPredictor(model.predictor)
        if model.probe is not None:
            held["probe"] = "probe", AttentiveProbe(model.probe)
    return held


def package_config(model: PublishedModel, files: Sequence[str], layout: str, dtype: torch.dtype) -> PackageConfig:
    """The package's config: shapes, image, and, for a model that acts, the published action convention.

    `files` are those it comes from, the encoder's last.
    """
    acts = isinstance(model.predictor, ActionPredictorConfig)
    poses = isinstance(model.predictor, ActionPredictorConfig) and model.predictor.poses
    side = model.image_size // model.encoder.patch
    action = ActionSpec(
        names=POSE_NAMES,
        units=("m", "m", "m", "rad", "rad", "rad", "1"),
        low=(-0.075, -0.075, -0.075, -0.15, -0.15, -0.15, -1.0),
        high=(0.075, 0.075, 0.075, 0.15, 0.15, 0.15, 1.0),
        rate_hz=4.0,
        block=1,
        mean=(0.0,) * 7,
        std=(1.0,) * 7,
    )
    return from_fields(
        PackageConfig,
        model,
        family="vjepa2",
        image=ImageSpec(
            model.image_size, model.image_size, model.crop_policy or ("planning" if acts else "evaluation")
        ),
        latent_shape=(side * side, model.encoder.width),
        network=describe({part: network for part, (_, network) in parts(model).items()}),
        action=(model.action or action) if acts else None,
        proprioception_names=POSE_NAMES if poses else (),
        planner=model.planner
        or PlannerDefaults(
            samples=800,
            iterations=10,
            elites=10,
            horizon=1,
            execute=1,
            optimizer="vjepa2_ac",
            dimensions=("x", "y", "z", "gripper") if acts else (),
        ),
        training={
            "imported_from": files[0],
            "encoder_file": files[-1],
            "layout": layout,
            "encoder_key": model.encoder_key,
            "dtype": str(dtype).removeprefix("torch."),
            "license": model.license,
            "verified": model.verified,
        },
    )


def card(model: PublishedModel, files: Sequence[str], digest: str) -> str:
    """The package's README."""
    beside = f" and the encoder of `{files[-1]}`" if len(files) > 1 else ""
    return (
        f"# {model.name}\n\n"
        f"Imported from `{files[0]}`{beside} (its `{model.encoder_key}`). V-JEPA 2: arXiv 2506.09985.\n\n"
        f"- License of the weights, as far as known: {model.license}.\n"
        f"- Verified: {model.verified}.\n"
        f"- sha256 of `{WEIGHTS}`: `{digest}`\n"
    )
