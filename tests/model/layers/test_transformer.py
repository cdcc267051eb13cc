"""Rotary positions, attention and blocks against their definitions."""

from __future__ import annotations

import copy

import pytest
import torch

from model.layers.transformer import Attention, Block, RotaryCache, grid_positions, rotary_table
from tests.support.model.reference_files import fixture, worst


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def rotate_one_axis(x: torch.Tensor, positions: torch.Tensor, style: str) -> torch.Tensor:
    """The definition, pair by pair, in Python."""
    width = x.shape[-1]
    rotated = torch.empty_like(x)
    for channel in range(width):
        pair = channel // 2
        frequency = channel % (width // 2) if style == "tiled" else pair
        angle = positions.double() * 10000.0 ** (-frequency / (width / 2))
        partner = -x[..., 2 * pair + 1] if channel % 2 == 0 else x[..., 2 * pair]
        rotated[..., channel] = x[..., channel] * angle.cos() + partner * angle.sin()
    return rotated


@pytest.mark.parametrize("style", ["tiled", "interleaved"])
@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 64, 80])
def test_rotary_tables_rotate_each_axis_by_its_position(style: str, head_dim: int) -> None:
    positions = grid_positions((2, 3, 2))
    table = rotary_table(positions, head_dim, style, torch.float64)  # type: ignore[arg-type]
    x = torch.randn(2, 12, 3, head_dim, dtype=torch.float64)
    part = 2 * (head_dim // 3 // 2)
    expected = x.clone()
    for axis in range(3):
        channels = slice(axis * part, (axis + 1) * part)
        expected[..., channels] = rotate_one_axis(x[..., channels].transpose(1, 2), positions[axis], style).transpose(
            1, 2
        )
    assert worst(table.rotate(x), expected) <= 1e-12


def test_rotary_parity_with_the_published_function() -> None:
    """The published function rotates one axis; ours sees it as the time axis of a head three times as wide."""
    reference = fixture("masks_and_rope")
    x = reference["inputs"]["x"]
    width = x.shape[-1]
    for case, allowed in (("pos_int", 1e-5), ("pos_float", 1e-5)):
        positions = torch.zeros(3, x.shape[2])
        positions[0] = reference["inputs"][case]
        wide = torch.cat([x, torch.zeros(*x.shape[:-1], 2 * width)], dim=-1).transpose(1, 2)
        table = rotary_table(positions, 3 * width, "tiled", torch.float32)
        got = table.rotate(wide).transpose(1, 2)[..., :width]
        assert worst(got, reference["outputs"][case]) <= allowed


def test_interleaved_rotation_keeps_lengths_and_relative_positions() -> None:
    """True rotations: a query and a key see each other by the difference of their positions alone."""
    query, key = torch.randn(2, 1, 1, 1, 24, dtype=torch.float64).unbind(0)

    def score(here: float, there: float) -> torch.Tensor:
        tables = [rotary_table(torch.full((3, 1), at), 24, "interleaved", torch.float64) for at in (here, there)]
        return (tables[0].rotate(query) * tables[1].rotate(key)).sum()

    assert torch.allclose(score(3.0, 5.0), score(10.0, 12.0))
    table = rotary_table(torch.full((3, 1), 7.0), 24, "interleaved", torch.float64)
    assert torch.allclose(table.rotate(query).norm(), query.norm())


def test_rotation_in_bfloat16_rounds_once() -> None:
    table = rotary_table(grid_positions((4, 4, 4)), 32, "tiled", torch.float32)
    x = torch.randn(1, 64, 2, 32).to(torch.bfloat16)
    got = table.rotate(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, table.rotate(x.float()).to(torch.bfloat16))


def test_the_table_cache_keeps_what_was_used_last() -> None:
    cache, built = RotaryCache(limit=2), []

    def get(key: str) -> None:
        def build():  # type: ignore[no-untyped-def]
            built.append(key)
            return rotary_table(torch.zeros(3, 1), 8, "tiled", torch.float32)

        cache.get(key, build)

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert built == ["a", "b", "c", "b"]


@pytest.mark.parametrize("masked", [False, True])
def test_fused_and_plain_attention_agree_in_value_and_gradient(masked: bool) -> None:
    mask = torch.ones(6, 6, dtype=torch.bool).tril() if masked else None
    fused = Attention(16, 2)
    plain = Attention(16, 2, fused=False)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 6, 16)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    first, second = fused(one, mask=mask), plain(other, mask=mask)
    assert worst(first, second) <= 1e-5
    first.square().sum().backward()
    second.square().sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert worst(one.grad, other.grad) <= 1e-4


def test_attention_in_bfloat16_keeps_its_values_and_its_gradient() -> None:
    exact = Attention(32, 2)
    lowered = copy.deepcopy(exact).to(torch.bfloat16)
    x = torch.randn(2, 80, 32)
    with torch.no_grad():
        in_pieces = lowered(x.to(torch.bfloat16))
    followed = lowered(x.to(torch.bfloat16))
    expected = exact(x)
    for got in (in_pieces, followed):
        assert (got.float() - expected).norm() <= 0.01 * expected.norm()
    followed.float().square().sum().backward()
    expected.square().sum().backward()
    assert lowered.qkv.weight.grad is not None
    assert exact.qkv.weight.grad is not None
    error = lowered.qkv.weight.grad.float() - exact.qkv.weight.grad
    assert error.norm() <= 0.03 * exact.qkv.weight.grad.norm()


def test_stepping_a_block_through_frames_equals_one_causal_pass() -> None:
    block = Block(16, 2, 32).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    positions = grid_positions((3, 1, 2))
    frame = torch.arange(3).repeat_interleave(2)
    mask = frame.unsqueeze(1) >= frame.unsqueeze(0)
    whole = block(x, rotary_table(positions, 8, "tiled", torch.float64), mask)
    past, parts = None, []
    for index in range(3):
        tokens = slice(2 * index, 2 * index + 2)
        table = rotary_table(positions[:, tokens], 8, "tiled", torch.float64)
        part, past = block.step(x[:, tokens], table, past)
        parts.append(part)
    assert worst(torch.cat(parts, dim=1), whole) <= 1e-12


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width: must be heads x a head size, got width 16 with 3 heads"):
        Attention(16, 3)
