"""Client of Presage, a video world-model service for robot planning.

import presage

with presage.Client("127.0.0.1:50051") as client:
    goal = client.goal(goal_image)                 # uint8 [height, width, 3] RGB, or a JPEG's bytes
    with client.session(goal=goal) as session:
        plan = session.plan(image, budget_ms=200)  # plan.actions: float32 [time, action], robot units
"""

from typing import TYPE_CHECKING

from presage.version import __version__

if TYPE_CHECKING:
    from presage.aio.client import AsyncClient
    from presage.aio.control import AsyncControlLoop
    from presage.aio.session import AsyncSession
    from presage.client import Client
    from presage.control import ControlLoop
    from presage.errors import (
        Cancelled,
        DeadlineExceeded,
        InvalidRequest,
        NotFound,
        Overloaded,
        PresageError,
        ServerError,
        Unauthenticated,
        Unavailable,
    )
    from presage.limits import ActionLimits
    from presage.protocol.transport import TLS
    from presage.robot import ControlReport, ControlTick, Robot, run_control, run_control_async
    from presage.session import Session
    from presage.user_error import UserError
    from presage.values import (
        ActionSpec,
        Calibration,
        CalibrationMove,
        ClassScore,
        ClipClasses,
        ClipEmbedding,
        ControlPlan,
        Embedding,
        FailedObservation,
        Goal,
        GoalStage,
        Health,
        ImageSpec,
        Landscape,
        Limits,
        Model,
        Observation,
        Plan,
        PlannerSettings,
        Provenance,
        Rollout,
        Score,
        SessionStatus,
        Surprise,
        Timings,
    )

__all__ = [
    "TLS",
    "ActionLimits",
    "ActionSpec",
    "AsyncClient",
    "AsyncControlLoop",
    "AsyncSession",
    "Calibration",
    "CalibrationMove",
    "Cancelled",
    "ClassScore",
    "Client",
    "ClipClasses",
    "ClipEmbedding",
    "ControlLoop",
    "ControlPlan",
    "ControlReport",
    "ControlTick",
    "DeadlineExceeded",
    "Embedding",
    "FailedObservation",
    "Goal",
    "GoalStage",
    "Health",
    "ImageSpec",
    "InvalidRequest",
    "Landscape",
    "Limits",
    "Model",
    "NotFound",
    "Observation",
    "Overloaded",
    "Plan",
    "PlannerSettings",
    "PresageError",
    "Provenance",
    "Robot",
    "Rollout",
    "Score",
    "ServerError",
    "Session",
    "SessionStatus",
    "Surprise",
    "Timings",
    "Unauthenticated",
    "Unavailable",
    "UserError",
    "__version__",
    "run_control",
    "run_control_async",
]

# Names are imported when they are first used: `import presage` takes no time, and modules without gRPC stay without.
_HOMES = {
    "AsyncClient": "presage.aio.client",
    "AsyncControlLoop": "presage.aio.control",
    "AsyncSession": "presage.aio.session",
    "Client": "presage.client",
    "ControlLoop": "presage.control",
    "Cancelled": "presage.errors",
    "DeadlineExceeded": "presage.errors",
    "InvalidRequest": "presage.errors",
    "NotFound": "presage.errors",
    "Overloaded": "presage.errors",
    "PresageError": "presage.errors",
    "ServerError": "presage.errors",
    "Unauthenticated": "presage.errors",
    "Unavailable": "presage.errors",
    "ActionLimits": "presage.limits",
    "TLS": "presage.protocol.transport",
    "ControlReport": "presage.robot",
    "ControlTick": "presage.robot",
    "Robot": "presage.robot",
    "run_control": "presage.robot",
    "run_control_async": "presage.robot",
    "Session": "presage.session",
    "UserError": "presage.user_error",
    "ActionSpec": "presage.values",
    "Calibration": "presage.values",
    "CalibrationMove": "presage.values",
    "ClassScore": "presage.values",
    "ClipClasses": "presage.values",
    "ClipEmbedding": "presage.values",
    "ControlPlan": "presage.values",
    "Embedding": "presage.values",
    "FailedObservation": "presage.values",
    "Goal": "presage.values",
    "GoalStage": "presage.values",
    "Health": "presage.values",
    "ImageSpec": "presage.values",
    "Landscape": "presage.values",
    "Limits": "presage.values",
    "Model": "presage.values",
    "Observation": "presage.values",
    "Plan": "presage.values",
    "PlannerSettings": "presage.values",
    "Provenance": "presage.values",
    "Rollout": "presage.values",
    "Score": "presage.values",
    "SessionStatus": "presage.values",
    "Surprise": "presage.values",
    "Timings": "presage.values",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'presage' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> "list[str]":
    return sorted(__all__)
