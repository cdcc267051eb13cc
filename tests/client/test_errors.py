"""Errors off the wire: the right class, reason, field and id, and never an error in place of another."""

from __future__ import annotations

import pickle
import sys

import presage
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from presage.errors import BY_CODE, BY_REASON, ServerError, from_reason, from_status, read_status


def status_bytes(*details: object) -> bytes:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)  # type: ignore[arg-type]
    return status_pb2.Status(code=3, message="no", details=packed).SerializeToString()


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the service needs Python 3.10")
def test_every_reason_of_the_server_has_its_class_on_both_paths() -> None:
    from server.errors import Reason, ServiceError
    from server.transport.error_replies import to_status

    assert {reason.name for reason in Reason} == set(BY_REASON)
    for reason in Reason:
        sent = ServiceError(reason, "what happened", field="a.b[0]", rule="must", value="3", retry_after_s=1.25)
        details = to_status(sent, "request-7").SerializeToString()
        code = reason.fault.grpc_code.name
        error = from_status(code, sent.message, [("grpc-status-details-bin", details)])
        assert type(error) is BY_REASON[reason.name] is type(from_reason(reason.name, "")), reason
        assert (error.reason, error.field, error.request_id) == (reason.name, "a.b[0]", "request-7")
        assert (error.message, error.retry_after_s) == ("what happened", 1.25)
        if code != "RESOURCE_EXHAUSTED":  # which is two things: no room now, and too large ever
            assert BY_REASON[reason.name] is BY_CODE.get(code, ServerError)


def test_a_status_without_details_still_has_a_reason() -> None:
    error = from_status("UNAVAILABLE", "connection refused", [], address="host:1", request_id="mine")
    assert (error.reason, error.request_id) == ("UNREACHABLE", "mine")
    assert error.message == "cannot reach host:1: connection refused"
    assert from_status("DEADLINE_EXCEEDED", "", []).reason == "DEADLINE"
    assert from_status("INTERNAL", "", []).reason == "INTERNAL"
    large = from_status("RESOURCE_EXHAUSTED", "Sent message larger than max (9 vs. 8)", [])
    assert (type(large), large.reason) == (presage.InvalidRequest, "TOO_LARGE")
    assert type(from_status("RESOURCE_EXHAUSTED", "too many calls", [])) is presage.Overloaded


def test_the_servers_request_id_wins_over_ours() -> None:
    echoed = [("x-request-id", "echoed")]
    assert from_status("INTERNAL", "", echoed, request_id="mine").request_id == "echoed"
    details = status_bytes(error_details_pb2.RequestInfo(request_id="told"))
    both = [*echoed, ("grpc-status-details-bin", details)]
    assert from_status("INTERNAL", "", both, request_id="mine").request_id == "told"


def test_damaged_details_are_left_out() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="images[0]", description="d", reason="r")
    whole = status_bytes(
        error_details_pb2.ErrorInfo(reason="IMAGE_SIZE", domain="presage", metadata={"rule": "r", "field": "f"}),
        error_details_pb2.DebugInfo(detail="unknown here"),
        error_details_pb2.BadRequest(field_violations=[violation]),
    )
    assert read_status(whole).reason == "IMAGE_SIZE"
    assert read_status(whole).field == "images[0]"
    for cut in range(len(whole)):
        read_status(whole[:cut])
    for at in range(len(whole)):
        for bit in (1, 8, 128):
            read_status(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])


def test_errors_survive_a_process_boundary() -> None:
    error = presage.Overloaded("full", reason="OVERLOADED", field="f", request_id="r", retry_after_s=2.0)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is presage.Overloaded
    assert (again.reason, again.field, again.request_id, again.retry_after_s) == ("OVERLOADED", "f", "r", 2.0)
    assert str(again) == "full [OVERLOADED, request r]"


def test_a_reason_from_the_future_is_a_server_error() -> None:
    assert type(from_reason("SOMETHING_NEW", "m")) is presage.ServerError
