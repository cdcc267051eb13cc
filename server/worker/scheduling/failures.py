"""Maps exceptions inside an engine to the errors that callers receive."""

from __future__ import annotations

import logging

import torch

from model.preprocessing import ObservationError
from planner.types import PlanningError
from server.engine.messages import Failed
from server.errors import Reason, ServiceError

log = logging.getLogger("presage.engine")


def failed(number: int, error: Exception) -> Failed:
    """What a call that met this exception is told: what the caller can change by name, all else as INTERNAL.

    Raises an accelerator's own error again: nothing works on it any more but a new process.
    """
    if isinstance(error, ServiceError):
        return Failed(number, error.reason, error.message, error.field, error.rule, error.value)
    if isinstance(error, PlanningError):
        return Failed(number, Reason.INVALID_FIELD, str(error), error.field, error.rule, str(error.value)[:80])
    if isinstance(error, ObservationError):
        proprioception = error.field == "proprioception"
        reason, field = (
            (Reason.INVALID_FIELD, "observation.proprioception") if proprioception else (Reason.INVALID_IMAGE, "images")
        )
        return Failed(
            number, reason, f"{field} {error.rule}, got {error.value}", field, error.rule, str(error.value)[:80]
        )
    if isinstance(error, torch.AcceleratorError):
        raise error
    log.error("call %d failed in the engine", number, exc_info=error)
    return Failed(number, Reason.INTERNAL, "the engine failed on this call; its log says why")
