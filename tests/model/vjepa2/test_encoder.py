"""The encoder against the published implementation's numbers, and what must hold for any weights."""

from __future__ import annotations

import pytest
import torch

from model.vjepa2 import CheckpointError, Encoder, EncoderConfig
from model.vjepa2.encoder import sincos_table
from model.vjepa2.stems import PatchEmbed
from tests.support.model.reference_files import doubled, fixture, worst
from tests.support.model.tiny_vjepa2 import ENCODER, ENCODER_2_1, encoder, randomized

VIDEO_FIXTURES = ("encoder_hd32", "encoder_hd16_mlp48_11", "encoder_hd24")


@pytest.mark.parametrize("name", VIDEO_FIXTURES)
@torch.inference_mode()
def test_encoder_parity_on_clips_of_every_shape(name: str) -> None:
    reference = fixture(name)
    network = Encoder.from_reference(reference["config"], reference["checkpoint_layout"]["encoder"])
    for case, video in reference["inputs"].items():
        if case in reference["outputs"]:
            assert worst(network(video), reference["outputs"][case]) <= 1e-5, case


@pytest.mark.parametrize("name", VIDEO_FIXTURES)
@torch.inference_mode()
def test_encoder_parity_under_masks(name: str) -> None:
    reference = fixture(name)
    network = Encoder.from_reference(reference["config"], reference["state_dict"])
    inputs, outputs = reference["inputs"], reference["outputs"]
    one, other = inputs["video8_mask"], inputs["video8_mask_b"]
    assert worst(network(inputs["video8"], one), outputs["video8_masked"]) <= 1e-5
    assert worst(network(inputs["video8"], [one, other]), outputs["video8_masked_two"]) <= 1e-5


@pytest.mark.parametrize("name", VIDEO_FIXTURES)
@torch.inference_mode()
def test_encoder_parity_after_every_block(name: str) -> None:
    reference = fixture(name)
    network = Encoder.from_reference(reference["config"], reference["state_dict"])
    layers = range(reference["config"]["depth"])
    for layer, got in zip(layers, network.layer_outputs(reference["inputs"]["video4"], layers), strict=True):
        assert worst(got, reference["outputs"][f"video4_layer{layer}_normed"]) <= 1e-5


@pytest.mark.parametrize("name", VIDEO_FIXTURES)
@torch.inference_mode()
def test_encoder_parity_in_float64(name: str) -> None:
    reference = fixture(name)
    network = Encoder.from_reference(reference["config"], doubled(reference["state_dict"]))
    assert worst(network(reference["inputs"]["video4"].double()), reference["outputs"]["video4_f64"]) <= 1e-10


@pytest.mark.parametrize("name", ["encoder_image2d", "encoder_sincos"])
@torch.inference_mode()
def test_encoder_parity_of_the_image_and_sincos_models(name: str) -> None:
    reference = fixture(name)
    network = Encoder.from_reference(reference["config"], reference["state_dict"])
    for case, video in reference["inputs"].items():
        assert worst(network(video), reference["outputs"][case]) <= 1e-5, case


def test_sincos_parity_of_a_fresh_table() -> None:
    reference = fixture("encoder_sincos")
    assert worst(sincos_table((4, 4, 4), 96), reference["state_dict"]["pos_embed"]) <= 1e-6


@torch.inference_mode()
def test_an_image_is_a_still_pair() -> None:
    network, image = encoder(), torch.randn(2, 3, 16, 24)
    still = image.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    assert torch.equal(network(image), network(still))
    assert torch.equal(network(image.unsqueeze(2)), network(still))


@torch.inference_mode()
def test_a_full_mask_in_another_order_reorders_the_tokens() -> None:
    network, video = encoder(), torch.randn(2, 3, 4, 16, 16)
    order = torch.stack([torch.randperm(8), torch.randperm(8)])
    expected = network(video).take_along_dim(order.unsqueeze(-1), dim=1)
    assert worst(network(video, order), expected) <= 1e-5


@torch.inference_mode()
def test_fused_and_written_out_attention_agree() -> None:
    fused = encoder()
    plain = Encoder(EncoderConfig(**{**vars(ENCODER), "fused_attention": False}))
    plain.load_state_dict(fused.state_dict())
    video = torch.randn(2, 3, 4, 16, 16)
    assert worst(fused(video), plain(video)) <= 1e-5


@pytest.mark.parametrize(("tubelet", "shape"), [(2, (2, 3, 5, 16, 24)), (1, (1, 3, 1, 8, 8))])
def test_the_linear_patch_embedding_is_the_convolution(tubelet: int, shape: tuple[int, ...]) -> None:
    """In value and gradient, and where a last frame fills no tubelet."""
    stem = PatchEmbed(12, 8, tubelet).double()
    video = torch.randn(shape, dtype=torch.float64)
    convolved = stem.proj(video).flatten(2).transpose(1, 2)
    assert worst(stem(video), convolved) <= 1e-12
    expected = torch.autograd.grad(convolved.square().sum(), stem.proj.weight)[0]
    got = torch.autograd.grad(stem(video).square().sum(), stem.proj.weight)[0]
    assert worst(got, expected) <= 1e-10


