"""The folder that uploads are kept in meanwhile: one for each service, deleted with it, also where it was killed.

A service holds a lock on its folder for as long as it lives. Whoever starts next beside it deletes the folders that
nobody holds a lock on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

PREFIX, LOCK = "presage-spool-", "lock"
SETTLED_S = 60.0  # a folder younger than this may be one that is just being locked
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = structlog.get_logger()


@dataclass
class SpoolFolder:
    """A folder below `parent` (the system's place for temporary files by default), made when it is first needed."""

    parent: Path | None
    _folder: Path | None = None
    _lock: int | None = None

    def new_file(self) -> tuple[int, Path]:
        """An open file for its owner alone, and where it is. Raises OSError."""
        for again in (True, False):
            try:
                descriptor, name = tempfile.mkstemp(prefix="clip-", dir=self._made())
                return descriptor, Path(name)
            except FileNotFoundError:  # somebody tidied up
                if not again:
                    raise
                self.close()
        raise AssertionError("the loop returns or raises")

    def sweep(self) -> int:
        """Delete the folders of services that are no more; how many they were."""
        parent = Path(tempfile.gettempdir()) if self.parent is None else self.parent
        swept = 0
        for folder in parent.glob(f"{PREFIX}*"):
            if folder != self._folder and _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
        if swept:
            _log.info("uploads of services that were killed are deleted", folders=swept)
        return swept

    def close(self) -> None:
        """Delete the folder, with whatever is in it."""
        folder, lock, self._folder, self._lock = self._folder, self._lock, None, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)

    def _made(self) -> Path:
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.parent))
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._folder = folder
        return self._folder


def _is_left(folder: Path) -> bool:
    """Whether this user's folder is one that no service holds any more."""
    try:
        found = folder.lstat()
        if found.st_uid != os.geteuid() or time.time() - found.st_ctime < SETTLED_S:
            return False
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
