"""Renders an error as google.rpc.Status for gRPC and as RFC 9457 problem details for REST.

Both come from the table in errors, so that a client finds the same reason, field, rule and value on either gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from server.errors import ServiceError

DOMAIN = "presage"
PROBLEM_JSON = "application/problem+json"


def to_status(error: ServiceError, request_id: str) -> status_pb2.Status:
    """ErrorInfo and RequestInfo always; BadRequest where a field is at fault; RetryInfo where waiting helps."""
    metadata = {"field": error.field, "rule": error.rule, "value": error.value}
    details = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.name, domain=DOMAIN, metadata={name: text for name, text in metadata.items() if text}
        ),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason.name
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.reason.fault.grpc_code.value[0], message=error.message, details=packed)


def to_problem(error: ServiceError, request_id: str, others: Sequence[ServiceError] = ()) -> dict[str, Any]:
    """`others` are further fields at fault in the same request."""
    fault = error.reason.fault
    problem: dict[str, Any] = {
        "type": f"urn:presage:problem:{error.reason.name.lower().replace('_', '-')}",
        "title": fault.title,
        "status": fault.http_status,
        "detail": error.message,
        "code": error.reason.name,
        "request_id": request_id,
        "errors": [
            {
                "field": each.field,
                "rule": each.rule,
                "value": each.value,
                "detail": each.message,
            }
            for each in (error, *others)
            if each.field
        ],
    }
    if error.retry_after_s is not None:
        problem["retry_after_s"] = error.retry_after_s
    return problem
