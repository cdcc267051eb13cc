"""What a parser process does: JSON bodies to protobuf, and picture files to pixels. See `model.processes.isolated`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pool
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

from model.processes.isolated import Job
from server.errors import Faults, Reason, ServiceError, invalid
from server.transport.rest.bodies import Body
from server.values import calls, images

_LOADED = (embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2)  # whose messages the pool then knows


def _json(about: dict[str, Any], pieces: list[bytes]) -> tuple[dict[str, Any], Sequence[bytes]]:
    """One body; its request's message."""
    message = descriptor_pool.Default().FindMessageTypeByName(about["message"])
    body = Body(getattr(calls, about["kind"]), message, tuple(about["without"]))
    return {}, [body.protobuf(pieces[0], about["known"])]


def _pictures(about: dict[str, Any], pieces: list[bytes]) -> tuple[dict[str, Any], Sequence[bytes | memoryview]]:
    """The pixels of files, each with the name of its field."""
    sources = list(zip(about["fields"], pieces, strict=True))
    frames = images.decode_here(sources, about["max_pixels"])
    return {"sizes": [frame.shape[:2] for frame in frames]}, [frame.reshape(-1).data for frame in frames]


def _told(work: Job, field: str) -> Job:
    """`work`, with the faults that it finds as its answer."""

    def job(about: dict[str, Any], pieces: list[bytes]) -> tuple[dict[str, Any], Sequence[bytes | memoryview]]:
        try:
            return work(about, pieces)
        except Faults as error:
            faults = error.faults
        except ServiceError as error:
            faults = (error,)
        except MemoryError:
            faults = (invalid(field, "must be readable in the memory of a parser", "more", Reason.TOO_LARGE),)
        return {"faults": [_written(fault) for fault in faults]}, []

    return job


def _written(fault: ServiceError) -> dict[str, str]:
    return {
        "reason": fault.reason.name, "message": fault.message,
        "field": fault.field, "rule": fault.rule, "value": fault.value,
    }  # fmt: skip


JOBS: dict[str, Callable[..., Any]] = {"json": _told(_json, "body"), "pictures": _told(_pictures, "images")}
