"""Values to protobuf messages and back, driven by the types of both: the one codec of clients and service.

A field of a dataclass is the field of that name in its message (an instant `x_time_ns` is the Timestamp `x_time`):
a dataclass is a message, a tuple a repeated field, an array a Tensor, text an enum's number, None a field that is not
set. What only one side has is left out. The caller says which error a field that breaks its rule makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable, Container, Mapping, TypeVar

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from presage.protocol.arrays import DTYPE_NAMES, Refuse, array, floats, rgb
from presage.protocol.schema import FieldType, field_types
from presage.v1 import observation_pb2, tensor_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from presage.values import Array, Floats, ImageLike

Value = TypeVar("Value")

NANOSECONDS = 1_000_000_000
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # the years 1 to 9999
UNKNOWN = "unknown"  # a name that is newer than this side
_TIME, _TENSOR, _IMAGE = "google.protobuf.Timestamp", "presage.v1.Tensor", "presage.v1.Image"


@dataclass(frozen=True)
class Reader:
    """Reads messages. `is_strict`: a message that must be there is, and every enum's number has a name."""

    refuse: Refuse
    is_strict: bool

    def value(
        self,
        kind: Callable[..., Value],
        message: Message,
        where: str = "",
        known: Mapping[str, object] = MappingProxyType({}),
    ) -> Value:
        """The dataclass `kind` from a message. `known`: fields that are not to be read from it, by name."""
        return kind(**{**self.fields(kind, message, where, known), **known})

    def fields(
        self, kind: Callable[..., object], message: Message, where: str = "", known: Container[str] = ()
    ) -> dict[str, Any]:
        """The fields of a dataclass that a message has, by name."""
        named: Any = message.DESCRIPTOR.fields_by_name
        return {
            field.name: self._field(field, named[field.wire], message, where)
            for field in field_types(kind)
            if field.wire in named and field.name not in known
        }

    def _field(self, field: FieldType, described: FieldDescriptor, message: Message, where: str) -> Any:
        place = f"{where}.{field.wire}" if where else field.wire
        content = getattr(message, field.wire)
        if is_repeated(described):
            if described.message_type is None:
                return np.asarray(content, np.float64) if field.is_array else tuple(content)
            return tuple(self._one(field, described, each, f"{place}[{at}]") for at, each in enumerate(content))
        if described.has_presence and not message.HasField(field.wire):
            if field.has_default or field.is_optional:
                return field.default if field.has_default else None
            if self.is_strict:
                raise self.refuse(place, "must be set", "nothing", "INVALID_FIELD")
        return self._one(field, described, content, place)

    def _one(self, field: FieldType, described: FieldDescriptor, content: Any, place: str) -> Any:
        if described.enum_type is not None:
            return self._name(field, described.enum_type, content, place)
        if described.message_type is None:
            return content
        kind = described.message_type.full_name
        if kind == _TIME:
            return self.time(content, place)
        if kind == _TENSOR:
            return self.tensor(content, place)
        if kind == _IMAGE:
            return self.image(content, place)
        return self.value(field.kind, content, place)

    def _name(self, field: FieldType, enum: EnumDescriptor, number: int, place: str) -> Any:
        if number == 0 and field.has_default:
            return field.default
        if number in enum.values_by_number and number != 0:
            return short_name(enum, number)
        if self.is_strict:
            raise self.refuse(place, f"must be one of {', '.join(names(enum))}", number, "INVALID_FIELD")
        return UNKNOWN

    def time(self, message: Timestamp, place: str) -> int:
        """Nanoseconds since the epoch."""
        if not (FIRST_SECOND <= message.seconds <= LAST_SECOND and 0 <= message.nanos < NANOSECONDS):
            shown = f"{message.seconds} s + {message.nanos} ns"
            raise self.refuse(place, "must lie in the years 1 to 9999", shown, "INVALID_FIELD")
        return message.seconds * NANOSECONDS + message.nanos

    def tensor(self, message: tensor_pb2.Tensor, place: str) -> Floats:
        """A read-only float32 array, of whatever precision was sent."""
        return floats(self.array(message, place), place, self.refuse)

    def array(self, message: tensor_pb2.Tensor, place: str) -> Array:
        """A read-only array of the type that was sent."""
        enum = tensor_pb2.ElementType.DESCRIPTOR
        known = message.dtype in enum.values_by_number
        dtype = short_name(enum, message.dtype) if known else str(message.dtype)
        return array(dtype, message.shape, message.data, place, self.refuse)

    def image(self, message: observation_pb2.Image, place: str) -> ImageLike:
        """The bytes of an image file, or an array [height, width, 3] in RGB."""
        source = message.WhichOneof("source")
        if source == "encoded":
            return message.encoded
        if source is None:
            raise self.refuse(place, "must have encoded or raw set", "neither", "INVALID_IMAGE")
        raw, enum = message.raw, observation_pb2.PixelFormat.DESCRIPTOR
        known = raw.format in enum.values_by_number
        pixel_format = short_name(enum, raw.format) if known else str(raw.format)
        return rgb(raw.height, raw.width, pixel_format, raw.data, place, self.refuse)


