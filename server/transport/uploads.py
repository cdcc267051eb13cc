"""Uploads of clips: written to disk as they arrive, counted, hashed, and deleted when the call ends.

File names come from the operating system alone, never from a caller. What is in the file is not looked at here.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO, FileIO
from pathlib import Path

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.config import MIB, Limits
from server.errors import Reason, ServiceError, invalid
from server.transport.arrivals import Patience
from server.transport.callers.shares import Shares
from server.transport.spool_folder import FULL, SpoolFolder
from server.values.caller import calling

CHUNK_BYTES = MIB
_TEXT_BYTES = 4096  # longest text field of a form
_PARTS = 16


class Spool:
    """A growing file that never passes its limit. `field` names it in errors."""

    def __init__(self, file: FileIO, path: Path, max_bytes: int, field: str) -> None:
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
        with _disk(self._field):
            await asyncio.to_thread(self._append, block)

    def _append(self, block: bytearray) -> None:
        self._hash.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]


class Uploads:
    """The clips being received. More than there are slots are refused, which bounds the disk they take."""

    def __init__(self, folder: Path | None, limits: Limits, shares: Shares) -> None:
        self.active = 0
        self._folder, self._limits, self._shares = SpoolFolder(folder), limits, shares

    @asynccontextmanager
    async def spool(self, field: str) -> AsyncIterator[Spool]:
        """A file for one upload, gone afterwards. Raises ServiceError OVERLOADED and DISK_FULL."""
        slots = self._limits.max_concurrent_uploads
        if self.active >= slots:
            rule = f"must be one of at most {slots} uploads at a time"
            raise ServiceError(
                Reason.OVERLOADED, f"{field} {rule}", field=field, rule=rule, value=str(self.active), retry_after_s=1.0
            )
        with self._shares.holding("uploads", calling().name):
            self.active += 1
            try:
                with _disk(field):
                    descriptor, path = self._folder.new_file()
                try:
                    # Closing waits for a write that a thread is still at. Unbuffered: what is written is on the disk.
                    with os.fdopen(descriptor, "wb", buffering=0) as file:
                        yield Spool(file, path, self._limits.clip_bytes, field)
                finally:
                    path.unlink(missing_ok=True)
            finally:
                self.active -= 1

    def patience(self, field: str) -> Patience:
        """With the caller of one upload."""
        limits = self._limits
        return Patience(field, limits.upload_idle_s, limits.upload_s, limits.upload_bytes_per_s)

    def sweep(self) -> None:
        """Delete what services that were killed have left."""
        self._folder.sweep()

    def close(self) -> None:
        """Delete what is left."""
        self._folder.close()


@contextmanager
def _disk(field: str) -> Iterator[None]:
    """Raises DISK_FULL where there is no room for a clip."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        rule = "must fit on the disk that uploads are kept on (spool_dir), which is full"
        raise ServiceError(
            Reason.DISK_FULL, f"{field} {rule}", field=field, rule=rule, value=os.strerror(error.errno or 0),
            retry_after_s=5.0,
        ) from None  # fmt: skip


async def receive_form(
    chunks: AsyncGenerator[bytes, None], headers: Headers, file_field: str, spool: Spool
) -> dict[str, str]:
    """Read multipart/form-data: the part `file_field` into `spool`, the others as text by name.

    Raises ServiceError INVALID_REQUEST for what is not a form, INVALID_FIELD for parts that break a rule.
    """
    content_type = headers.get("content-type", "")
    if not content_type.startswith("multipart/form-data") or "boundary=" not in content_type:
        rule = "must be multipart/form-data with a boundary"
        raise invalid("Content-Type", rule, content_type or "nothing", Reason.INVALID_REQUEST)
    form = _Form(headers, chunks, file_field, spool)
    try:
        parts = await form.parse()
    except MultiPartException as error:
        raise invalid(
            "body", "must be well-formed multipart/form-data", error.message, Reason.INVALID_REQUEST
        ) from None
    if not form.is_whole:
        raise invalid("body", "must end with its closing boundary", "less", Reason.INVALID_REQUEST)
    texts = {name: value for name, value in parts.items() if isinstance(value, str)}
    if file_field not in parts:
        raise invalid(file_field, "must be a part of the form", f"{sorted(texts)}")
    return texts


class _Form(MultiPartParser):
    """Starlette's parser with its file in our spool: counted, hashed and refused as it comes, and written once."""

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None], file_field: str, spool: Spool) -> None:
        super().__init__(headers, chunks, max_files=_PARTS, max_fields=_PARTS, max_part_size=_TEXT_BYTES)
        self.is_whole = False
        self._file_field, self._spool = file_field, spool
        self._names: set[str] = set()

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        for file in self._files_to_close_on_error:
            file.close()  # of the parser's own, empty and never on disk
        part = self._current_part
        if part.field_name in self._names:
            raise invalid(part.field_name, "must come once", "twice")
        self._names.add(part.field_name)
        part.file = _SpooledFile(self._spool) if part.field_name == self._file_field else None

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        try:
            super().on_part_data(data, start, end)
        except MultiPartException:
            rule = f"must have at most {_TEXT_BYTES} bytes"
            raise invalid(self._current_part.field_name, rule, "more", Reason.TOO_LARGE) from None

    def on_part_end(self) -> None:
        part = self._current_part
        try:
            part.data.decode("utf-8")
        except UnicodeDecodeError:
            raise invalid(part.field_name, "must be UTF-8 text", "other bytes") from None
        super().on_part_end()

    def on_end(self) -> None:
        self.is_whole = True


class _SpooledFile(UploadFile):
    """What the parser writes an uploaded file to."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(BytesIO())
        self._spool = spool

    async def write(self, data: bytes) -> None:
        await self._spool.write(data)
