"""Protobuf to the service's values and back: the codec that clients share, with the service's errors.

What the bytes claim is checked here; what they mean is the application's. The REST counterpart is rest.json_codec.
"""

from __future__ import annotations

from presage.protocol.messages import Reader, Writer
from presage.v1 import planning_pb2

from server.errors import ServiceError, refuse

READER, WRITER = Reader(refuse, is_strict=True), Writer(refuse, keeps_precision=True)


def encode_control_error(error: ServiceError, sequence: int) -> planning_pb2.ControlResponse:
    refusal = planning_pb2.ControlError(reason=error.reason.name, message=error.message, observation_sequence=sequence)
    return planning_pb2.ControlResponse(error=refusal)
