"""The latents of recorded frames under a package that is trained no further, encoded once and kept in a file.

A file of latents is written episode by episode: an interrupted encoding goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.interface import LoadedModel
from training.data.episodes import Episodes

FLUSHED_EVERY = 64  # episodes


@torch.no_grad()
def latents_of(
    model: LoadedModel,
    episodes: Episodes,
    folder: Path,
    *,
    every: int = 1,
    bfloat16: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Latents `[episodes, steps // every + 1, numbers]` of every so manyth frame, tokens averaged (`pooled`), mapped
    from `folder`.

    `bfloat16` is of matrix products only. A folder that holds latents of another package or of other episodes is
    written anew. What lies past an episode's recorded length is 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about, array = folder / "latents.json", folder / "latents.npy"
    rows, times = episodes.frames.shape[:2]
    shape = (rows, (times - 1) // every + 1, pooled(model.encode(_frames(episodes, 0, slice(0, 1)))).shape[-1])
    wanted = {
        "weights": model.package.weights_digest,
        "episodes": _digest(episodes),
        "shape": list(shape),
        "every": every,
        "bfloat16": bfloat16,
    }
    found = json.loads(about.read_text()) if about.exists() and array.exists() else {}
    done = int(found.pop("done", 0)) if {key: found.get(key) for key in wanted} == wanted else 0
    mode = "r+" if done else "w+"
    store = np.lib.format.open_memmap(array, mode=mode, dtype=np.float32, shape=shape)
    for row in range(done, rows):
        shown = _frames(episodes, row, slice(0, episodes.steps_of(row) + 1, every))
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            latents = pooled(model.encode(shown)).float()
        store[row] = 0.0
        store[row, : len(latents)] = latents.cpu().numpy()
        if (row + 1) % FLUSHED_EVERY == 0 or row + 1 == rows:
            store.flush()
            about.write_text(json.dumps({**wanted, "done": row + 1}))
            progress(row + 1, rows)
    return np.load(array, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]


def pooled(latents: torch.Tensor) -> torch.Tensor:
    """One vector for each latent [batch, *latent]: as it is, or the mean over its tokens."""
    return latents if latents.ndim == 2 else latents.flatten(1, -2).mean(dim=1)


def _frames(episodes: Episodes, row: int, steps: slice) -> torch.Tensor:
    return torch.from_numpy(np.array(episodes.frames[row, steps]))


def _digest(episodes: Episodes) -> str:
    """Of where episodes come from and what was done in them: enough to tell one collection from another."""
    told = hashlib.sha256(episodes.source.encode())
    told.update(np.ascontiguousarray(episodes.actions[:64]).tobytes())
    told.update(str(episodes.frames.shape).encode())
    return told.hexdigest()
