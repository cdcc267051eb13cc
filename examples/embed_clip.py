"""A clip's latents, and how far each of its frames is from a goal: what a reward or a progress bar can be made of.

    scripts/serve --model arm                         # in another terminal
    .venv/bin/python examples/embed_clip.py           # a clip of the simulated arm on its way to a goal
    .venv/bin/python examples/embed_clip.py --clip episode.mp4 --goal goal.png

The distance is between latents: it falls steeply near the goal and says little far from it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import presage

from model.video.decode import write_clip
from simulation import tasks

START, GOAL = np.array([0.2, 0.9]), np.array([1.4, -0.6])  # joint angles in rad
FPS = 10.0


def write_arm_clip(path: Path) -> np.ndarray:
    """Two seconds of the arm turning from START to GOAL; returns the last image."""
    arm = tasks.make("arm")
    frames = np.stack([arm.render_state(START + share * (GOAL - START)) for share in np.linspace(0, 1, 20)])
    write_clip(path, frames, FPS)
    return frames[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed a clip and print its distances to a goal.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--clip", type=Path, help="a video file; without one, a clip of the arm is made")
    parser.add_argument("--goal", type=Path, help="an image file, to go with --clip")
    parser.add_argument("--fps", type=float, default=5.0, help="frames used from each second of the clip")
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, presage.Client(chosen.address) as client:
        client.wait_ready(timeout_s=60.0)
        clip, goal_image = chosen.clip, chosen.goal.read_bytes() if chosen.goal else None
        if clip is None:
            clip = Path(folder) / "arm.mp4"
            goal_image = write_arm_clip(clip)
        goal = None if goal_image is None else client.goal(goal_image)
        found = client.embed_clip(clip, kind="per_frame", fps=chosen.fps, goal=goal)  # sent in chunks

    print(f"embedding: float32 {list(found.embedding.shape)} from {len(found.frame_times_s)} frames")
    for time_s, distance in zip(found.frame_times_s, found.goal_distances, strict=False):  # no goal, no distances
        print(f"{time_s:6.2f} s  goal distance {distance:.4f}")


if __name__ == "__main__":
    main()
