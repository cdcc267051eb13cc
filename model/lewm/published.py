"""Released LeWM files: whose they are, which of their tensors make which of ours, and known action statistics.

Two layouts exist: the released files name the image encoder's parts as older versions of `transformers` did, files
saved with version 5 and later as those do. Both hold one flat dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.state_dict import CheckpointError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.pt"
MARKS = ("predictor.pos_embedding", "action_encoder.patch_embed.weight", "projector.net.0.weight")
"""Keys that no other family has together."""
VERIFIED = "networks of the same code at small sizes equal the published implementation's; no real weights were run"


@dataclass(frozen=True)
class ReleasedModel:
    """One released model: two files of a Hugging Face repository."""

    name: str
    repository: str
    revision: str
    weights_sha256: str
    config_sha256: str
    action_width: int
    task: str
    license: str = "MIT"

    @property
    def address(self) -> str:
        """The folder of its files."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/"

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Names and digests, the weights last."""
        return (CONFIG_FILE, self.config_sha256), (WEIGHTS_FILE, self.weights_sha256)


_CONFIG = "2564086e961e7b5c7c04dffc451091115b389a590645ff19653c64fd0bc16e09"
_CUBE_CONFIG = "4d446944fe28922cc2c5763f43d4ef9132a457bd89e9a0ce5dbceac183994999"

RELEASED: tuple[ReleasedModel, ...] = (
    ReleasedModel(
        "lewm-pusht",
        "quentinll/lewm-pusht",
        "22b330c28c27ead4bfd1888615af1340e3fe9052",
        "48938400ae3464c9680731287f583a9cb516f55a8ec64ea13a91be47fb15b607",
        _CONFIG,
        10,
        "pusht",
    ),
    ReleasedModel(
        "lewm-tworooms",
        "quentinll/lewm-tworooms",
        "77adaae0bc31deab21c93740d1f8bb947cd0bdec",
        "566f223624ea4bfb39dbfe6ae731198dd6ea73b7b8919fed6b1ecafca810f7dd",
        _CONFIG,
        10,
        "tworoom",
    ),
    ReleasedModel(
        "lewm-reacher",
        "quentinll/lewm-reacher",
        "62adae4b71dc474ddf8f794c476ebfe737a743ca",
        "eb70b1fd5409f8f81875d62f5ee5a20dd220a3128a477de66b5760f475f0f469",
        _CONFIG,
        10,
        "reacher",
    ),
    ReleasedModel(
        "lewm-cube",
        "quentinll/lewm-cube",
        "b0747c5002e86d2ce8f3cd8178004b97524c587d",
        "2839a907362f403f9136383016e91774373a295d958ae75121791f22a9fddf89",
        _CUBE_CONFIG,
        25,
        "cube",
    ),
)

KNOWN_STATISTICS: Mapping[str, ActionStatistics] = {
    "lewm-pusht": ActionStatistics(
        mean=(-0.0359, 0.0071),
        std=(0.1875, 0.1970),
        names=("x", "y"),
        source="a partial estimate, from 80,384 rows of the published Push-T data and not from all: "
        "fit them on the whole data where you have it",
    ),
    "lewm-tworooms": ActionStatistics(
        mean=(0.00309341, -0.05298233),
        std=(0.86747581, 0.86776555),
        names=("x", "y"),
        source="the manifest of the TwoRoom checkpoint published with Lensemble (rows with NaN dropped)",
    ),
    "lewm-cube": ActionStatistics(
        mean=(0.010885, -0.003141, 0.002647, 0.000424, 0.159253),
        std=(0.289420, 0.393717, 0.643137, 0.392802, 0.250307),
        names=("x", "y", "z", "yaw", "gripper"),
        source="LeWAM's published lewam_config.json, for OGBench's cube data",
    ),
}
"""Of the data that released models were trained on, which their files do not hold. Reacher's are not published."""


def by_digest(weights_sha256: str) -> ReleasedModel | None:
    """The released model whose weights have this digest."""
    return next((model for model in RELEASED if model.weights_sha256 == weights_sha256), None)


