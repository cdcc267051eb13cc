"""JSON bodies to values, by a budget: first bytes count, then structure, then content.

What would take long is read in a process of its own (`parsers`), where it can be ended; the rest here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from server.errors import Reason, ServiceError, invalid
from server.transport.grpc.codec import WRITER
from server.transport.rest import faults, json_codec

MOST_FIELDS = 8192
"""Fields of all objects of a body together."""

MOST_ENTRIES = 2**21
"""Entries of all lists of a body together; more numbers are sent as a tensor in base64."""

HERE_BYTES, HERE_ENTRIES = 2 * 2**20, 2048  # read on the event loop: 3 ms at most


@dataclass(frozen=True)
class Body:
    """How the JSON of one call is read: the model that checks it, the value and the message that it becomes."""

    kind: Any
    message: Descriptor
    without: tuple[str, ...] = ()

    @property
    def model(self) -> type[BaseModel]:
        return json_codec.body_model(self.kind, self.message, self.without)

    def value(self, content: bytes | bytearray, known: dict[str, Any]) -> Any:
        """The value; `known` are the fields that stand elsewhere. Raises Faults or ServiceError."""
        body = _checked(self.model, content)
        json_codec.check_choices(self.message, body)
        return json_codec.value(self.kind, body, known=known)

    def protobuf(self, content: bytes, known: dict[str, Any]) -> bytes:
        """The same as the bytes of its message, for another process. Raises Faults or ServiceError."""
        written: bytes = WRITER.message(GetMessageClass(self.message), self.value(content, known)).SerializeToString()
        return written


def is_small(content: bytes | bytearray) -> bool:
    """Whether reading takes a few milliseconds at most. Raises ServiceError for more than any body may hold."""
    fields, entries = content.count(b":"), content.count(b",")  # in strings too: never fewer than there are
    if fields > MOST_FIELDS:
        raise _too_many("fields", MOST_FIELDS, fields, "")
    if entries > MOST_ENTRIES:
        raise _too_many("entries", MOST_ENTRIES, entries, "; numbers go as a tensor in base64")
    return len(content) <= HERE_BYTES and fields + entries <= HERE_ENTRIES


def _too_many(what: str, most: int, found: int, advice: str) -> ServiceError:
    return invalid("body", f"must have at most {most} {what}{advice}", f"up to {found}", Reason.TOO_LARGE)


def _checked(model: type[BaseModel], content: bytes | bytearray) -> BaseModel:
    try:
        parsed = from_json(content)
    except ValueError as error:
        if not content:
            raise faults.not_an_object(model, "nothing") from None
        if not _is_text(content):  # a file in place of JSON
            raise faults.not_an_object(model, faults.kind_of_bytes(content)) from None
        raise faults.not_json(str(error)) from None
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        told = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise faults.found(told, model) from None


def _is_text(content: bytes | bytearray) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