@dataclass(frozen=True)
class Writer:
    """Writes messages. `keeps_precision`: an array goes in its own type; else in float32, as all that is no array."""

    refuse: Refuse
    keeps_precision: bool

    def message(self, kind: Callable[[], Any], value: object, where: str = "") -> Any:
        """A message `kind` with every field of the value that it has."""
        message = kind()
        self.fill(message, value, where)
        return message

    def fill(self, message: Message, value: object, where: str = "") -> None:
        """Set the fields of a message that the value has."""
        named: Any = message.DESCRIPTOR.fields_by_name
        for field in field_types(type(value)):
            content = getattr(value, field.name)
            if field.wire in named and content is not None:
                self._set(message, named[field.wire], content, f"{where}.{field.wire}" if where else field.wire)

    def tensor(self, content: Any, place: str) -> tensor_pb2.Tensor:
        """An array as it is where its type can be sent, anything else as float32."""
        message = tensor_pb2.Tensor()
        self._tensor(message, content, place)
        return message

    def image(self, content: ImageLike, place: str) -> observation_pb2.Image:
        """An RGB array goes raw, bytes go as the file they are."""
        message = observation_pb2.Image()
        self._image(message, content, place)
        return message

    def _set(self, message: Message, described: FieldDescriptor, content: Any, place: str) -> None:
        name = described.name
        try:
            if is_repeated(described):
                held = getattr(message, name)
                if described.message_type is None:
                    held.extend(content.tolist() if isinstance(content, np.ndarray) else content)
                else:
                    for at, each in enumerate(content):
                        self._message(held.add(), each, f"{place}[{at}]")
            elif described.message_type is not None:
                held = getattr(message, name)
                held.SetInParent()
                self._message(held, content, place)
            elif described.enum_type is not None:
                setattr(message, name, self._number(described.enum_type, content, place))
            else:
                setattr(message, name, content)
        except (TypeError, ValueError):
            raise self.refuse(place, _rule(described), content, "INVALID_FIELD") from None

    def _message(self, message: Any, content: Any, place: str) -> None:
        kind = message.DESCRIPTOR.full_name
        if kind == _TIME:
            message.seconds, message.nanos = divmod(content, NANOSECONDS)
        elif kind == _TENSOR:
            self._tensor(message, content, place)
        elif kind == _IMAGE:
            self._image(message, content, place)
        else:
            self.fill(message, content, place)

    def _number(self, enum: EnumDescriptor, name: str, place: str) -> int:
        known = names(enum)
        if name not in known:
            raise self.refuse(place, f"must be one of {', '.join(known)}", name, "INVALID_FIELD")
        return known[name]

    def _tensor(self, message: tensor_pb2.Tensor, content: Any, place: str) -> None:
        keeps = self.keeps_precision and isinstance(content, np.ndarray) and content.dtype in DTYPE_NAMES
        try:
            numbers = content if keeps else np.asarray(content, np.float32)
        except (TypeError, ValueError):
            shown = type(content).__name__
            raise self.refuse(place, "must be an array of numbers", shown, "INVALID_TENSOR") from None
        numbers = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
        message.dtype = tensor_pb2.ElementType.ValueType(_ELEMENT_TYPES[DTYPE_NAMES[numbers.dtype]])
        message.shape.extend(numbers.shape)
        message.data = numbers.tobytes()

    def _image(self, message: observation_pb2.Image, content: ImageLike, place: str) -> None:
        if isinstance(content, bytes):
            if not content:
                raise self.refuse(place, "must hold a JPEG, PNG or WebP file", "no bytes", "INVALID_IMAGE")
            message.encoded = content
            return
        if not isinstance(content, np.ndarray):
            rule = "must be a uint8 array [height, width, 3] or the bytes of an image file"
            raise self.refuse(place, rule, type(content).__name__, "INVALID_IMAGE")
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[2] != 3 or not content.size:
            shown = f"{content.dtype} {list(content.shape)}"
            raise self.refuse(place, "must be uint8 [height, width, 3]", shown, "INVALID_IMAGE")
        message.raw.height, message.raw.width = content.shape[:2]
        message.raw.format = observation_pb2.PIXEL_FORMAT_RGB8
        message.raw.data = content.tobytes()


def is_repeated(described: FieldDescriptor) -> bool:
    repeated = getattr(described, "is_repeated", None)  # what later releases of protobuf have in the label's place
    return bool(getattr(described, "label", None) == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def names(enum: EnumDescriptor) -> dict[str, int]:
    """The names of an enum's numbers in values: without the enum's own name, in small letters; not that of 0."""
    return {short_name(enum, value.number): value.number for value in enum.values if value.number != 0}


def short_name(enum: EnumDescriptor, number: int) -> str:
    """STOP_REASON_BUDGET of StopReason is "budget"."""
    return enum.values_by_number[number].name[len(_prefix(enum)) :].lower()


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name[: -len("UNSPECIFIED")]


def _rule(described: FieldDescriptor) -> str:
    bits = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}.get(described.cpp_type)
    if bits is not None:
        return f"must be at least 0 and below {1 << bits}"
    return {
        FieldDescriptor.CPPTYPE_STRING: "must be text or bytes, as the field is",
        FieldDescriptor.CPPTYPE_BOOL: "must be true or false",
        FieldDescriptor.CPPTYPE_DOUBLE: "must be a number",
    }.get(described.cpp_type, "must fit its field")


_ELEMENT_TYPES = names(tensor_pb2.ElementType.DESCRIPTOR)