_ENCODER = (
    (r"encoder\.embeddings\.cls_token", "encoder.cls_token"),
    (r"encoder\.embeddings\.position_embeddings", "encoder.pos_embed"),
    (r"encoder\.embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed."),
    (r"encoder\.layernorm\.", "encoder.norm."),
)
_RELEASED_LAYER = (
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)
_LATER_LAYER = (
    (r"attention\.q_proj\.", "attn.query."),
    (r"attention\.k_proj\.", "attn.key."),
    (r"attention\.v_proj\.", "attn.value."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"mlp\.fc([12])\.", r"mlp.fc\1."),
)
_EITHER_LAYER = ((r"layernorm_before\.", "norm1."), (r"layernorm_after\.", "norm2."))
_OTHERS = (
    (r"predictor\.pos_embedding", "predictor.pos_embed"),
    (r"predictor\.transformer\.layers\.(\d+)\.attn\.to_qkv\.", r"predictor.blocks.\1.attn.qkv."),
    (r"predictor\.transformer\.layers\.(\d+)\.attn\.to_out\.0\.", r"predictor.blocks.\1.attn.proj."),
    (r"predictor\.transformer\.layers\.(\d+)\.attn\.norm\.", r"predictor.blocks.\1.attn.norm."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.0\.", r"predictor.blocks.\1.mlp.norm."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.1\.", r"predictor.blocks.\1.mlp.fc1."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.4\.", r"predictor.blocks.\1.mlp.fc2."),
    (r"predictor\.transformer\.layers\.(\d+)\.adaLN_modulation\.1\.", r"predictor.blocks.\1.modulation."),
    (r"predictor\.transformer\.norm\.", "predictor.norm."),
    (r"predictor\.transformer\.input_proj\.", "predictor.input_proj."),
    (r"predictor\.transformer\.cond_proj\.", "predictor.action_proj."),
    (r"predictor\.transformer\.output_proj\.", "predictor.output_proj."),
    (r"action_encoder\.patch_embed\.", "action_embedder.smooth."),
    (r"action_encoder\.embed\.0\.", "action_embedder.fc1."),
    (r"action_encoder\.embed\.2\.", "action_embedder.fc2."),
    (r"(projector|pred_proj)\.net\.0\.", r"\1.fc1."),
    (r"(projector|pred_proj)\.net\.1\.", r"\1.norm."),
    (r"(projector|pred_proj)\.net\.3\.", r"\1.fc2."),
)


def is_lewm(keys: frozenset[str]) -> bool:
    """Whether a flat dictionary with these keys is a LeWM file, as far as names tell."""
    return all(mark in keys for mark in MARKS)


def our_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released file's tensors under our names, queries, keys and values of the image encoder joined.

    Raises `CheckpointError` for a key of neither layout, for both layouts in one file, for a query without its key and
    value, and for an action layer that is no 1 x 1 convolution.
    """
    layouts = {_layout(key) for key in weights} - {None}
    if len(layouts) > 1:
        raise CheckpointError("keys of both encoder layouts, encoder.encoder.layer and encoder.layers, are there")
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = _renamed(key)
        if name == "action_embedder.smooth.weight":
            if tensor.ndim != 3 or tensor.shape[2] != 1:
                raise CheckpointError(f"key {key} must have shape (out, actions, 1), got {tuple(tensor.shape)}")
            tensor = tensor.squeeze(2)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace(".attn.query.", f".attn.{part}.") for part in ("query", "key", "value")]
        for part in parts:
            if part not in renamed or renamed[part].shape != renamed[name].shape:
                raise CheckpointError(
                    f"{part.removeprefix('encoder.')} is missing beside its query, or has another shape"
                )
        renamed[name.replace(".attn.query.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _layout(key: str) -> str | None:
    return next((layout for layout in ("encoder.encoder.layer.", "encoder.layers.") if key.startswith(layout)), None)


def _renamed(key: str) -> str:
    """Our name of a file's key, before queries, keys and values are joined."""
    layer = re.fullmatch(r"encoder\.(encoder\.layer|layers)\.(\d+)\.(.+)", key)
    if layer is not None:
        own = _RELEASED_LAYER if layer[1] == "encoder.layer" else _LATER_LAYER
        for pattern, name in (*own, *_EITHER_LAYER):
            rest, count = re.subn("^" + pattern, name, layer[3])
            if count:
                return f"encoder.blocks.{layer[2]}.{rest}"
    for pattern, name in (*_ENCODER, *_OTHERS):
        rest, count = re.subn("^" + pattern, name, key)
        if count:
            return re.sub(r"^pred_proj\.", "prediction_head.", rest)
    raise CheckpointError(f"key {key} is unknown to LeWM")
