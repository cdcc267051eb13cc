"""Latents of frozen encoders, kept on disk: an episode's frames are encoded once, whatever reads them afterwards.

One file for each episode, named after the frames' content and the encoder's digest, so that nothing stale is ever read
and data sets that share episodes share files. The folder is bounded; what was not used for longest goes first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

Encode = Callable[[UInt8[Tensor, "batch height width 3"]], Float[Tensor, "batch tokens latent"]]
FORMAT = "presage-encodings/1"
FRAMES_AT_ONCE = 16


class EncodingError(ValueError):
    """Encodings that cannot be kept; the message names the bound and what is needed."""


class EncodingCache:
    """A folder of encodings of one encoder, float16: layer-normed latents lie well within its range."""

    def __init__(self, folder: Path, encode: Encode, encoder_digest: str, limit_bytes: int) -> None:
        """`encode` gives layer-normed latents; `encoder_digest` names its weights and how it crops."""
        if limit_bytes < 1:
            raise EncodingError(f"limit_bytes must be >= 1, got {limit_bytes}")
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._encode = encode
        self._digest = encoder_digest

    def encodings(
        self, episodes: Iterable[NDArray[np.uint8]], progress: Callable[[int], None] | None = None
    ) -> list[NDArray[np.float16]]:
        """Latents `[frames, tokens, latent]` of each episode's frames `[frames, height, width, 3]`, mapped from disk.

        Raises EncodingError where these alone pass the limit; files are written whole or not at all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        needed = 0
        for frames in episodes:
            path = self.folder / f"{self._key(frames)}.npy"
            if path.exists():
                os.utime(path)  # used now
            else:
                self._write(path, frames)
            if path not in paths:
                needed += path.stat().st_size
            paths.append(path)
            if needed > self.limit_bytes:
                self._shrink(set())
                raise EncodingError(
                    f"encodings of the first {len(paths)} episodes take {needed} bytes in {self.folder}, "
                    f"at most {self.limit_bytes} are kept"
                )
            if progress is not None:
                progress(len(paths))
        self._shrink(set(paths))
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]

    def _key(self, frames: NDArray[np.uint8]) -> str:
        digest = hashlib.sha256(f"{FORMAT} {self._digest} {frames.shape}".encode())
        digest.update(np.ascontiguousarray(frames).data)
        return digest.hexdigest()

    @torch.no_grad()
    def _write(self, path: Path, frames: NDArray[np.uint8]) -> None:
        parts = [
            self._encode(part).half().cpu() for part in torch.split(torch.from_numpy(np.array(frames)), FRAMES_AT_ONCE)
        ]
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                np.save(file, torch.cat(parts).numpy(), allow_pickle=False)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _shrink(self, used: set[Path]) -> None:
        """Remove what was not used for longest, until the folder is within its bound."""
        others = sorted(
            (path for path in self.folder.glob("*.npy") if path not in used), key=lambda p: p.stat().st_mtime
        )
        total = sum(path.stat().st_size for path in (*used, *others))
        for path in others:
            if total <= self.limit_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)
