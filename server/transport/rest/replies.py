"""Large replies over REST, written part by part: an array is never there as text, let alone three times.

What a caller has not taken yet stays an array, counted among what it holds.
"""

from __future__ import annotations

import binascii
import io
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from google.protobuf.descriptor import Descriptor
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.transport.gateway import LARGE_REPLY_BYTES, Gateway, share_of_caller
from server.transport.rest import json_codec
from server.transport.rest.tensors import TensorStyle
from server.values.calls import Array

_PART_BYTES = 3 * 2**16  # of an array, at once: a multiple of three, so that its base64 has no gaps


class Part(Protocol):
    """A part of a reply whose length is known before it is made."""

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Plain:
    """Bytes that are there."""

    content: memoryview

    def __len__(self) -> int:
        return len(self.content)

    def pieces(self) -> Iterator[bytes]:
        return (bytes(self.content[at : at + _PART_BYTES]) for at in range(0, len(self.content), _PART_BYTES))


@dataclass(frozen=True)
class Base64:
    """An array's bytes, as text."""

    content: memoryview

    def __len__(self) -> int:
        return 4 * -(-len(self.content) // 3)

    def pieces(self) -> Iterator[bytes]:
        for at in range(0, len(self.content), _PART_BYTES):
            yield binascii.b2a_base64(self.content[at : at + _PART_BYTES], newline=False)


@dataclass(frozen=True)
class Arrays:
    """The large arrays of a JSON text that is being written, and what stands in their places until then."""

    mark: str = field(default_factory=secrets.token_hex)
    contents: list[memoryview] = field(default_factory=list)

    def place(self, content: memoryview) -> str:
        """What to write for these bytes: themselves where they are few."""
        if len(content) < LARGE_REPLY_BYTES:
            return binascii.b2a_base64(content, newline=False).decode()
        self.contents.append(content)
        return self.mark


def json_parts(reply: object, message: Descriptor, style: TensorStyle) -> list[Part]:
    """A reply as JSON has it."""
    arrays = Arrays()
    text = to_json(json_codec.plain(reply, message, style, arrays.place), inf_nan_mode="null")
    parts: list[Part] = []
    for index, piece in enumerate(text.split(arrays.mark.encode())):
        if index:
            parts.append(Base64(arrays.contents[index - 1]))
        parts.append(Plain(memoryview(piece)))
    return parts


def npy_parts(array: Array) -> list[Part]:
    """An array as a file of NumPy's."""
    head, whole = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(whole))
    return [Plain(head.getbuffer()), Plain(whole.reshape(-1).view(np.uint8).data)]


class PartedResponse(Response):
    """A success whose parts are made while it is sent."""

    def __init__(self, parts: Iterable[Part], media_type: str, headers: dict[str, str]) -> None:
        super().__init__(None, media_type=media_type)
        self._parts = tuple(parts)
        self._size = sum(len(part) for part in self._parts)
        self.init_headers({**headers, "Content-Length": str(self._size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway: Gateway = scope["app"].state.gateway
        with share_of_caller(gateway, "bytes", self._size if self._size >= LARGE_REPLY_BYTES else 0):
            start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            for part in self._parts:
                for piece in part.pieces():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
