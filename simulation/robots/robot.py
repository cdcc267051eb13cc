"""What the environments of all robots share: gymnasium's calls around `act`, `set_state` and a picture."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray


class Robot(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """A robot as a gymnasium environment; its other half is a ``simulation.tasks.RobotTask``.

    An observation is ``image``, uint8 ``[size, size, 3]`` RGB, and ``proprioception``, float32.
    ``reset(options={"state": ...})`` starts at exactly that state. Reward is always 0, and episodes never end by
    themselves.
    """

    rate_hz: float

    def __init__(self, image_size: int, render_mode: str | None, action: Box, proprioception: Box) -> None:
        """ValueError for an image too small to show anything."""
        if image_size < 16:
            raise ValueError(f"image_size: must be at least 16 pixels, got {image_size}")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(self.rate_hz)}
        self.image_size = image_size
        self.render_mode = render_mode
        self.action_space = action
        self.action_low, self.action_high = action.low, action.high
        image = Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"image": image, "proprioception": proprioception})

    @property
    @abstractmethod
    def state(self) -> NDArray[np.float64]: ...

    @property
    @abstractmethod
    def proprioception(self) -> NDArray[np.float32]: ...

    @abstractmethod
    def set_state(self, state: NDArray[np.floating]) -> None: ...

    @abstractmethod
    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]: ...

    @abstractmethod
    def act(self, action: NDArray[np.floating]) -> None: ...

    @abstractmethod
    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]: ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Starts at ``options["state"]``, or at a random state."""
        super().reset(seed=seed)
        given = None if options is None else options.get("state")
        self.set_state(self.random_state(self.np_random) if given is None else given)
        return self._observation(), {"state": self.state}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Moves for one control step; see ``act`` to do so without drawing."""
        self.act(action)
        return self._observation(), 0.0, False, False, {"state": self.state}

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, uint8 ``[size, size, 3]``."""
        return self.render_state(self.state)

    def _observation(self) -> dict[str, NDArray[Any]]:
        return {"image": self.render(), "proprioception": self.proprioception}
