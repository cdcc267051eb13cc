"""The flight recorder: plans in MCAP files of bounded total size, written by a thread of its own.

Recording never holds a plan up and never fails one: what comes faster than it can be written is dropped and counted.
What a record holds is told in records.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from model import extras
from server.recording import records
from server.recording.records import PlanRecord

MIB = 1024 * 1024
WAITING_RECORDS, WAITING_BYTES = 256, 64 * MIB  # more is dropped
CHUNK_BYTES = 256 * 1024  # compressed together; what a crash may cost
FLUSH_S = 1.0  # without a new record, after which what waits for a chunk to fill is written out
INDEX_BYTES = 4096  # room in a file beside its records

_log = structlog.get_logger()


@dataclass(frozen=True)
class RecorderSettings:
    """Where plans are kept, and how many bytes of them. One service per folder."""

    folder: Path
    max_bytes: int = 1024 * MIB  # of all files together; the oldest go first
    file_bytes: int = 64 * MIB
    images: bool = True  # without them, latents stand in for the pictures
    models: tuple[str, ...] = ()  # what a replay may load: package names and folders

    def __post_init__(self) -> None:
        if self.file_bytes < 2 * INDEX_BYTES:
            raise ValueError(f"file_bytes must be at least {2 * INDEX_BYTES}, got {self.file_bytes}")
        if self.max_bytes < 2 * self.file_bytes:
            raise ValueError(f"max_bytes must be at least twice file_bytes, got {self.max_bytes}")


class Recorder:
    """Takes records from any thread. `close` writes what still waits."""

    def __init__(self, settings: RecorderSettings) -> None:
        """Raises OSError for a folder that cannot be made or written to, MissingExtra without the extra `service`."""
        extras.require("mcap", "service", "the flight recorder")
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(settings.folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "cannot be written to", str(settings.folder))
        self._settings = settings
        self._waiting: deque[PlanRecord] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._file: _File | None = None
        self._files = 0
        self.written = 0
        self.dropped = 0  # for want of time or room, or because the disk failed
        self._thread = threading.Thread(target=self._run, name="presage-recorder", daemon=True)
        self._thread.start()

    def put(self, record: PlanRecord) -> None:
        """Have a record written, if there is room for it to wait. Returns at once, whatever happens."""
        size = record.nbytes
        with self._changed:
            full = len(self._waiting) >= WAITING_RECORDS or self._waiting_bytes + size > WAITING_BYTES
            if full or self._closing:
                self.dropped += 1
                return
            self._waiting.append(record)
            self._waiting_bytes += size
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, as far as the time allows, and finish the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not (self._closing and not self._waiting):
            try:
                record = self._next()
                if record is not None:
                    self._write(record)
                    self.written += 1
                elif self._file is not None:
                    self._file.flush()
            except Exception as error:  # a full disk, a folder that was removed: the next record tries anew
                self.dropped += 1
                self._give_up(error)
        try:
            self._finish()
        except Exception as error:
            self._give_up(error)

    def _next(self) -> PlanRecord | None:
        """The record that has waited longest; None when none came for a while, and at the end."""
        with self._changed:
            if not self._waiting and not self._closing:
                self._changed.wait(FLUSH_S)
            if not self._waiting:
                return None
            record = self._waiting.popleft()
            self._waiting_bytes -= record.nbytes
            return record

    def _write(self, record: PlanRecord) -> None:
        content = records.encode(record, self._settings.images)
        if len(content) + INDEX_BYTES > self._settings.file_bytes:
            raise ValueError(f"a record of {len(content)} bytes is larger than a file may be")
        if self._file is not None and self._file.bound + len(content) + INDEX_BYTES > self._settings.file_bytes:
            self._finish()
        if self._file is None:
            self._make_room()
            self._file = _File(self._free_path(), self._settings.models)
        self._file.write(record.time_ns, record.reply.observation_sequence, content)

    def _free_path(self) -> Path:
        """A name that no file has: one may have been written by a service with this number in this very second."""
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        while True:
            self._files += 1
            path = self._settings.folder / f"presage-{stamp}-{os.getpid()}-{self._files:06d}.mcap"
            if not path.exists():
                return path

    def _make_room(self) -> None:
        """Delete the oldest files until another one fits."""
        kept = sorted(files(self._settings.folder), key=lambda path: (path.stat().st_mtime_ns, path.name))
        sizes = [path.stat().st_size for path in kept]
        total = sum(sizes)
        for path, size in zip(kept, sizes, strict=True):
            if total + self._settings.file_bytes <= self._settings.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.finish()

    def _give_up(self, error: Exception) -> None:
        if self.dropped & (self.dropped - 1) == 0:  # the first, the second, the fourth, ...: a broken disk stays quiet
            _log.warning("a plan was not recorded", why=f"{type(error).__name__}: {error}", dropped=self.dropped)
        file, self._file = self._file, None
        if file is not None:
            file.abandon()


class _File:
    """One MCAP file being written, for its owner's eyes alone: pictures of workplaces are in it."""

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        from mcap.writer import Writer

        self._stream: IO[bytes] = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._writer = Writer(self._stream, chunk_size=CHUNK_BYTES)
        self._writer.start(profile="", library="presage")
        self._writer.add_metadata("presage", {"models": json.dumps(list(models)), "version": str(records.VERSION)})
        schema = self._writer.register_schema("presage.plan", "jsonschema", json.dumps(records.SCHEMA).encode())
        self._channel = self._writer.register_channel(records.TOPIC, "json", schema)
        self._buffered, self._on_disk = 0, self._stream.tell()

    @property
    def bound(self) -> int:
        """At most so many bytes will be in the file, but for its index."""
        return self._on_disk + self._buffered

    def write(self, time_ns: int, sequence: int, content: bytes) -> None:
        self._writer.add_message(self._channel, time_ns, content, time_ns, sequence & 0xFFFFFFFF)
        before, self._on_disk = self._on_disk, self._stream.tell()
        self._buffered = 0 if self._on_disk > before else self._buffered + len(content) + 64

    def flush(self) -> None:
        """Put what waits for a chunk to fill on the disk."""
        if self._buffered:
            self._writer.flush()
            self._stream.flush()
            self._buffered, self._on_disk = 0, self._stream.tell()

    def finish(self) -> None:
        self._writer.finish()
        self._stream.close()

    def abandon(self) -> None:
        """Leave the file as it is: what is whole in it can be read."""
        try:
            self._stream.close()
        except OSError:
            return


def files(folder: Path) -> list[Path]:
    """The recorder's files in a folder."""
    return [path for path in folder.glob("presage-*.mcap") if path.is_file()]
