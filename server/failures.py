"""Exceptions inside an engine, as the failures its callers are told of."""

from __future__ import annotations

import logging

from model.observation import ObservationError
from planner.types import PlanningError
from server.errors import Reason, ServiceError
from server.jobs import Failed

log = logging.getLogger("presage.engine")


def failed(number: int, error: Exception) -> Failed:
    """What a call that met this exception is told: what the caller can change by name, all else as INTERNAL."""
    if isinstance(error, ServiceError):
        return Failed(number, error.reason, error.message, error.field, error.rule, error.value)
    if isinstance(error, PlanningError):
        return Failed(number, Reason.INVALID_FIELD, str(error), error.field, error.rule, str(error.value)[:80])
    if isinstance(error, ObservationError):
        return Failed(number, Reason.INVALID_IMAGE, str(error), "images")
    log.error("call %d failed in the engine", number, exc_info=error)
    return Failed(number, Reason.INTERNAL, "the engine failed on this call; its log says why")
