"""Shapes of the DINO-WM family: the DINOv2 encoder, the two predictors, and how published configurations translate.

Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.checkpoints.state_dict import CheckpointError, refuse_unknown

PredictorKind = Literal["adaln", "vit"]
HEAD_DIM = 64
"""Of every released DINOv2 encoder; a file of weights does not say it."""


@dataclass(frozen=True)
class DinoConfig:
    """Shape of a DINOv2 encoder (arXiv 2304.07193). Any image whose sides are multiples of `patch` fits the weights."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch: int = 14
    grid: int = 37
    """Side of the square grid that the position table was trained for."""
    registers: int = 0
    gated_mlp: bool = False
    """SwiGLU in the place of the MLP, as in the largest encoder; `mlp_hidden` is then of the gated half."""
    offset: float = 0.1
    """Added to the number of patches before the position table is scaled to it; 0 scales it to the size alone."""
    antialias: bool = False
    """Whether the position table is smoothed where it gets smaller."""
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _at_least_one(self, "width", "depth", "heads", "mlp_hidden", "patch", "grid")
        if self.registers < 0:
            raise ValueError(f"registers: must be at least 0, got {self.registers}")
        if self.width % self.heads:
            raise ValueError(f"heads: must cut width {self.width} into equal parts, got {self.heads}")


@dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor of frames of patches, under actions.

    `adaln` (jepa-wms) lets actions scale, shift and gate every block; `vit` (DINO-WM) lays them beside every patch.
    """

    kind: PredictorKind
    latent: int
    """Width of the encoder's patch tokens."""
    action: int
    """Numbers in the actions of one step."""
    depth: int
    heads: int
    grid: int = 16
    """Patches along each side of a frame."""
    window: int = 2
    """Frames that a rollout's step sees, itself included."""
    proprioception: int = 0
    """Numbers a robot measures of itself; 0: none are taken."""
    proprioception_width: int = 0
    """Channels that these become beside every patch."""
    width: int = 0
    """`adaln`: channels that patch tokens become; the blocks have these and the proprioception's."""
    action_width: int = 0
    """`vit`: channels that an action becomes beside every patch."""
    head_dim: int = 64
    """`vit`: channels of a head, which need not cut the width."""
    mlp_hidden: int = 0
    frames: int = 4
    """`vit`: frames that the position table was trained for; rollouts stay within them."""
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.kind not in ("adaln", "vit"):
            raise ValueError(f"kind: must be adaln or vit, got {self.kind!r}")
        _at_least_one(self, "latent", "action", "depth", "heads", "grid", "window", "mlp_hidden")
        _at_least_one(self, *(("width",) if self.kind == "adaln" else ("action_width", "head_dim", "frames")))
        if (self.proprioception > 0) != (self.proprioception_width > 0):
            both = f"{self.proprioception} numbers and {self.proprioception_width} channels"
            raise ValueError(f"proprioception: must have numbers and channels, or neither, got {both}")
        if self.kind == "adaln" and self.block_width % self.heads:
            raise ValueError(f"heads: must cut width {self.block_width} into equal parts, got {self.heads}")
        if self.kind == "vit" and self.window > self.frames:
            raise ValueError(f"window: must be at most the {self.frames} frames of the positions, got {self.window}")

    @property
    def block_width(self) -> int:
        """Channels of the transformer."""
        inner = self.width if self.kind == "adaln" else self.latent + self.action_width
        return inner + self.proprioception_width

    @property
    def patches(self) -> int:
        """Of one frame."""
        return self.grid * self.grid


def dino_config(config: Mapping[str, Any]) -> DinoConfig:
    """Our settings for a published configuration: the official names, or those of a Hugging Face `config.json`.

    Official arithmetic either way. `CheckpointError` names a setting that is missing or not known here.
    """
    if "hidden_size" in config or "model_type" in config:
        return _huggingface_config(config)
    known = {
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values"),
        *("num_register_tokens", "interpolate_antialias", "interpolate_offset", "norm_eps", "ffn_layer"),
        *("block_chunks", "qkv_bias", "proj_bias", "ffn_bias", "drop_path_rate", "drop_path_uniform", "in_chans"),
    }
    refuse_unknown(config, frozenset(known), "DINOv2 encoder")
    for name in ("qkv_bias", "proj_bias", "ffn_bias"):
        if not config.get(name, True):
            raise CheckpointError(f"DINOv2 encoder: setting {name} must be true, got {config[name]!r}")
    if not config.get("init_values", 1.0):
        raise CheckpointError(f"DINOv2 encoder: setting init_values must be set, got {config['init_values']!r}")
    feed = str(config.get("ffn_layer", "mlp"))
    if feed not in ("mlp", "swiglu", "swiglufused"):
        raise CheckpointError(f"DINOv2 encoder: setting ffn_layer must be mlp, swiglu or swiglufused, got {feed!r}")
    try:
        return _dino(
            width=int(config["embed_dim"]),
            depth=int(config["depth"]),
            heads=int(config["num_heads"]),
            ratio=float(config.get("mlp_ratio", 4.0)),
            patch=int(config.get("patch_size", 14)),
            size=int(config.get("img_size", 518)),
            registers=int(config.get("num_register_tokens", 0)),
            gated=feed != "mlp",
            offset=config.get("interpolate_offset"),
            antialias=config.get("interpolate_antialias"),
            eps=float(config.get("norm_eps", 1e-6)),
        )
    except KeyError as error:
        raise CheckpointError(f"DINOv2 encoder: setting {error} is missing") from error


