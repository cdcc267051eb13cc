"""The DINO-WM family: a frozen DINOv2 encoder beside the predictors of DINO-WM and of jepa-wms."""

from model.dino_wm.config import DinoConfig, PredictorConfig
from model.dino_wm.encoder import DinoEncoder
from model.dino_wm.predictor import PatchPredictor
from model.dino_wm.world_model import DinoWorldModel, Standards

__all__ = ["DinoConfig", "DinoEncoder", "DinoWorldModel", "PatchPredictor", "PredictorConfig", "Standards"]
