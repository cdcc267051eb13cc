"""Inputs and outputs of the bridge, free of ROS."""

from __future__ import annotations

from dataclasses import dataclass, field

import presage

COMMANDS = ("velocities", "positions", "accelerations", "effort")


@dataclass(frozen=True)
class BridgeSettings:
    """How the bridge plans, and when it stops.

    `command`: the field of a trajectory point that actions are. `stop`: the action, in robot units, that leaves the
    robot at rest; empty means zeros, which only rates can mean.
    """

    model: str = ""  # the service's default
    budget_ms: float = 80.0  # to think for each plan
    stale_after_s: float = 0.5  # since the image a plan was made from came in
    max_image_age_s: float = 0.5  # of an image when it comes in, by its stamp
    call_timeout_s: float = 5.0
    command: str = "velocities"
    stop: tuple[float, ...] = ()
    planner: presage.PlannerSettings = field(default_factory=presage.PlannerSettings)
    limits: presage.ActionLimits = field(default_factory=presage.ActionLimits)  # narrower than the model's

    def __post_init__(self) -> None:
        for name in ("budget_ms", "stale_after_s", "max_image_age_s", "call_timeout_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        if self.command not in COMMANDS:
            raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {self.command}")
        if self.command == "positions" and not self.stop:
            raise ValueError("stop must be given where command is positions: zeros would be a place to go to")


@dataclass(frozen=True)
class Frame:
    """One image as the camera's driver published it. `age_s`: its stamp against the node's clock, when it came in."""

    data: bytes  # a JPEG, PNG or WebP file
    stamp_ns: int
    age_s: float
    frame_id: str = ""


@dataclass(frozen=True)
class Trajectory:
    """What goes out. `stamp_ns`: when what it was planned from was captured; None for a stop: now.

    `times_s` [points] count from the stamp; `points` [points][action], robot units.
    """

    stamp_ns: int | None
    frame_id: str
    names: tuple[str, ...]
    times_s: tuple[float, ...]
    points: tuple[tuple[float, ...], ...]

    @property
    def is_stop(self) -> bool:
        return self.stamp_ns is None


@dataclass(frozen=True)
class Report:
    """How things stand. `trouble` is "" while all is well."""

    stopped: bool = True
    trouble: str = "no goal"
    connected: bool = False
    goal_id: str = ""
    goal_distance: float = float("nan")  # of the newest plan's image
    plans: int = 0
    failed: int = 0  # observations without a plan
    refused: int = 0  # plans that were late, or broke the model's bounds
    old_images: int = 0
    round_trip_ms: float = float("nan")
