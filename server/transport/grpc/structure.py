"""What a protobuf message is made of, counted before it is parsed.

Two bytes make an empty message that takes fifty once it is parsed: 16 MiB of them would take a gigabyte. Bytes of files
and arrays are stepped over, whatever their size.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from server.errors import Reason, invalid

MOST_FIELDS = 16_384
"""Fields of a message and of those inside it."""

HARMLESS_BYTES = 4096  # are parsed without counting
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 16
_LONG_TEXT = 64 * 1024  # of a field that is neither bytes nor a message: text, or packed numbers


def check_structure(described: Descriptor, content: bytes) -> None:
    """Raises ServiceError TOO_LARGE for more fields than any request has; broken bytes are for the parser to refuse."""
    if len(content) > HARMLESS_BYTES:
        _fields(described, content, 0, len(content), 0, _DEEPEST)


def _fields(described: Descriptor | None, content: bytes, at: int, end: int, seen: int, deepest: int) -> int:
    """`seen` and the fields from `at` to `end`."""
    known = {} if described is None else described.fields_by_number
    while at < end:
        seen += 1
        if seen > MOST_FIELDS:
            rule = f"must have at most {MOST_FIELDS} fields"
            raise invalid("message", rule, f"more in {len(content)} bytes", Reason.TOO_LARGE)
        tag, at = _varint(content, at, end)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(content, at, end)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _BYTES:
            length, at = _varint(content, at, end)
            field = known.get(tag >> 3)
            stop = min(at + length, end)
            if field is not None and field.message_type is not None and deepest:
                seen = _fields(field.message_type, content, at, stop, seen, deepest - 1)
            elif field is not None and field.type != field.TYPE_BYTES and length > _LONG_TEXT:
                rule = f"must have at most {_LONG_TEXT} bytes"
                raise invalid(field.full_name.partition(".v1.")[2], rule, f"{length} bytes", Reason.TOO_LARGE)
            at += length
        else:
            return seen  # a group, or nothing: refused by the parser
    return seen


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends; what is cut short ends the message."""
    number = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    return 0, end
