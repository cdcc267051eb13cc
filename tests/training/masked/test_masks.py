"""Masks hide whole blocks through time, and never ask for what is seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masked.masks import PUBLISHED, MaskSet, draw_masks


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 9)),
    st.sampled_from(PUBLISHED),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_seen_and_hidden_never_meet_and_neither_is_empty(
    grid: tuple[int, int, int], chosen: MaskSet, batch: int, seed: int
) -> None:
    masks = draw_masks(grid, chosen, batch, torch.Generator().manual_seed(seed))
    time, rows, columns = grid
    for seen, hidden in zip(masks.context.tolist(), masks.target.tolist(), strict=True):
        assert seen
        assert hidden
        assert not set(seen) & set(hidden)
        assert max(*seen, *hidden) < time * rows * columns
        assert sorted(set(seen)) == seen
        assert sorted(set(hidden)) == hidden


def test_a_clip_is_hidden_in_tubes() -> None:
    masks = draw_masks((3, 8, 8), PUBLISHED[0], 4, torch.Generator().manual_seed(0))
    for part in (masks.context, masks.target):
        by_frame = part.unflatten(1, (3, -1)) - 64 * torch.arange(3).view(1, 3, 1)
        assert (by_frame == by_frame[:, :1]).all()


def test_one_block_is_a_rectangle_of_the_area_asked_for() -> None:
    chosen = MaskSet(blocks=1, area=0.25, aspects=(1.0, 1.0))
    masks = draw_masks((1, 16, 16), chosen, 8, torch.Generator().manual_seed(1))
    for hidden in masks.target:
        rows, columns = hidden // 16, hidden % 16
        assert len(hidden) == 64
        assert rows.unique().tolist() == list(range(int(rows.min()), int(rows.min()) + 8))
        assert columns.unique().tolist() == list(range(int(columns.min()), int(columns.min()) + 8))


def test_samples_and_draws_differ_and_seeds_repeat() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return draw_masks((1, 8, 8), PUBLISHED[0], 3, torch.Generator().manual_seed(seed)).target

    assert torch.equal(drawn(5), drawn(5))
    assert drawn(5).tolist() != drawn(6).tolist()
    assert drawn(5)[0].tolist() != drawn(5)[1].tolist()


def test_published_masks_hide_most_of_a_clip() -> None:
    """V-JEPA 2's sets hide about 75 and 85 % of the tokens: far more than images could spare."""
    for chosen, low, high in ((PUBLISHED[0], 0.55, 0.85), (PUBLISHED[1], 0.7, 0.99)):
        masks = draw_masks((8, 16, 16), chosen, 1, torch.Generator().manual_seed(2))
        hidden = masks.target.shape[1] / (masks.target.shape[1] + masks.context.shape[1])
        assert low < hidden < high


def test_a_set_at_fault_is_named() -> None:
    with pytest.raises(ValueError, match="area must lie between 0 and 1, got 2"):
        MaskSet(1, 2.0)
    with pytest.raises(ValueError, match="more than one token in a frame, got 1 x 1"):
        draw_masks((2, 1, 1), PUBLISHED[0], 1, torch.Generator())
