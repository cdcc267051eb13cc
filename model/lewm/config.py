"""A LeWM network's shape, read from a package's config or from the `config.json` that released files come with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from model.checkpoints.state_dict import CheckpointError

TARGET_SUFFIX = ".LeWM"
"""What the `_target_` of a released `config.json` ends with."""

VIT_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}
"""Width, blocks, heads and MLP width of the encoder sizes that a `config.json` may name."""

WITHOUT_EFFECT = frozenset({
    "pretrained", "dropout", "emb_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "initializer_range", "num_channels", "add_pooling_layer", "encoder_stride", "pooler_output_size", "pooler_act",
})  # fmt: skip
"""Settings of training, or of parts that a file of weights does not have."""


@dataclass(frozen=True)
class LeWMConfig:
    """Shapes of the encoder (a ViT, one image at a time) and of the predictor. Defaults are the released files'."""

    image: int = 224
    patch: int = 14
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_hidden: int = 768
    eps: float = 1e-12  # of the encoder's layer norms
    latent: int = 192
    projector_hidden: int = 2048
    window: int = 3  # latents that a prediction looks back on, the newest included
    predictor_width: int = 192
    predictor_output: int = 192
    predictor_depth: int = 6
    predictor_heads: int = 16
    head_dim: int = 64
    predictor_mlp: int = 2048
    prediction_hidden: int = 2048  # of the MLP behind the predictor
    action_width: int = 10  # numbers of an action block: actions x dimensions
    action_smoothed: int = 10
    action_hidden: int = 768
    action_embedding: int = 192

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "eps" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
                raise ValueError(f"{field.name}: must be a whole number >= 1, got {value!r}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width: must be heads x an even head size, got {self.width} with {self.heads} heads")
        if self.image % self.patch:
            raise ValueError(f"image: must be a multiple of the patch {self.patch}, got {self.image}")
        if self.action_embedding != self.latent and self.latent == self.predictor_width:
            raise ValueError(f"action_embedding: must be the latent's {self.latent}, got {self.action_embedding}")

    @property
    def grid(self) -> int:
        """Patches along a side of an image of the network's own size."""
        return self.image // self.patch


def from_released(config: Mapping[str, Any]) -> LeWMConfig:
    """The shape that a released `config.json` describes, with the overrides it may hold.

    Raises `CheckpointError` naming the first setting that is missing, or that this code does not know.
    """
    target = config.get("_target_")
    if not (isinstance(target, str) and target.endswith(TARGET_SUFFIX)):
        raise CheckpointError(f"config.json: _target_ must end in {TARGET_SUFFIX}, got {target!r}")
    sections = {"_target_", "encoder", "predictor", "action_encoder", "projector", "pred_proj"}
    if unknown := sorted(set(config) - sections):
        raise CheckpointError(f"config.json: {unknown[0]} is not a part of LeWM")
    encoder = _Section("encoder", config.get("encoder"))
    encoder.class_is("vit_hf")
    size = encoder.text("size", "tiny")
    if size not in VIT_SIZES:
        raise CheckpointError(f"config.json: encoder.size must be one of {', '.join(VIT_SIZES)}, got {size!r}")
    width, depth, heads, mlp = VIT_SIZES[size]
    encoder.must_be("use_mask_token", False, False)
    encoder.must_be("hidden_act", "gelu", "gelu")
    encoder.must_be("qkv_bias", True, True)
    predictor = _Section("predictor", config.get("predictor"))
    predictor.class_is("Predictor")
    action = _Section("action_encoder", config.get("action_encoder"))
    action.class_is("Embedder")
    projector, prediction = _mlp(config, "projector"), _mlp(config, "pred_proj")
    embedding = action.number("emb_dim", 10)
    input_dim, hidden_dim = predictor.number("input_dim"), predictor.number("hidden_dim")
    try:
        shape = LeWMConfig(
            image=encoder.number("image_size", 224),
            patch=encoder.number("patch_size", 16),
            width=encoder.number("hidden_size", width),
            depth=encoder.number("num_hidden_layers", depth),
            heads=encoder.number("num_attention_heads", heads),
            mlp_hidden=encoder.number("intermediate_size", mlp),
            eps=encoder.real("layer_norm_eps", 1e-12),
            latent=input_dim,
            projector_hidden=projector.number("hidden_dim"),
            window=predictor.number("num_frames"),
            predictor_width=hidden_dim,
            predictor_output=predictor.number("output_dim", input_dim),
            predictor_depth=predictor.number("depth"),
            predictor_heads=predictor.number("heads"),
            head_dim=predictor.number("dim_head", 64),
            predictor_mlp=predictor.number("mlp_dim"),
            prediction_hidden=prediction.number("hidden_dim"),
            action_width=action.number("input_dim", 10),
            action_smoothed=action.number("smoothed_dim", 10),
            action_hidden=action.number("mlp_scale", 4) * embedding,
            action_embedding=embedding,
        )
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from error
    _same("projector.input_dim", projector.number("input_dim"), "the encoder's width", shape.width)
    _same("projector.output_dim", projector.number("output_dim", shape.width), "predictor.input_dim", shape.latent)
    _same("pred_proj.input_dim", prediction.number("input_dim"), "predictor.output_dim", shape.predictor_output)
    _same("pred_proj.output_dim", prediction.number("output_dim", shape.width), "predictor.input_dim", shape.latent)
    for section in (encoder, predictor, action, projector, prediction):
        section.refuse_rest()
    return shape


