"""Attention in pieces against its definition, whatever does not fill a piece and however large scores are."""

from __future__ import annotations

import pytest
import torch

from model.layers import blocked_attention
from model.layers.blocked_attention import attention_in_pieces, rotate_in_pieces
from model.layers.transformer import Attention, grid_positions, rotary_table
from tests.support.model.reference_files import worst


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def drawn(batch: int, heads: int, queries: int, keys: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values as views of projections."""
    query = torch.randn(batch, queries, heads, 8, dtype=torch.float64).transpose(1, 2)
    return query, *torch.randn(2, batch, keys, heads, 8, dtype=torch.float64).transpose(2, 3)


def defined(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1) @ value


@pytest.mark.parametrize(("batch", "heads", "queries", "keys"), [(1, 2, 700, 2000), (7, 2, 300, 300), (2, 2, 1, 65)])
def test_attention_in_pieces_is_attention(
    monkeypatch: pytest.MonkeyPatch, batch: int, heads: int, queries: int, keys: int
) -> None:
    """Also where heads or queries do not fill their last piece, and for views of one projection."""
    monkeypatch.setattr(blocked_attention, "SCORES", 1 << 18)
    given = drawn(batch, heads, queries, keys)
    assert worst(attention_in_pieces(*given), defined(*given)) <= 1e-12


@pytest.mark.parametrize("factor", [0.0, 30.0, 1e3, 1e6])
def test_scores_of_every_size_are_attended_to(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Powers overflow at the larger ones, for some heads or for all."""
    monkeypatch.setattr(blocked_attention, "SCORES", 100 * 100)
    query, key, value = drawn(1, 3, 100, 100)
    query[:, 1:] *= factor
    assert worst(attention_in_pieces(query, key, value), defined(query, key, value)) <= 1e-9


def test_scores_that_are_all_far_below_zero_are_attended_to() -> None:
    query, value = torch.full((1, 1, 3, 8), 30.0, dtype=torch.float64), torch.randn(1, 1, 70, 8, dtype=torch.float64)
    key = torch.rand(1, 1, 70, 8, dtype=torch.float64) - 30.0
    assert worst(attention_in_pieces(query, key, value), defined(query, key, value)) <= 1e-9


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_a_number_spoils_its_own_queries_alone(wrong: float) -> None:
    query, key, value = drawn(1, 2, 5, 70)
    query[0, 1, 3, 0] = wrong
    got = attention_in_pieces(query, key, value)
    expected = defined(query, key, value)
    spoilt = got.isnan().any(-1)
    assert spoilt.nonzero().tolist() == [[0, 1, 3]]
    assert worst(got[~spoilt], expected[~spoilt]) <= 1e-12


@pytest.mark.parametrize("style", ["tiled", "interleaved"])
def test_rotation_in_pieces_is_rotation_to_the_last_bit(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    table = rotary_table(grid_positions((2, 5, 7)), 64, style, torch.float32)  # type: ignore[arg-type]
    heads = torch.randn(5, 70, 64).to(torch.bfloat16)
    expected = table.rotate(heads.transpose(0, 1).unsqueeze(0))[0].transpose(0, 1)
    monkeypatch.setattr(blocked_attention, "ROTATED", 2 * 70 * 64)
    rotate_in_pieces(heads, table.cos, table.sin)
    assert torch.equal(heads, expected)


@pytest.mark.parametrize("tokens", [8, 72])
def test_heads_rotate_alike_with_and_without_a_gradient(tokens: int) -> None:
    """A gradient keeps them out of pieces."""
    attention = Attention(32, 2).to(torch.bfloat16)
    table = rotary_table(grid_positions((2, 2, tokens // 4)), 16, "tiled", torch.float32)
    projected = torch.randn(3, tokens, 96).to(torch.bfloat16)
    with torch.inference_mode():
        one = attention.heads_of(projected, table)
    other = attention.heads_of(projected.requires_grad_(), table)
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
