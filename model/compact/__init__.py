"""The compact family: one latent per frame, trained end to end from pixels; small enough to plan on a laptop's CPU."""

from model.compact.network import CompactConfig, CompactNetwork
from model.compact.world_model import CompactWorldModel

__all__ = ["CompactConfig", "CompactNetwork", "CompactWorldModel"]
