"""When the frames of a clip are shown, from the stamps that its container keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

BY_POSITION = ("avi",)  # a frame's time is its place in the file: FFmpeg's presentation stamps are guesses


_FALL_FRAMES = 8  # stamps that fall and are back within so many frames are a slip; others begin anew


def frame_stamp(frame: VideoFrame, container: str) -> int | None:
    """What the time of a decoded frame is taken from, in its stream's units."""
    return frame.dts if container in BY_POSITION else frame.pts


def frame_times(stamps: Sequence[int | None], unit_s: float, rate: float) -> NDArray[np.float64]:
    """[frames] seconds since the first frame, never falling, for stamps in units of `unit_s`, in the order shown.

    Stamps are kept wherever they do not fall; two frames may have the same. One that is missing is put between its
    neighbours, `1 / rate` apart where there is only one. One that falls for a moment is shown with the frame before;
    where they fall for good, as between recordings that were joined, they go on from the last one.
    """
    step = 1.0 / rate if rate > 0 else 0.04
    known = [at for at, stamp in enumerate(stamps) if stamp is not None]
    if not known or unit_s <= 0:
        return np.arange(len(stamps), dtype=np.float64) * step
    ticks = np.array([stamps[at] for at in known], np.int64)
    _never_falling(ticks, max(1, round(step / unit_s)))
    seconds = (ticks - ticks[0]) * unit_s
    if len(known) == len(stamps):
        return np.asarray(seconds, np.float64)
    places = np.arange(len(stamps), dtype=np.float64)
    times = np.interp(places, known, seconds)
    times += step * (np.maximum(0, places - known[-1]) - np.maximum(0, known[0] - places))
    return np.asarray(times - times[0], np.float64)


def _never_falling(ticks: NDArray[np.int64], step: int) -> None:
    """Mends stamps in place: a fall that is over within a few frames is held, any other is a new beginning."""
    at = 0
    while len(falls := np.flatnonzero(np.diff(ticks[at:]) < 0)):
        at += int(falls[0])
        last = ticks[at]
        back = np.flatnonzero(ticks[at + 1 : at + 1 + _FALL_FRAMES] >= last)
        if len(back):
            ticks[at + 1 : at + 1 + back[0]] = last
        else:
            ticks[at + 1 :] += last + step - ticks[at + 1]
        at += 1


def duration_of(times: NDArray[np.float64], rate: float) -> float:
    """Seconds to the end of the last frame, which is taken to last as long as the others do on average."""
    if len(times) > 1:
        return round(float(times[-1]) * len(times) / (len(times) - 1), 6)
    return 1.0 / rate if rate > 0 else 0.0
