"""How a stored picture is turned and mirrored so that it stands as players and viewers show it.

One value for both sources: the display matrix of a clip and the EXIF orientation of a still picture.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)

_OFF_AXIS = 0.0175  # tangent of one degree: the slack that FFmpeg's command gives a display matrix


@dataclass(frozen=True)
class Orientation:
    """From stored to shown: `rotation` degrees counter-clockwise (0, 90, 180 or 270), then left and right swapped."""

    rotation: int = 0
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation must be 0, 90, 180 or 270 degrees, got {self.rotation}")

    @property
    def swaps_sides(self) -> bool:
        """Whether the shown picture is as high as the stored one is wide."""
        return self.rotation % 180 != 0

    def apply(self, image: NDArray[_T]) -> NDArray[_T]:
        """A view of `image` [height, width, ...] as it is shown."""
        turned = np.rot90(image, self.rotation // 90)
        return turned[:, ::-1] if self.mirrored else turned


UPRIGHT = Orientation()

# The linear part (a, b, c, d) of a display matrix, where x' = a x + c y and y' = b x + d y, y pointing down.
_BY_MATRIX = {
    (1, 0, 0, 1): Orientation(0),
    (0, -1, 1, 0): Orientation(90),
    (-1, 0, 0, -1): Orientation(180),
    (0, 1, -1, 0): Orientation(270),
    (-1, 0, 0, 1): Orientation(0, mirrored=True),
    (0, -1, -1, 0): Orientation(90, mirrored=True),
    (1, 0, 0, -1): Orientation(180, mirrored=True),
    (0, 1, 1, 0): Orientation(270, mirrored=True),
}

_BY_EXIF = {
    1: Orientation(0),
    2: Orientation(0, mirrored=True),
    3: Orientation(180),
    4: Orientation(180, mirrored=True),
    5: Orientation(270, mirrored=True),
    6: Orientation(270),
    7: Orientation(90, mirrored=True),
    8: Orientation(90),
}


def from_display_matrix(content: bytes) -> Orientation:
    """The orientation of nine 32-bit fixed-point numbers in FFmpeg's order, which is MP4's `tkhd`.

    Scale and shift are left out. A matrix of zeros means nothing and is upright. Raises ValueError for any angle that
    is not a quarter turn (within one degree), and for a skew.
    """
    if len(content) != 36:
        raise ValueError(f"a display matrix must have 36 bytes, got {len(content)}")
    a, b, _, c, d, *_ = struct.unpack("=9i", content)
    if a == b == c == d == 0:
        return UPRIGHT
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if straight > crossed and a and d and crossed <= _OFF_AXIS * min(abs(a), abs(d)):
        key = (_sign(a), 0, 0, _sign(d))
    elif crossed > straight and b and c and straight <= _OFF_AXIS * min(abs(b), abs(c)):
        key = (0, _sign(b), _sign(c), 0)
    else:
        raise ValueError("the display matrix is not a quarter turn or a mirroring")
    return _BY_MATRIX[key]


def from_exif(value: object) -> Orientation:
    """The orientation of an EXIF tag 274. What is not 1 to 8 is upright, as viewers take it."""
    return _BY_EXIF.get(value, UPRIGHT) if isinstance(value, int) else UPRIGHT


def _sign(number: int) -> int:
    return 1 if number > 0 else -1
