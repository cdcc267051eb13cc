"""Client of Presage, a video world-model service for robot planning.

import presage

with presage.Client("127.0.0.1:50051") as client:
    goal = client.goal(goal_image)                 # uint8 [height, width, 3] RGB, or a JPEG's bytes
    with client.session(goal=goal) as session:
        plan = session.plan(image, budget_ms=200)  # plan.actions: float32 [time, action], robot units
"""

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
from presage.protocol.transport import TLS
from presage.robot import ControlReport, ControlTick, Robot, run_control, run_control_async
from presage.session import Session
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
from presage.version import __version__

__all__ = [
    "TLS",
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
    "__version__",
    "run_control",
    "run_control_async",
]
