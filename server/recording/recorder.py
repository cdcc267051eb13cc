"""The flight recorder: plans in MCAP files of bounded total size, written by a thread of its own.

Recording never holds a plan up and never fails one: what comes faster than it can be written is dropped and counted.
A record counts as written once it is on the disk. What a record holds is told in records.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

import structlog

from model import extras
from server.recording import records
from server.recording.records import PlanRecord

MIB = 1024 * 1024
WAITING_RECORDS, WAITING_BYTES = 256, 64 * MIB  # more is dropped
CHUNK_BYTES = 256 * 1024  # compressed together; what a crash may cost
FLUSH_S = 1.0  # without a new record, after which what waits for a chunk to fill is written out
INDEX_BYTES = 4096  # room in a file beside its records
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0  # after a disk that failed, before it is tried again
LEAST_FILE_BYTES = 1024  # a file with one record in it is larger
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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
        self._pause_s, self._again_at = FIRST_PAUSE_S, 0.0
        self.written = 0  # and on the disk
        self.dropped = 0  # for want of time or room, or because the disk failed
        _tidy(settings.folder)
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
            record = self._next()
            try:
                if record is not None:
                    self._write(record)
                elif self._file is not None:
                    self.written += self._file.flush()
            except _TooLargeError as error:
                self._drop(1, str(error))
            except Exception as error:  # a full disk, a folder that was removed: tried anew after a pause
                self._give_up(error, 0 if record is None else 1)
        try:
            self._finish()
        except Exception as error:
            self._give_up(error, 0)

    def _next(self) -> PlanRecord | None:
        """The record that has waited longest; None when none came for a while, and at the end."""
        with self._changed:
            if not self._waiting and not self._closing:
                self._changed.wait(FLUSH_S)
            self._changed.wait_for(lambda: self._closing, max(0.0, self._again_at - time.monotonic()))
            if not self._waiting:
                return None
            record = self._waiting.popleft()
            self._waiting_bytes -= record.nbytes
            return record

    def _write(self, record: PlanRecord) -> None:
        content = records.encode(record, self._settings.images)
        if len(content) + INDEX_BYTES > self._settings.file_bytes:
            raise _TooLargeError(f"a record of {len(content)} bytes is larger than a file may be")
        if self._file is not None and self._file.bound + len(content) + INDEX_BYTES > self._settings.file_bytes:
            self._finish()
        if self._file is None:
            self._make_room()
            self._file = _File(self._free_path(), self._settings.models)
        self.written += self._file.write(record.time_ns, record.reply.observation_sequence, content)
        self._pause_s = FIRST_PAUSE_S

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
        if self._file is not None:
            self.written += self._file.finish()
            self._file = None

    def _give_up(self, error: Exception, in_hand: int) -> None:
        """Count what did not reach the disk as dropped: `in_hand`, and what waited in the file for a chunk to fill."""
        file, self._file = self._file, None
        lost = 0 if file is None else file.abandon()
        self._again_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in FULL:
            why = f"the disk of record.folder {self._settings.folder} is full: {error.strerror}"
        self._drop(max(lost, in_hand), why)

    def _drop(self, count: int, why: str) -> None:
        before, self.dropped = self.dropped, self.dropped + count
        # The first, the second, the fourth, ...: a broken disk stays quiet.
        if count and self.dropped.bit_length() > before.bit_length():
            _log.warning("plans were not recorded", why=why, dropped=self.dropped)


class _TooLargeError(ValueError):
    """A record that no file has room for."""


class _File:
    """One MCAP file being written, for its owner's eyes alone: pictures of workplaces are in it.

    Writing, flushing and finishing say how many more records are on the disk since.
    """

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        from mcap.writer import Writer

        self._path, self._waiting, self._kept = path, 0, 0
        self._stream = _Unbuffered(path)
        try:
            self._writer = Writer(cast(IO[bytes], self._stream), chunk_size=CHUNK_BYTES)
            self._writer.start(profile="", library="presage")
            about = {"models": json.dumps(list(models)), "version": str(records.VERSION)}
            self._writer.add_metadata("presage", about)
            schema = self._writer.register_schema("presage.plan", "jsonschema", json.dumps(records.SCHEMA).encode())
            self._channel = self._writer.register_channel(records.TOPIC, "json", schema)
        except OSError:
            self._stream.close()
            path.unlink(missing_ok=True)
            raise
        self._buffered, self._on_disk = 0, self._stream.tell()

    @property
    def bound(self) -> int:
        """At most so many bytes will be in the file, but for its index."""
        return self._on_disk + self._buffered

    def write(self, time_ns: int, sequence: int, content: bytes) -> int:
        """Records go to the disk when a chunk is full, this one's too. Raises OSError."""
        self._waiting += 1
        self._writer.add_message(self._channel, time_ns, content, time_ns, sequence & 0xFFFFFFFF)
        if self._stream.tell() > self._on_disk:
            return self._reached()
        self._buffered += len(content) + 64
        return 0

    def flush(self) -> int:
        """Put what waits for a chunk to fill on the disk. Raises OSError."""
        if not self._waiting:
            return 0
        self._writer.flush()
        os.fdatasync(self._stream.fileno())
        return self._reached()

    def finish(self) -> int:
        """Put all that waits, and the index, on the disk. Raises OSError."""
        self._writer.finish()
        os.fdatasync(self._stream.fileno())
        self._stream.close()
        return self._reached()

    def abandon(self) -> int:
        """Leave of the file what is whole in it, or nothing where nothing is; how many records are lost."""
        try:
            if self._kept:
                os.ftruncate(self._stream.fileno(), self._on_disk)
            else:
                self._path.unlink(missing_ok=True)
            self._stream.close()
        except (OSError, ValueError):  # the folder is gone, or the file was closed
            pass
        return self._waiting

    def _reached(self) -> int:
        reached, self._waiting = self._waiting, 0
        self._kept += reached
        if not self._stream.closed:
            self._buffered, self._on_disk = 0, self._stream.tell()
        return reached


class _Unbuffered:
    """A file that writes whole or raises: what was written is where it will stay, or the disk had no room for it.

    Not an `io.RawIOBase`, which the writer of MCAP would put a buffer in front of.
    """

    def __init__(self, path: Path) -> None:
        """A new file for its owner alone. Raises OSError."""
        self._file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        self.tell, self.fileno, self.flush, self.close = (
            self._file.tell, self._file.fileno, self._file.flush, self._file.close
        )  # fmt: skip

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        done = 0
        while done < len(view):
            done += self._file.write(view[done:]) or 0
        return done


def files(folder: Path) -> list[Path]:
    """The recorder's files in a folder."""
    return [path for path in folder.glob("presage-*.mcap") if path.is_file()]


def _tidy(folder: Path) -> None:
    """Delete the files in which a service that was killed has left no record."""
    for path in files(folder):
        if path.stat().st_size < LEAST_FILE_BYTES:
            path.unlink(missing_ok=True)