def from_package(name: str, network: Mapping[str, Any]) -> LeWMConfig:
    """The shape that a package's `network` holds. ValueError names an unknown key or a value that cannot be."""
    known = {field.name for field in fields(LeWMConfig)}
    if unknown := sorted(set(network) - known):
        raise ValueError(f"{name}: network has an unknown key: {unknown[0]}")
    try:
        return LeWMConfig(**network)
    except ValueError as error:
        raise ValueError(f"{name}: network.{error}") from error


class _Section:
    """One part of a `config.json`, whose settings are taken out one by one."""

    def __init__(self, name: str, raw: Any) -> None:
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"config.json: {name} must be an object, got {raw!r}")
        self._name, self._left = name, dict(raw)

    def class_is(self, wanted: str) -> None:
        target = self._left.pop("_target_", None)
        if not (isinstance(target, str) and target.rpartition(".")[2] == wanted):
            raise CheckpointError(f"config.json: {self._name}._target_ must end in .{wanted}, got {target!r}")

    def number(self, key: str, default: int | None = None) -> int:
        value = self._left.pop(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"config.json: {self._name}.{key} must be a whole number >= 1, got {value!r}")
        return value

    def real(self, key: str, default: float) -> float:
        value = self._left.pop(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(f"config.json: {self._name}.{key} must be a number > 0, got {value!r}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        return str(self._left.pop(key, default))

    def must_be(self, key: str, wanted: Any, default: Any) -> None:
        value = self._left.pop(key, default)
        if value != wanted:
            raise CheckpointError(f"config.json: {self._name}.{key} must be {wanted!r}, got {value!r}")

    def batch_norm(self) -> None:
        norm = self._left.pop("norm_fn", None)
        target = norm.get("_target_") if isinstance(norm, Mapping) else norm
        if not (isinstance(target, str) and target.rpartition(".")[2] == "BatchNorm1d"):
            raise CheckpointError(f"config.json: {self._name}.norm_fn must be torch.nn.BatchNorm1d, got {target!r}")

    def refuse_rest(self) -> None:
        if unknown := sorted(set(self._left) - WITHOUT_EFFECT):
            value = self._left[unknown[0]]
            raise CheckpointError(f"config.json: {self._name}.{unknown[0]} is not supported, got {value!r}")


def _mlp(config: Mapping[str, Any], name: str) -> _Section:
    section = _Section(name, config.get(name))
    section.class_is("MLP")
    section.batch_norm()
    return section


def _same(field: str, value: int, other: str, wanted: int) -> None:
    if value != wanted:
        raise CheckpointError(f"config.json: {field} must be {other}, {wanted}, got {value}")
