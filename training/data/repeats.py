"""Episodes that repeat another: a copy counts twice, and of two copies one may lie in the held-out part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import zip_longest

import numpy as np

from training.data.dataset import Dataset, DatasetError, Episode


def repeats(dataset: Dataset, episodes: Mapping[int, Episode]) -> dict[int, int]:
    """For each episode that repeats an earlier one, both by index: the same numbers, and the same pictures.

    Pictures are looked at only where the numbers are the same: a script that is played twice is no copy.
    """
    known: dict[str, list[int]] = {}
    found: dict[int, int] = {}
    for index, episode in episodes.items():
        alike = known.setdefault(_digest(episode), [])
        original = next((other for other in alike if _look_alike(dataset, other, index)), None)
        if original is None:
            alike.append(index)
        else:
            found[index] = original
    return found


def _digest(episode: Episode) -> str:
    digest = hashlib.sha256(f"{episode.frames} {episode.actions.shape}".encode())
    digest.update(np.ascontiguousarray(episode.actions[: episode.steps]).data)
    digest.update(np.ascontiguousarray(episode.proprioception).data)
    return digest.hexdigest()


def _look_alike(dataset: Dataset, one: int, other: int) -> bool:
    try:
        pairs = zip_longest(dataset.frames(one), dataset.frames(other))
        return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
    except DatasetError:  # whoever reads the pictures says so
        return False
