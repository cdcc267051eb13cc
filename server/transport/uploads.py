"""Uploads of clips: written to disk as they arrive, counted, hashed, and deleted when the call ends.

File names come from the operating system alone, never from a caller. What is in the file is not looked at here.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.config import MIB
from server.errors import Reason, ServiceError, invalid

CHUNK_BYTES = MIB
_Piece = TypeVar("_Piece")
_TEXT_BYTES = 4096  # longest text field of a form
_PARTS = 16


class Spool:
    """A growing file that never passes its limit. `field` names it in errors."""

    def __init__(self, file: BinaryIO, path: Path, max_bytes: int, field: str) -> None:
        self.path, self.received = path, 0
        self._file, self._max_bytes, self._field = file, max_bytes, field
        self._hash = hashlib.sha256()
        self._waiting = bytearray()

    async def write(self, chunk: bytes) -> None:
        """Append. Raises ServiceError TOO_LARGE as soon as the limit is passed."""
        self.received += len(chunk)
        if self.received > self._max_bytes:
            rule = f"must have at most {self._max_bytes} bytes"
            raise invalid(self._field, rule, f"{self.received} so far", Reason.TOO_LARGE)
        self._waiting += chunk
        if len(self._waiting) >= CHUNK_BYTES:
            await self._flush()

    async def seal(self, total: int | None, digest: bytes | None) -> Path:
        """Finish the file, which must have `total` bytes and the sha256 `digest` where they were announced."""
        await self._flush()
        if self.received == 0:
            raise invalid(self._field, "must be a video file", "no bytes", Reason.INVALID_CLIP)
        if total is not None and self.received != total:
            rule = f"must have the {total} bytes that were announced"
            raise invalid(self._field, rule, self.received, Reason.CLIP_MISMATCH)
        if digest is not None and self._hash.digest() != digest:
            rule = f"must have the sha256 {digest.hex()} that was announced"
            raise invalid(self._field, rule, self._hash.hexdigest(), Reason.CLIP_MISMATCH)
        return self.path

    async def _flush(self) -> None:
        block, self._waiting = self._waiting, bytearray()
        await asyncio.to_thread(self._append, block)

    def _append(self, block: bytearray) -> None:
        self._hash.update(block)
        self._file.write(block)
        self._file.flush()


@dataclass
class Uploads:
    """The clips being received. More than `slots` at once are refused, which bounds the disk they take."""

    folder: Path | None
    max_bytes: int
    slots: int
    idle_s: float  # longest wait for the next piece
    active: int = 0

    @asynccontextmanager
    async def spool(self, field: str) -> AsyncIterator[Spool]:
        """A file for one upload, gone afterwards. Raises ServiceError OVERLOADED."""
        if self.active >= self.slots:
            rule = f"must be one of at most {self.slots} uploads at a time"
            raise ServiceError(
                Reason.OVERLOADED, f"{field} {rule}", field=field, rule=rule, value=str(self.active), retry_after_s=1.0
            )
        self.active += 1
        try:
            descriptor, name = tempfile.mkstemp(prefix="presage-clip-", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:  # closing waits for a write that a thread is still at
                    yield Spool(file, Path(name), self.max_bytes, field)
            finally:
                os.unlink(name)
        finally:
            self.active -= 1

    async def steady(self, pieces: AsyncIterator[_Piece], field: str) -> AsyncIterator[_Piece]:
        """`pieces` as they come. Raises DEADLINE where one is long in coming: no slot is held by a silent caller."""
        while True:
            try:
                piece = await asyncio.wait_for(pieces.__anext__(), self.idle_s)
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                rule = f"must go on arriving at least every {self.idle_s:g} s"
                raise invalid(field, rule, "nothing", Reason.DEADLINE) from None
            yield piece


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    name: str = ""
    text: bytearray = field(default_factory=bytearray)


async def receive_form(
    chunks: AsyncIterator[bytes], content_type: str, file_field: str, spool: Spool
) -> dict[str, str]:
    """Read multipart/form-data: the part `file_field` into `spool`, the others as text by name.

    Raises ServiceError INVALID_REQUEST for what is not a form, INVALID_FIELD for parts that break a rule.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not boundary:
        rule = "must be multipart/form-data with a boundary"
        raise invalid("Content-Type", rule, content_type or "nothing", Reason.INVALID_REQUEST)
    form = _Form(file_field)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.named,
                "on_part_data": form.content,
                "on_part_end": form.end,
                "on_end": form.finish,
            },
        )
        async for chunk in chunks:
            parser.write(chunk)
            for block in form.taken():
                await spool.write(block)
    except FormParserError as error:
        raise invalid("body", "must be well-formed multipart/form-data", error, Reason.INVALID_REQUEST) from None
    if not form.finished:
        raise invalid("body", "must end with its closing boundary", "less", Reason.INVALID_REQUEST)
    if file_field not in form.seen:
        raise invalid(file_field, "must be a part of the form", f"{sorted(form.texts)}")
    return form.texts


class _Form:
    """What the parser's callbacks gather. Blocks of the file wait in `_blocks` until they are taken."""

    def __init__(self, file_field: str) -> None:
        self.texts: dict[str, str] = {}
        self.seen: set[str] = set()
        self.finished = False
        self._file_field = file_field
        self._part = _Part()
        self._blocks: list[bytes] = []

    def begin(self) -> None:
        self._part = _Part()
        if len(self.seen) >= _PARTS:
            raise invalid("body", f"must have at most {_PARTS} parts", "more")

    def header_name(self, block: bytes, start: int, end: int) -> None:
        self._part.header_name += block[start:end]

    def header_value(self, block: bytes, start: int, end: int) -> None:
        self._part.header_value += block[start:end]

    def header_end(self) -> None:
        part = self._part
        part.headers[part.header_name.lower()] = part.header_value
        part.header_name = part.header_value = b""

    def named(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise invalid(
                "body", "must name every part in its Content-Disposition", "a part without", Reason.INVALID_REQUEST
            )
        if name in self.seen:
            raise invalid(name, "must come once", "twice")
        self.seen.add(name)
        self._part.name = name

    def content(self, block: bytes, start: int, end: int) -> None:
        if self._part.name == self._file_field:
            self._blocks.append(block[start:end])
            return
        self._part.text += block[start:end]
        if len(self._part.text) > _TEXT_BYTES:
            raise invalid(self._part.name, f"must have at most {_TEXT_BYTES} bytes", "more", Reason.TOO_LARGE)

    def end(self) -> None:
        if self._part.name != self._file_field:
            try:
                self.texts[self._part.name] = self._part.text.decode("utf-8")
            except UnicodeDecodeError:
                raise invalid(self._part.name, "must be UTF-8 text", "other bytes") from None

    def finish(self) -> None:
        self.finished = True

    def taken(self) -> list[bytes]:
        blocks, self._blocks = self._blocks, []
        return blocks
