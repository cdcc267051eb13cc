"""Uploaded clips to frames of a model's size. Decoding happens in processes of its own; embedding is the engine's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from presage.protocol.arguments import one_of
from presage.values import Model

from model.video.decode import Clip, ClipLimits, VideoDecodeError
from model.video.decode import FrameSampling as Sampling
from model.video.decoder_worker import ClipDecoder
from server.config import MIB, Limits
from server.errors import Reason, ServiceError, invalid, refuse
from server.values.calls import FrameSampling

T = TypeVar("T")
_log = structlog.get_logger()


PIXELS = 512 * MIB  # of all frames used of one clip
WORKERS = 2  # clips decoded at once


class Clips:
    """Decodes clips for the front. Its processes start with the first clip."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="clips")
        self._decoder: ClipDecoder | None = None
        self._is_told = False  # that decoders are not fenced

    @property
    def most_frames(self) -> int:
        """Used of one clip."""
        return self._limits.clip_frames

    async def decode(self, path: Path, sampling: FrameSampling, model: Model, left_s: float | None) -> Clip:
        """The frames asked for, scaled to the model's size where it takes no other; `left_s` may shorten the timeout.

        Raises ServiceError.
        """
        chosen = self._sampling(sampling)
        size = (model.image.height, model.image.width) if model.image.crop_policy == "exact" else None
        limits = ClipLimits(
            max_bytes=self._limits.clip_bytes,
            max_pixels=self._limits.image_pixels,
            max_seconds=self._limits.clip_duration_s,
            max_frames=self._limits.clip_frames,
            max_output_bytes=3 * PIXELS,
        )
        most_s = self._limits.clip_decode_timeout_s
        timeout_s = most_s if left_s is None else min(most_s, left_s)
        if timeout_s <= 0:
            raise ServiceError(Reason.DEADLINE, "there is no time to decode the clip by the deadline")
        clip = await self._elsewhere(lambda: self._started().decode(path, chosen, size, limits, timeout_s))
        if self._decoder is not None and self._decoder.unfenced and not self._is_told:
            self._is_told = True
            _log.warning("decoders run without a fence", why=self._decoder.unfenced)
        return clip

    async def close(self) -> None:
        """End the decoders, busy ones too."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            await asyncio.to_thread(decoder.close)
        self._threads.shutdown(wait=False)

    def _started(self) -> ClipDecoder:
        if self._decoder is None:
            self._decoder = ClipDecoder(workers=WORKERS)
        return self._decoder

    async def _elsewhere(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except VideoDecodeError as error:
            too_large = error.reason in ("too_large", "too_long")
            reason = Reason.TOO_LARGE if too_large else Reason.INVALID_CLIP
            raise ServiceError(reason, error.message, field="clip", rule=error.reason) from None

    def _sampling(self, wanted: FrameSampling) -> Sampling:
        one_of("frames", {"fps": wanted.fps, "frames": wanted.frames}, refuse, least=0)
        if wanted.fps is not None and not (math.isfinite(wanted.fps) and 0 < wanted.fps <= 1000):
            raise invalid("sampling.fps", "must be above 0 and at most 1000", wanted.fps)
        if wanted.frames is not None and not 1 <= wanted.frames <= self._limits.clip_frames:
            raise invalid("sampling.frames", f"must be 1 to {self._limits.clip_frames}", wanted.frames)
        return Sampling(fps=wanted.fps, frames=wanted.frames)
