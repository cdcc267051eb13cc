"""MuJoCo: loading it so that it draws without a screen, and drawing a model's states from a fixed camera.

Which robot it is, how it moves and what its states mean is the robots' own affair. Processors draw too (Mesa). Shadows,
reflections, the sky and haze are left out: `python -m benchmarks.rendering` told 159 pictures of Reacher a second at 64
pixels against 25 with MuJoCo's defaults, and 100 against 18 at 224 (Mesa, two cores of an AMD EPYC beside a training).
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulation.extras import MissingSimulator

EXTRA = "install the extra 'mujoco' (pip install -e '.[mujoco]')"
_LIBRARIES = "on Debian and Ubuntu apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 and set MUJOCO_GL=osmesa"
_LARGEST = 1024  # pixels, of an image's side


def load_mujoco(task: str) -> Any:
    """The module ``mujoco``, drawing through EGL unless ``MUJOCO_GL`` says otherwise.

    Raises MissingSimulator, for ``task``, where it is not installed or its OpenGL library is not.
    """
    if importlib.util.find_spec("mujoco") is None:
        raise MissingSimulator(f"{task}: needs MuJoCo; {EXTRA}")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # its own choice, GLFW, needs a screen
    try:
        import mujoco
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # as PyOpenGL tells of a missing library
        raise _cannot_draw(task, error) from error
    return mujoco


class Stage:
    """A world that never runs, in which one model's states are drawn; for one thread, as OpenGL is."""

    def __init__(self, task: str, model: Any, camera: str, size: int) -> None:
        mujoco = load_mujoco(task)
        self._mujoco, self._model, self._camera = mujoco, model, camera
        self._data = mujoco.MjData(model)
        model.vis.global_.offwidth = model.vis.global_.offheight = size  # it pays for all of what it could draw
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise _cannot_draw(task, error) from error
        # At exit, before the OpenGL library is unloaded: left to the garbage collector, it would complain on stderr.
        atexit.register(self._renderer.close)
        flags = mujoco.mjtRndFlag
        for costly in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX, flags.mjRND_HAZE):
            self._renderer.scene.flags[costly] = 0

    def picture(self, positions: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The camera's image ``[size, size, 3]`` of the model at joint positions ``[nq]``."""
        self._data.qpos[:] = positions
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=self._camera)
        return np.array(self._renderer.render(), dtype=np.uint8)


@cache
def stage(task: str, read_model: Callable[[], Any], camera: str, size: int) -> Stage:
    """The process's one stage for a model, a camera and a size: OpenGL contexts are dear and not given back.

    Raises MissingSimulator, and ValueError for an image too small to show anything or too large to draw.
    """
    if not 16 <= size <= _LARGEST:
        raise ValueError(f"image_size: must be within 16 and {_LARGEST} pixels, got {size}")
    return Stage(task, read_model(), camera, size)


def _cannot_draw(task: str, error: BaseException) -> MissingSimulator:
    chosen = os.environ.get("MUJOCO_GL") or "none"
    reason = " ".join(str(error).split()) or type(error).__name__
    return MissingSimulator(f"{task}: MuJoCo has no OpenGL to draw with (MUJOCO_GL={chosen}: {reason}); {_LIBRARIES}")
