"""The published models: sizes, files, which of their weights to take, licenses as far as known, what was verified."""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.package import ActionSpec, PlannerDefaults
from model.preprocessing import CropPolicy
from model.vjepa2.action_predictor import ActionPredictorConfig
from model.vjepa2.config import EncoderConfig
from model.vjepa2.masked_predictor import MaskedPredictorConfig
from model.vjepa2.probe import ProbeConfig

ADDRESS = "https://dl.fbaipublicfiles.com/vjepa2/"
BY_FIXTURES = "networks of the same code at small sizes equal the published implementation's; no real weights were run"


@dataclass(frozen=True)
class PublishedModel:
    """One model, as a checkpoint file holds it."""

    name: str
    file: str
    encoder: EncoderConfig
    predictor: MaskedPredictorConfig | ActionPredictorConfig | None
    image_size: int
    encoder_key: str
    """Which of the file's encoders is meant where nobody says otherwise.

    Files hold the trained encoder (`encoder`) and its moving average (`target_encoder`, `ema_encoder`), whose weights
    differ. The averages are what the published evaluations used and what the action-conditioned predictor learned on.
    """
    license: str
    verified: str
    probe: ProbeConfig | None = None
    """The classifier on the encoder, where there is one."""
    labels: tuple[str, ...] = ()
    """Names of its classes."""
    clip_frames: int = 0
    """Frames of a clip that it was trained on; 0: not known."""
    action: ActionSpec | None = None
    """None: what V-JEPA 2-AC was published with, where the model acts."""
    planner: PlannerDefaults | None = None
    crop_policy: CropPolicy | None = None
    """None: the one that such models were published with."""

    @property
    def address(self) -> str:
        return ADDRESS + self.file


def _model_2_0(name: str, file: str, encoder: EncoderConfig, size: int, license: str) -> PublishedModel:
    predictor = MaskedPredictorConfig(latent_width=encoder.width, grid=(size // encoder.patch, size // encoder.patch))
    return PublishedModel(name, file, encoder, predictor, size, "target_encoder", license, BY_FIXTURES)


def _model_2_1(size: str, file: str, encoder: EncoderConfig, distilled: bool) -> PublishedModel:
    """The two smaller ones are distilled from the largest: shallow predictors of its 1664 channels, averages kept."""
    depth, levels, output_width = (12, 1, 1664) if distilled else (24, 4, None)
    predictor = MaskedPredictorConfig.published_2_1(encoder.width, depth, levels, output_width)
    key = "ema_encoder" if distilled else "target_encoder"
    license = "not stated with the file"
    return PublishedModel(f"vjepa2_1-{size}-384", file, encoder, predictor, 384, key, license, BY_FIXTURES)


_GIANT = EncoderConfig.vit_giant()

PUBLISHED: tuple[PublishedModel, ...] = (
    _model_2_0("vjepa2-vitl-256", "vitl.pt", EncoderConfig.vit_large(), 256, "MIT"),
    _model_2_0("vjepa2-vith-256", "vith.pt", EncoderConfig.vit_huge(), 256, "not confirmed"),
    _model_2_0("vjepa2-vitg-256", "vitg.pt", _GIANT, 256, "Apache-2.0"),
    _model_2_0("vjepa2-vitg-384", "vitg-384.pt", _GIANT, 384, "not confirmed"),
    PublishedModel(
        name="vjepa2-ac-vitg",
        file="vjepa2-ac-vitg.pt",
        encoder=_GIANT,
        predictor=ActionPredictorConfig(latent_width=_GIANT.width),
        image_size=256,
        encoder_key="target_encoder",
        license="not stated with the file",
        verified=BY_FIXTURES,
    ),
    _model_2_1("vitb", "vjepa2_1_vitb_dist_vitG_384.pt", EncoderConfig.vit_base_2_1(), distilled=True),
    _model_2_1("vitl", "vjepa2_1_vitl_dist_vitG_384.pt", EncoderConfig.vit_large_2_1(), distilled=True),
    _model_2_1("vitg", "vjepa2_1_vitg_384.pt", EncoderConfig.vit_giant_2_1(), distilled=False),
    _model_2_1("vitgigantic", "vjepa2_1_vitG_384.pt", EncoderConfig.vit_gigantic_2_1(), distilled=False),
)


def by_name(name: str) -> PublishedModel:
    """The published model of that name. Raises `KeyError` naming those there are."""
    for model in PUBLISHED:
        if model.name == name:
            return model
    raise KeyError(f"model must be one of {', '.join(model.name for model in PUBLISHED)}, got {name}")


@dataclass(frozen=True)
class PublishedProbe:
    """A published classifier of clips: a file with a probe alone, for one of the encoders."""

    name: str
    file: str
    encoder: str
    """The published model whose encoder it reads."""
    frames: int
    """Of a clip, as it was trained and scored."""
    license: str = "not stated with the file"
    verified: str = BY_FIXTURES

    @property
    def address(self) -> str:
        return f"{ADDRESS}evals/{self.file}"


PROBES: tuple[PublishedProbe, ...] = (
    PublishedProbe("vjepa2-vitl-256-ssv2", "ssv2-vitl-16x2x3.pt", "vjepa2-vitl-256", 16),
    PublishedProbe("vjepa2-vitl-256-diving48", "diving48-vitl-256.pt", "vjepa2-vitl-256", 32),
    PublishedProbe("vjepa2-vitg-384-ssv2", "ssv2-vitg-384-64x2x3.pt", "vjepa2-vitg-384", 64),
    PublishedProbe("vjepa2-vitg-384-diving48", "diving48-vitg-384-32x4x3.pt", "vjepa2-vitg-384", 32),
)

RETRAINED_ADDRESS = "https://dl.fbaipublicfiles.com/jepa-wms/"


@dataclass(frozen=True)
class RetrainedPredictor:
    """An action-conditioned predictor that jepa-wms trained or repackaged: a file with it alone, for ViT-g."""

    name: str
    file: str
    predictor: ActionPredictorConfig
    encoder: str = "vjepa2-vitg-256"
    encoder_key: str = "encoder"
    """As the published settings say; not the moving average."""
    license: str = "CC-BY-NC 4.0 (non-commercial: for research only)"
    verified: str = BY_FIXTURES

    @property
    def address(self) -> str:
        return RETRAINED_ADDRESS + self.file

    @property
    def names(self) -> tuple[str, str]:
        """What its file is called on the Hugging Face hub, and on Meta's file host."""
        return f"{self.name}.pth.tar", self.file


_RETRAINED = ActionPredictorConfig(latent_width=_GIANT.width, poses=False, extrinsics_layer=False, window=2)
RETRAINED: tuple[RetrainedPredictor, ...] = (
    RetrainedPredictor("vjepa2_ac_droid", "droid_vj2ac_noprop.pth.tar", _RETRAINED),
    RetrainedPredictor("vjepa2_ac_oss", "droid_vj2ac_oss-prop.pth.tar", replace(_RETRAINED, poses=True)),
)