def _huggingface_config(config: Mapping[str, Any]) -> DinoConfig:
    kind = config.get("model_type", "dinov2")
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise CheckpointError(f"config.json: model_type must be dinov2 or dinov2_with_registers, got {kind!r}")
    for name, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"config.json: {name} must be {wanted!r}, got {config[name]!r}")
    try:
        return _dino(
            width=int(config["hidden_size"]),
            depth=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            ratio=float(config.get("mlp_ratio", 4)),
            patch=int(config.get("patch_size", 14)),
            size=int(config.get("image_size", 518)),
            registers=int(config.get("num_register_tokens", 4)) if kind == "dinov2_with_registers" else 0,
            gated=bool(config.get("use_swiglu_ffn", False)),
            offset=None,
            antialias=None,
            eps=float(config.get("layer_norm_eps", 1e-6)),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {error}") from error


def _dino(
    *,
    width: int,
    depth: int,
    heads: int,
    ratio: float,
    patch: int,
    size: int,
    registers: int,
    gated: bool,
    offset: float | None,
    antialias: bool | None,
    eps: float,
) -> DinoConfig:
    """Where nothing is said, positions are scaled as the official encoders with and without registers do."""
    hidden = int(width * ratio)
    return DinoConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_hidden=gated_hidden(hidden) if gated else hidden,
        patch=patch,
        grid=size // patch,
        registers=registers,
        gated_mlp=gated,
        offset=(0.0 if registers else 0.1) if offset is None else float(offset),
        antialias=bool(registers) if antialias is None else bool(antialias),
        layer_norm_eps=eps,
    )


def gated_hidden(hidden: int) -> int:
    """Width of the gated half that has as many weights as a plain MLP of that width: two thirds, in eights."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def dino_config_of(shapes: Mapping[str, tuple[int, ...]]) -> DinoConfig:
    """Settings of an official file, from the shapes of its tensors; heads are of 64 channels, as all released ones are.

    `CheckpointError` where these are not the tensors of a DINOv2 encoder.
    """
    try:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        positions = shapes["pos_embed"][1] - 1
        depth = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
        gated = "blocks.0.mlp.w12.weight" in shapes
        inner = shapes["blocks.0.mlp.w3.weight"][1] if gated else shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"is not a DINOv2 encoder: key {error} is missing or of another shape") from error
    registers = shapes["register_tokens"][1] if "register_tokens" in shapes else 0
    grid = round(positions**0.5)
    if grid * grid != positions:
        raise CheckpointError(f"is not a DINOv2 encoder: pos_embed must be of a square grid, got {positions} positions")
    if width % HEAD_DIM:
        raise CheckpointError(f"is not a released DINOv2 encoder: width must be heads of {HEAD_DIM}, got {width}")
    return DinoConfig(
        width=width,
        depth=depth,
        heads=width // HEAD_DIM,
        mlp_hidden=inner,
        patch=patch,
        grid=grid,
        registers=registers,
        gated_mlp=gated,
        offset=0.0 if registers else 0.1,
        antialias=bool(registers),
    )


PREDICTOR_SETTINGS = frozenset(
    {
        *("pred_type", "grid", "embed_dim", "pred_embed_dim", "proprio_emb_dim", "proprio_dim", "action_dim", "depth"),
        *("num_heads", "num_frames", "window", "patch_size", "action_emb_dim", "dim_head", "mlp_dim", "plan"),
        *("mlp_ratio", "norm_eps", "img_size"),
    }
)


def predictor_config(config: Mapping[str, Any]) -> PredictorConfig:
    """Our settings for a published predictor's configuration (`pred_type` AdaLN or dino_wm)."""
    refuse_unknown(config, PREDICTOR_SETTINGS, "predictor")
    kind = config.get("pred_type")
    if kind not in ("AdaLN", "dino_wm"):
        raise CheckpointError(f"predictor: setting pred_type must be AdaLN or dino_wm, got {kind!r}")
    latent, measured = int(config["embed_dim"]), int(config.get("proprio_dim") or 0)
    beside = int(config.get("proprio_emb_dim") or 0)
    adaln = kind == "AdaLN"
    width = int(config.get("pred_embed_dim") or latent) if adaln else 0
    hidden = int((width + beside) * float(config.get("mlp_ratio", 4.0))) if adaln else int(config.get("mlp_dim", 2048))
    return PredictorConfig(
        kind="adaln" if adaln else "vit",
        latent=latent,
        action=int(config["action_dim"]),
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        grid=int(config.get("grid", 16)),
        window=int(config.get("window", 2)),
        proprioception=measured if beside else 0,
        proprioception_width=beside,
        width=width,
        action_width=0 if adaln else int(config["action_emb_dim"]),
        head_dim=int(config.get("dim_head", 64)),
        mlp_hidden=hidden,
        frames=int(config.get("num_frames", 4)),
        layer_norm_eps=float(config.get("norm_eps", 1e-6 if adaln else 1e-5)),
    )


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: must be at least 1, got {getattr(config, name)}")
