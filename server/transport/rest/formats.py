"""Formats of arrays over REST by the Accept header: JSON, one .npy file, or the gRPC message.

The Accept header decides (RFC 9110, 12.5.1); what nothing here can satisfy gets JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import Request, Response

from server.transport.rest.replies import Part, PartedResponse, Plain, npy_parts
from server.values.calls import Array

Format = Literal["json", "npy", "protobuf"]

NPY, PROTOBUF = "application/x-npy", "application/x-protobuf"
MEDIA_TYPES: dict[str, Format] = {
    "application/json": "json",
    NPY: "npy",
    PROTOBUF: "protobuf",
    "application/protobuf": "protobuf",
}
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
ALSO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Successful Response; as the Accept header asks. application/x-npy is the array alone, "
        "application/x-protobuf the response message of proto/presage/v1.",
        "content": {NPY: {"schema": BINARY}, PROTOBUF: {"schema": BINARY}},
    }
}
"""For the OpenAPI document: what a route answers beside JSON."""


def chosen(accept: str) -> Format:
    """The format an Accept header likes best. A named type comes before a wildcard of the same quality."""
    best: tuple[float, int] = (0.0, 0)
    found: Format = "json"
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        wanted = MEDIA_TYPES.get(media_type, "json" if media_type in ("*/*", "application/*") else None)
        liking = (_quality(parameters), 0 if "*" in media_type else 1)
        if wanted is not None and liking[0] > 0 and liking > best:
            best, found = liking, wanted
    return found


def answer(
    request: Request,
    *,
    as_json: Callable[[], list[Part]],
    as_protobuf: Callable[[], bytes],
    array: Array,
) -> Response:
    """The reply in the format that the request asks for; the others are not made."""
    match chosen(request.headers.get("accept", "")):
        case "npy":
            parts, media_type = npy_parts(array), NPY
        case "protobuf":
            parts, media_type = [Plain(memoryview(as_protobuf()))], PROTOBUF
        case "json":
            parts, media_type = as_json(), "application/json"
    return PartedResponse(parts, media_type, {"Vary": "Accept"})


def _quality(parameters: list[str]) -> float:
    """Of one part of an Accept header, 0 to 1; what cannot be read counts as 0."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0.0 <= quality <= 1.0 else 0.0
    return 1.0