@torch.inference_mode()
def test_a_stem_of_the_callers_own_feeds_the_same_body() -> None:
    own = encoder()
    other = Encoder(ENCODER, stem=own.patch_embed)
    other.load_state_dict(own.state_dict())
    video = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(own(video), other(video))


def test_a_stem_on_another_grid_is_refused() -> None:
    wrong = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.LazyLinear(ENCODER.width))
    with pytest.raises(ValueError, match="stem: must give"):
        Encoder(ENCODER, stem=wrong)(torch.randn(1, 3, 2, 16, 16))


def test_tables_made_while_serving_do_for_training() -> None:
    network, video = encoder().requires_grad_(True), torch.randn(1, 3, 2, 16, 16)
    with torch.inference_mode():
        network(video)
    network(video).sum().backward()
    assert network.patch_embed.proj.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 2, 20, 16), "video height: must be a positive multiple of 8, got 20"),
        ((1, 3, 2, 16, 4), "video width: must be a positive multiple of 8, got 4"),
        ((1, 4, 2, 16, 16), r"video: must be \[batch, 3, time, height, width\], got \[1, 4, 2, 16, 16\]"),
        ((3, 16, 16), r"video: must be \[batch, 3"),
    ],
)
def test_a_video_of_the_wrong_shape_is_refused_by_name(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder()(torch.zeros(shape))


@torch.inference_mode()
def test_2_1_sees_one_frame_through_its_image_stem_and_marks_it() -> None:
    network = encoder(ENCODER_2_1)
    image = torch.randn(1, 3, 16, 16)
    assert network(image).shape == (1, 4, 24)
    assert not torch.allclose(network(image), network(image.unsqueeze(2).expand(-1, -1, 2, -1, -1)))
    marked = encoder(ENCODER_2_1)
    marked.img_mod_embed += torch.randn(24)
    assert not torch.allclose(marked(image), network(image))


@torch.inference_mode()
def test_2_1_levels_end_with_the_output() -> None:
    network, video = encoder(ENCODER_2_1), torch.randn(1, 3, 2, 16, 16)
    levels = network.layer_outputs(video, ENCODER_2_1.norm_layers)
    assert len(levels) == 4
    assert torch.equal(levels[-1], network(video))
    with pytest.raises(ValueError, match="layers: must be among"):
        network.layer_outputs(video, [0])


@torch.inference_mode()
def test_2_1_positions_span_the_same_range_at_any_size() -> None:
    """Corner tokens of a small and of a large grid sit at the same positions: a constant image encodes alike there."""
    one_layer = randomized(Encoder(EncoderConfig(**{**vars(ENCODER), "positions": "interleaved", "rotary_grid": 4})))
    assert isinstance(one_layer, Encoder)
    grids = [(1, 2, 2), (1, 4, 4)]
    small, large = (one_layer._rotary(grid, torch.zeros(1)) for grid in grids)
    assert torch.allclose(small.cos[[0, 1, 2, 3]], large.cos[[0, 3, 12, 15]])


def test_import_of_reference_weights_is_strict() -> None:
    network = encoder()
    config = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "patch_size": 8, "num_frames": 16}
    weights = network.state_dict()
    with pytest.raises(CheckpointError, match=r"encoder: key norm\.bias is missing"):
        Encoder.from_reference(config, {key: value for key, value in weights.items() if key != "norm.bias"})
    with pytest.raises(CheckpointError, match=r"encoder: key head\.weight is unknown"):
        Encoder.from_reference(config, {**weights, "head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"norm\.bias must have shape \(32,\), got \(31,\)"):
        Encoder.from_reference(config, {**weights, "norm.bias": torch.zeros(31)})
    with pytest.raises(CheckpointError, match="setting use_silu is not supported, got True"):
        Encoder.from_reference({**config, "use_silu": True}, weights)
    carried = Encoder.from_reference(config, {f"module.backbone.{key}": v for key, v in weights.items()})
    assert all(torch.equal(value, weights[key]) for key, value in carried.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "width: must be at least 1, got 0"),
        ("heads", 5, "heads: must cut width 32 into even parts, got 5"),
        ("positions", "absolute", "positions: must be tiled, interleaved or sincos, got 'absolute'"),
        ("positions", "sincos", "sincos_grid: must be given exactly with sincos positions, got None"),
        ("norm_layers", (0,), r"norm_layers: must end with the last block 1, got \(0,\)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**{**vars(ENCODER), field: value})  # type: ignore[arg-type]
