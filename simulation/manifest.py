"""Held-out starts and goals, fixed in committed files, so that every success rate is about the same pairs.

A pair is two states 25 (or 50, or 75) steps apart in an episode gathered with a seed that training never uses. Pairs
that already count as solved at the start are left out, and their number is kept. Images are drawn from the states when
needed. Where nothing better is known than what the episode did, its actions from start to goal are kept with the pair.

``python -m simulation.manifest TASK[:OFFSET]...`` writes the files again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from presage.user_error import UserError

from simulation.episodes import GROUP, HELD_OUT_SEED_START
from simulation.exploration import explore, explore_cube_unseen
from simulation.robots import arm, arm_push, cube, pusht, reacher, tworoom

FORMAT = "presage-manifest/1"
OFFSET = 25  # steps from start to goal
OFFSETS = (25, 50, 75)  # those that manifests are kept for
DIGITS = 4  # kept of every number of a state or an action
REPLAYED = ("pusht",)  # tasks whose oracle repeats the episode that a goal was taken from
FOLDER = Path(__file__).parent / "manifests"
_CANDIDATES_MOST = 100_000


class ManifestError(UserError, ValueError):
    """A manifest that cannot be used as asked; the message says why."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One start and one goal."""

    index: int  # in the manifest
    start_state: NDArray[np.float64]  # [S]
    goal_state: NDArray[np.float64]  # [S]


@dataclass(frozen=True, eq=False)
class Manifest:
    """The held-out pairs of one task."""

    task: str
    seed: int  # of the episodes the pairs were taken from, one pair from each
    initially_solved_excluded: int  # candidates left out because the start already counted as success
    starts: NDArray[np.float64]  # [pairs, S]
    goals: NDArray[np.float64]  # [pairs, S]
    offset: int = OFFSET  # steps from start to goal
    actions: NDArray[np.float64] | None = None  # [pairs, offset, A], what led from start to goal, where it is kept

    def __post_init__(self) -> None:
        if self.starts.ndim != 2 or self.starts.shape != self.goals.shape:
            raise ManifestError(f"starts, goals: must be alike and 2-D, got {self.starts.shape}, {self.goals.shape}")
        if self.seed < HELD_OUT_SEED_START:
            raise ManifestError(f"seed: must be at least {HELD_OUT_SEED_START}, got {self.seed}")

    def __len__(self) -> int:
        return len(self.starts)

    def pairs(self, count: int, seed: int) -> list[Pair]:
        """``count`` different pairs, chosen and ordered by ``seed``; a smaller ``count`` gives the first of the same.

        Raises ManifestError where ``count`` is not within 1 and the number of pairs.
        """
        if not 1 <= count <= len(self):
            raise ManifestError(f"count: must be within 1 and {len(self)}, the pairs held for {self.task}, got {count}")
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return [Pair(int(index), self.starts[index].copy(), self.goals[index].copy()) for index in chosen]

    @classmethod
    def load(cls, task: str, offset: int = OFFSET) -> Manifest:
        """The committed manifest of ``task`` with goals ``offset`` steps ahead; ManifestError where there is none."""
        path = manifest_path(task, offset)
        if not path.is_file():
            raise ManifestError(f"task: no manifest for {task!r} with goals {offset} steps ahead")
        held = json.loads(path.read_text())
        if held["format"] != FORMAT or held["task"] != task or held["offset"] != offset:
            raise ManifestError(f"{path.name}: not a manifest of {task} in the format {FORMAT}")
        numbers = np.array(held["pairs"], dtype=np.float64)  # [pairs, 2 S]
        starts, goals = np.split(numbers, 2, axis=1)
        actions = np.array(held["actions"]).reshape(len(starts), offset, -1) if "actions" in held else None
        return cls(task, held["seed"], held["initially_solved_excluded"], starts, goals, offset, actions)

    def to_json(self) -> str:
        """The text of the manifest's file, one pair on a line."""
        head = {
            "format": FORMAT,
            "task": self.task,
            "seed": self.seed,
            "steps": episode_steps(self.offset),
            "offset": self.offset,
            "initially_solved_excluded": self.initially_solved_excluded,
        }
        text = json.dumps(head, indent=2)[:-2] + _rows("pairs", np.concatenate([self.starts, self.goals], axis=1))
        if self.actions is not None:
            text += _rows("actions", self.actions.reshape(len(self), -1))
        return text + "\n}\n"


