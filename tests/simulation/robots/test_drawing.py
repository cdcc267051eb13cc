"""Shapes drawn into batches of images, against areas and colors known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulation.robots.drawing import blank, draw_capsules, draw_discs

WHITE, RED = (255, 255, 255), (200, 0, 40)


def covered(canvas: np.ndarray) -> np.ndarray:
    """How much of each pixel is red, 0 to 1, read back from the green channel."""
    return 1.0 - canvas[..., 1] / 255.0


@pytest.mark.parametrize("radius", [1.5, 4.0, 9.25])
def test_a_disc_covers_its_area(radius: float) -> None:
    canvas = blank(3, 48, WHITE)
    draw_discs(canvas, np.array([[24.0, 24.0], [20.3, 25.7], [23.5, 11.2]]), radius, RED)
    # the integral of clip(radius + 0.5 - distance, 0, 1); the edge's soft pixel adds pi / 12 whatever the radius
    np.testing.assert_allclose(covered(canvas).sum(axis=(1, 2)), math.pi * (radius**2 + 1 / 12), rtol=0.015)


def test_a_capsule_covers_a_rectangle_and_two_half_discs() -> None:
    canvas = blank(1, 64, WHITE)
    draw_capsules(canvas, np.array([[12.0, 15.0]]), np.array([[48.0, 42.0]]), 5.0, RED)  # 45 long
    assert covered(canvas).sum() == pytest.approx(45.0 * 10.0 + math.pi * 25.0, rel=0.01)


def test_pixels_on_the_axis_have_the_color_and_far_ones_the_background() -> None:
    canvas = blank(1, 32, WHITE)
    draw_capsules(canvas, np.array([[6.5, 10.5]]), np.array([[25.5, 10.5]]), 2.0, RED)
    assert (canvas[0, 10, 6:26] == RED).all()
    assert (canvas[0, :7] == WHITE).all()
    assert (canvas[0, 14:] == WHITE).all()


def test_coverage_falls_with_the_distance_from_the_axis() -> None:
    canvas = blank(1, 32, WHITE)
    draw_capsules(canvas, np.array([[16.0, 4.2]]), np.array([[16.0, 27.9]]), 3.3, RED)
    across = covered(canvas)[0, 16, 16:]
    assert (np.diff(across) <= 0).all()
    assert 0.0 < across[3] < 1.0  # the edge, 3.3 px out, crosses the pixel 3 to 4 px out


def test_a_pixel_half_inside_is_half_covered() -> None:
    canvas = blank(1, 32, WHITE)
    draw_capsules(canvas, np.array([[4.0, 16.0]]), np.array([[28.0, 16.0]]), 2.5, RED)
    np.testing.assert_allclose(covered(canvas)[0, 18, 8:24], 0.5, atol=0.01)


def test_a_scene_is_drawn_the_same_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    starts, ends = rng.uniform(-10, 50, size=(17, 2)), rng.uniform(-10, 50, size=(17, 2))
    together = blank(17, 40, WHITE)
    draw_capsules(together, starts, ends, 3.0, RED)
    for scene in range(17):
        alone = blank(1, 40, WHITE)
        draw_capsules(alone, starts[scene : scene + 1], ends[scene : scene + 1], 3.0, RED)
        np.testing.assert_array_equal(alone[0], together[scene])


def test_every_pixel_agrees_with_the_distance_written_out() -> None:
    start, end, radius = np.array([9.3, 30.8]), np.array([31.1, 5.5]), 4.2
    canvas = blank(1, 40, WHITE)
    draw_capsules(canvas, start[None], end[None], radius, RED)
    for row in range(40):
        for column in range(40):
            point = np.array([column + 0.5, row + 0.5])
            along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
            distance = np.linalg.norm(point - start - along * (end - start))
            expected = np.clip(radius + 0.5 - distance, 0.0, 1.0)
            assert covered(canvas)[0, row, column] == pytest.approx(expected, abs=0.003)


def test_shapes_outside_the_image_leave_it_alone() -> None:
    canvas = blank(2, 16, WHITE)
    draw_discs(canvas, np.array([[-40.0, 8.0], [8.0, 90.0]]), 5.0, RED)
    assert (canvas == 255).all()


def test_a_coordinate_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        draw_discs(blank(1, 16, WHITE), np.array([[np.nan, 3.0]]), 2.0, RED)
