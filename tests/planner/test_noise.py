from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planner.noise import ColoredNoise, Noise, NoiseShape, Stream, TimeCorrelatedNoise, WhiteNoise
from planner.types import PlanningError
from tests.support.planner.recordings import RecordedNoise

CPU = torch.device("cpu")
SHAPE = NoiseShape(samples=20000, horizon=4, block=3, action=2)


def drawn(noise: Noise, *streams: Stream) -> Tensor:
    return noise(streams or (Stream(0, 0),), SHAPE, CPU)


def correlation(noise: Tensor) -> Tensor:
    """Between the actions of a plan [time, time], over samples and dimensions."""
    rows = noise[0].permute(1, 0, 2).flatten(1)
    return rows @ rows.T / rows.shape[1]


@pytest.mark.parametrize(
    "noise",
    [WhiteNoise(), TimeCorrelatedNoise(), TimeCorrelatedNoise(0, 3, 1), ColoredNoise(0.5), ColoredNoise(3)],
)
def test_every_entry_has_zero_mean_and_unit_variance(noise: Noise) -> None:
    entries = drawn(noise)[0]
    assert entries.shape == (20000, 12, 2)
    torch.testing.assert_close(entries.mean(0), torch.zeros(12, 2), atol=0.035, rtol=0)
    torch.testing.assert_close(entries.var(0), torch.ones(12, 2), atol=0.06, rtol=0)


def test_white_actions_do_not_correlate() -> None:
    torch.testing.assert_close(correlation(drawn(WhiteNoise())), torch.eye(12), atol=0.035, rtol=0)


def test_time_correlated_actions_correlate_by_the_share_they_have_in_common() -> None:
    constant, block, action = 3.0, 2.0, 1.0
    steps = torch.arange(12) // 3
    same_step = (steps[:, None] == steps[None, :]).float()
    expected = (constant**2 + block**2 * same_step + action**2 * torch.eye(12)) / 14
    found = correlation(drawn(TimeCorrelatedNoise(constant, block, action)))
    torch.testing.assert_close(found, expected, atol=0.035, rtol=0)


def test_shared_parts_fade_and_the_variance_stays() -> None:
    noise = TimeCorrelatedNoise(1.0, 1.0, 0.5, fade=0.5)
    shared = []
    for iteration in range(5):
        entries = drawn(noise, Stream(0, iteration))
        shared.append(correlation(entries)[0, -1].item())
        torch.testing.assert_close(entries.var(), torch.tensor(1.0), atol=0.03, rtol=0)
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > 0.4
    assert shared[-1] < 0.05
    mixed = drawn(noise, Stream(0, 4), Stream(0, 0))
    torch.testing.assert_close(mixed[0], drawn(noise, Stream(0, 4))[0])


def test_more_color_is_slower_noise() -> None:
    neighbors = [correlation(drawn(ColoredNoise(beta))).diagonal(1).mean().item() for beta in (0, 0.5, 1, 2, 4)]
    assert neighbors == sorted(neighbors)
    assert abs(neighbors[0]) < 0.02
    assert neighbors[-1] > 0.7


def test_a_stream_gives_the_same_numbers_in_any_company() -> None:
    for noise in (WhiteNoise(), TimeCorrelatedNoise(), ColoredNoise()):
        alone = drawn(noise, Stream(7, 3))[0]
        company = drawn(noise, Stream(1, 0), Stream(7, 3), Stream(7, 4))
        torch.testing.assert_close(company[1], alone, atol=1e-6, rtol=0)
        assert (company[2] - alone).abs().mean() > 0.5


@pytest.mark.parametrize(("first", "second"), [(Stream(0, 1), Stream(1, 0)), (Stream(-1, 0), Stream(0, 0))])
def test_neighboring_streams_are_unrelated(first: Stream, second: Stream) -> None:
    one, other = drawn(WhiteNoise(), first, second)
    assert (one * other).mean().abs() < 0.01


def test_recorded_noise_replays_each_streams_own_iteration() -> None:
    draws = torch.randn(3, 12, 20000, 2, generator=torch.Generator().manual_seed(0))
    replayed = drawn(RecordedNoise(draws), Stream(0, 2), Stream(0, 0))
    assert torch.equal(replayed[0], draws[2].transpose(0, 1))
    assert torch.equal(replayed[1], draws[0].transpose(0, 1))
    with pytest.raises(PlanningError, match=r"noise\.draws must hold iteration 3"):
        drawn(RecordedNoise(draws), Stream(0, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TimeCorrelatedNoise(0, 0, 0),
        lambda: TimeCorrelatedNoise(-1),
        lambda: ColoredNoise(-0.5),
        lambda: TimeCorrelatedNoise(fade=0),
    ],
)
def test_noise_of_no_size_is_refused(wrong: type[Noise]) -> None:
    with pytest.raises(PlanningError, match="noise"):
        wrong()