def _rows(name: str, rows: NDArray[np.float64]) -> str:
    """One more entry of a JSON object, a row on a line."""
    lines = ",\n".join("    " + json.dumps([round(number, DIGITS) for number in row]) for row in rows.tolist())
    return f',\n  "{name}": [\n{lines}\n  ]'


def manifest_path(task: str, offset: int = OFFSET) -> Path:
    """Where the committed manifest of ``task`` is kept."""
    return FOLDER / f"{task.replace('-', '_')}{'' if offset == OFFSET else f'_{offset}'}.json"


def episode_steps(offset: int) -> int:
    """How long the episodes are that pairs ``offset`` steps apart are taken from."""
    return OFFSET + offset


def build_manifest(task: str, pairs: int, seed: int = HELD_OUT_SEED_START, offset: int = OFFSET) -> Manifest:
    """Gathers episodes until ``pairs`` pairs are found; asking for fewer gives the first of the same."""
    starts: list[NDArray[np.float64]] = []
    goals: list[NDArray[np.float64]] = []
    acted: list[NDArray[np.float64]] = []
    solved, looked_at = 0, 0
    while looked_at < _CANDIDATES_MOST:
        indices = range(looked_at, looked_at + min(GROUP, max(4, pairs - len(starts))))
        looked_at = indices.stop
        explored = _explored(task, seed, indices, episode_steps(offset))
        states, actions = (np.round(part.astype(np.float64), DIGITS) for part in explored)
        for index, episode, commands in zip(indices, states, actions, strict=True):
            step = int(np.random.default_rng([seed, index, offset]).integers(0, OFFSET + 1))
            start, goal = episode[step], episode[step + offset]
            if _solved(task, start, goal):
                solved += 1
                continue
            starts.append(start)
            goals.append(goal)
            acted.append(commands[step : step + offset])
            if len(starts) == pairs:
                kept = np.stack(acted) if task in REPLAYED else None
                return Manifest(task, seed, solved, np.stack(starts), np.stack(goals), offset, kept)
    raise ManifestError(f"pairs: only {len(starts)} of {pairs} found for {task} in {_CANDIDATES_MOST} episodes")


def _explored(task: str, seed: int, indices: range, steps: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """States and actions of some episodes."""
    if task == "cube":  # whose pictures take minutes that nothing here looks at
        actions, _, states = explore_cube_unseen(seed, indices, steps)
        return states, actions
    group = explore(task, seed, indices, steps, image_size=16)
    return group.states, group.actions


def _solved(task: str, start: NDArray[np.float64], goal: NDArray[np.float64]) -> bool:
    match task:
        case "arm":
            return bool(arm.successes(start[None], goal[None])[0])
        case "arm-push":
            return bool(arm_push.successes(start[None], goal[None])[0])
        case "cube":
            return bool(cube.successes(start[None], goal[None])[0])
        case "pusht":
            return bool(pusht.successes(start[None], goal[None])[0])
        case "reacher":
            return bool(reacher.successes(start[None], goal[None])[0])
        case "tworoom":
            return bool(tworoom.successes(start[None], goal[None])[0])
        case _:
            raise ManifestError(f"task: no success rule for {task!r}")


def pair_count(task: str, offset: int = OFFSET) -> int:
    """How many pairs the committed manifest of ``task`` holds."""
    return 200 if task in ("cube", "pusht") or offset != OFFSET else 400


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        name, _, ahead = asked.partition(":")
        steps = int(ahead or OFFSET)
        built = build_manifest(name, pair_count(name, steps), offset=steps)
        manifest_path(name, steps).write_text(built.to_json())
