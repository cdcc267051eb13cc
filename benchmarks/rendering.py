"""Rendering rate of Reacher, as Presage renders it and with MuJoCo's defaults: shadows, reflections and the sky.

`python -m benchmarks.rendering` needs the extra `mujoco` and draws with what `MUJOCO_GL` names (EGL). The two alternate
in one run, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.source import commit
from cli.demo.machine import describe_machine
from simulation.extras import package_folder
from simulation.robots.mujoco_stage import EXTRA, load_mujoco
from simulation.robots.reacher import Reacher, random_state

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="pixels, of an image's side")
    parser.add_argument("--pictures", type=int, default=10, help="with the defaults, in each of 5 rounds")
    asked = parser.parse_args()
    print(f"{json.dumps(describe_machine())}; commit {commit()}")
    for size in asked.sizes:
        lean, defaults, close = Reacher(size).render_state, *with_defaults(size)
        rates = []
        for each in range(ROUNDS + 1):
            states = [random_state(np.random.default_rng([each, one])) for one in range(4 * asked.pictures)]
            rates.append((rate(lean, states), rate(defaults, states[: asked.pictures])))
        close()
        fast, slow = (statistics.median(column) for column in zip(*rates[1:], strict=True))  # the first warms up
        print(f"{size} px: {fast:.0f} pictures/s, with MuJoCo's defaults {slow:.1f}: {fast / slow:.1f} times as fast")


def with_defaults(size: int) -> tuple[Callable[[np.ndarray], object], Callable[[], None]]:
    """Draws the suite's own model, target and all, as `mujoco.Renderer` does unasked; and what ends that."""
    mujoco = load_mujoco("reacher")
    suite = package_folder("dm_control", f"reacher: needs dm_control; {EXTRA}") / "suite"
    model = mujoco.MjModel.from_xml_path(str(suite / "reacher.xml"))
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, size, size)

    def draw(state: np.ndarray) -> object:
        data.qpos[:] = state[:2]
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, camera="fixed")
        return renderer.render()

    return draw, renderer.close


def rate(draw: Callable[[np.ndarray], object], states: list[np.ndarray]) -> float:
    """Pictures a second."""
    began = time.perf_counter()
    for state in states:
        draw(state)
    return len(states) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
