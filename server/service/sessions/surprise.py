"""Running mean and standard deviation, for the calibration of surprise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SPREAD = 1e-6  # of the mean: a world predicted exactly has no spread to divide by


@dataclass(frozen=True)
class RunningStatistics:
    """What is known of the numbers so far (Welford 1962: no difference of large sums is ever taken)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def including(self, values: Sequence[float]) -> RunningStatistics:
        """What is known with these numbers too."""
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            count += 1
            before = value - mean
            mean += before / count
            squares += before * (value - mean)
        return RunningStatistics(count, mean, squares)

    @property
    def deviation(self) -> float:
        """Standard deviation, of a sample; 0 for fewer than two numbers."""
        return float((self.squares / (self.count - 1)) ** 0.5) if self.count > 1 else 0.0

    def scores(self, values: Sequence[float]) -> tuple[float, ...]:
        """How many standard deviations each value lies above the mean. Always finite."""
        spread = max(self.deviation, LEAST_SPREAD * abs(self.mean), 1e-12)
        return tuple((value - self.mean) / spread for value in values)
