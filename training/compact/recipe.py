"""Settings of a compact training, and the config of the package it makes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from presage.fields import from_fields
from presage.limits import ActionLimits

from model.compact.network import CompactConfig
from model.compact.world_model import network_settings
from model.package import ActionSpec, ImageSpec, PackageConfig, PlannerDefaults
from planner.types import ActionSpace
from training.data.episodes import Episodes


@dataclass(frozen=True)
class CompactRecipe:
    """Every knob of a training. The defaults suit pictures of 64 px on two CPU cores (`examples/tiny.yaml`)."""

    steps: int = 1400
    batch: int = 112  # windows
    accumulate: int = 1  # batches whose gradients make one step; SIGReg and the batch norm see one batch at a time
    horizon: int = 5  # model steps predicted from a window's first frame
    block: int = 5  # robot actions per model step
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05  # fraction of the steps
    gradient_clip: float = 1.0
    regularizer: float = 0.3  # weight of SIGReg
    frozen_encoder: bool = False  # train the predictor alone, on latents encoded once; starts from a package
    inverse: float = 0.2  # weight of inverse dynamics: which actions led from one latent to the next
    labels: float = 0.0  # weight of telling what the probe looks for (`Episodes.probe_targets`) from each latent
    directions: int = 1024
    latent: int = 128
    encoder_width: int = 128
    encoder_depth: int = 2
    predictor_width: int = 192
    predictor_depth: int = 3
    residual: bool = False  # the predictor tells what changes
    proprioception: bool = False  # a prediction starts from the robot's own measurements too; the goal has none
    normed_stem: bool = True  # a batch norm after each of the encoder's convolutions
    placed: bool = True  # the encoder's head reads a frame's tokens each in its place, not their mean
    slow_floor: float = (
        0.0  # above 0: in the end, latents' distances are made to count slow changes as much as fast ones
    )
    bfloat16: bool = True  # matrix products only; losses and norms stay in float32
    seed: int = 0
    held_out: int = 128  # episodes kept for the probe
    checkpoint_every: int = 200
    planner: PlannerDefaults = field(default_factory=PlannerDefaults)
    limits: ActionLimits | None = None  # what plans keep to beside the recorded bounds; None: the initial package's

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "horizon", "block", "directions", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def action_spec(episodes: Episodes, block: int, limits: ActionLimits | None = None) -> ActionSpec:
    """The actions of a package that is trained on these episodes.

    An action that they never change is held at its value, whatever other episodes did: its effect was never seen.
    """
    held = episodes.held()
    bounds = zip(episodes.action_names, episodes.action_low, episodes.action_high, strict=True)
    edges = [(held.get(name, low), held.get(name, high)) for name, low, high in bounds]
    low, high = tuple(low for low, _ in edges), tuple(high for _, high in edges)
    space = ActionSpace(episodes.action_names, episodes.action_units, low, high, episodes.rate_hz)
    return ActionSpec(
        names=space.names,
        units=space.units,
        low=low,
        high=high,
        rate_hz=space.rate_hz,
        block=block,
        mean=episodes.action_mean(),
        std=tuple(spread or 1.0 for spread in episodes.action_spread()),
        rest=space.rest,
        limits=limits,
    )


def package_config(
    recipe: CompactRecipe, episodes: Episodes, name: str, initial: PackageConfig | None = None
) -> PackageConfig:
    """The config of the package that this recipe makes from these episodes, `initial` being what it starts from.

    Raises PackageError for limits that its actions cannot have.
    """
    height, width = episodes.frames.shape[2:4]
    kept = None if initial is None or initial.action is None else initial.action.limits
    action = action_spec(episodes, recipe.block, recipe.limits or kept)
    network = from_fields(
        CompactConfig,
        recipe,
        action_width=recipe.block * len(action.names),
        proprioception=episodes.recorded_proprioception().shape[-1] if recipe.proprioception else 0,
    )
    if recipe.placed:
        network = replace(network, placed_tokens=(height // network.patch) * (width // network.patch))
    return PackageConfig(
        name=name,
        family="compact",
        image=ImageSpec(height, width, episodes.crop_policy),
        latent_shape=(recipe.latent,),
        network=dict(network_settings(network)),
        action=action,
        proprioception_names=episodes.proprioception_names if recipe.proprioception else (),
        planner=recipe.planner,
    )
