"""What is wrong with a request, as pydantic and the framework say it, in the service's words.

At most `MOST_FAULTS` are told of one request, each short, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from model.video.file_kinds import HEAD_BYTES, kind_of
from server.errors import MOST_FAULTS, Faults, Reason, ServiceError, invalid
from server.transport.rest.json_codec import example_of
from server.transport.rest.tensors import UNION_TAGS


def found(faults: Sequence[Any], body: type[BaseModel] | None) -> Faults:
    """The faults that pydantic found; `body` is the model of the JSON that was read."""
    return Faults([_field_fault(fault, body) for fault in faults[:MOST_FAULTS]])


def not_json(why: str) -> Faults:
    """A body that cannot be parsed."""
    return Faults([invalid("body", "must be JSON", why, Reason.INVALID_REQUEST)])


def not_an_object(body: type[BaseModel] | None, shown: str) -> Faults:
    """A body that is something else than a JSON object."""
    rule = f"must be a JSON object{_example(body, ' such as')} with Content-Type application/json"
    return Faults([invalid("body", rule, shown, Reason.INVALID_REQUEST)])


def not_json_media_type(body: type[BaseModel], content: bytes | bytearray, media_type: str) -> Faults:
    """A body that does not come as JSON."""
    if not content:
        return not_an_object(body, "nothing")
    kind = kind_of(bytes(content[:HEAD_BYTES]))
    return not_an_object(body, f"{kind or 'bytes'} as {media_type[:80] or 'no Content-Type'}")


def kind_of_bytes(content: bytes | bytearray) -> str:
    """What came in place of JSON, as far as its first bytes tell."""
    return kind_of(bytes(content[:HEAD_BYTES])) or "bytes that are no text"


def _field_fault(fault: Any, body: type[BaseModel] | None) -> ServiceError:
    place, *path = fault["loc"]
    if place == "body" and not path:
        return not_an_object(body, _shown(fault)).faults[0]
    names = [part for part in path if part not in UNION_TAGS]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in names]
    holder = _holder(body, names) if place == "body" else None
    reason = Reason.INVALID_IMAGE if fault["type"] == "image" else Reason.INVALID_FIELD
    return invalid("".join(parts).lstrip("."), _rule(fault, holder), _shown(fault), reason)


def _example(body: type[BaseModel] | None, words: str) -> str:
    """How such an object is written, behind these words; nothing where it is plain."""
    example = example_of(body)
    return f"{words} {example}" if example else ""


def _holder(body: type[BaseModel] | None, names: list[Any]) -> type[BaseModel] | None:
    """The object that holds the field at the end of this path."""
    for name in names[:-1]:
        if isinstance(name, str):
            field = body.model_fields.get(name) if body is not None else None
            body = _model_in(field.annotation) if field is not None else None
    return body


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one kind of object that an annotation allows, alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for each in get_args(annotation) if (model := _model_in(each)) is not None]
    return found[0] if len(found) == 1 else None


def _rule(fault: Any, holder: type[BaseModel] | None) -> str:
    if fault["type"] == "missing":
        return f"must be set{_example(holder, ', as in')}"
    if fault["type"] == "image":
        return str(fault["ctx"]["rule"])
    if fault["type"] == "model_type":
        return "must be a JSON object"
    if fault["type"] == "extra_forbidden":
        known = f"; there are {', '.join(holder.model_fields)}" if holder is not None else ""
        return f"must be left out: there is no such field{known}{_example(holder, ', as in')}"
    message = str(fault["msg"])
    return message.replace("Input should", "must", 1) if message.startswith("Input should") else f"must fit: {message}"


def _shown(fault: Any) -> str:
    if fault["type"] == "image":
        return str(fault["ctx"]["shown"])
    value = fault.get("input")
    if fault["type"] == "missing" or value is None:
        return "nothing"
    if isinstance(value, str):
        return value[:100]
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
