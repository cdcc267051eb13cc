"""Where uploads lie meanwhile: gone with their service however it ends, and a full disk is named."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.service.application import Application
from server.transport.spool_folder import LOCK, PREFIX, SETTLED_S, SpoolFolder
from tests.support.paths import ROOT
from tests.support.server.transports import clip_messages, grpc_refusal, open_service, rest_refusal

MIB = 1 << 20


def test_a_folder_is_its_owners_alone_and_gone_when_it_is_closed(tmp_path: Path) -> None:
    spool = SpoolFolder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    descriptor, path = spool.new_file()
    os.close(descriptor)
    (folder,) = tmp_path.iterdir()
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_tidied_up_is_made_again(tmp_path: Path) -> None:
    spool = SpoolFolder(tmp_path)
    descriptor, path = spool.new_file()
    os.close(descriptor)
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    descriptor, path = spool.new_file()
    os.close(descriptor)
    assert path.exists()
    spool.close()


def test_what_a_killed_service_left_is_deleted_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from server.transport.spool_folder import SpoolFolder
        descriptor, path = SpoolFolder(Path(sys.argv[1])).new_file()
        os.write(descriptor, b"half a clip")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/clients/python/src"}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    living, fresh = SpoolFolder(tmp_path), SpoolFolder(tmp_path)
    descriptor, path = living.new_file()
    os.close(descriptor)
    (tmp_path / "something-else").mkdir()
    assert fresh.sweep() == 0, "a folder just made may be one that is just being locked"
    later = time.time() + 2 * SETTLED_S
    monkeypatch.setattr(time, "time", lambda: later)
    assert fresh.sweep() == 1
    assert path.exists()
    assert sorted(each.name[: len(PREFIX)] for each in tmp_path.iterdir()) == [PREFIX, "something-else"]
    living.close()


def test_a_folder_is_locked_for_as_long_as_its_service_lives(tmp_path: Path) -> None:
    spool = SpoolFolder(tmp_path)
    descriptor, path = spool.new_file()
    os.close(descriptor)
    with (path.parent / LOCK).open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    spool.close()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process can grow to a MiB and a half: as on a disk that is full, writes stop short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_upload_that_the_disk_has_no_room_for_is_told_so(
    application: Application, tmp_path: Path, full_disk: None
) -> None:
    async with open_service(application, spool_dir=tmp_path) as service:
        clip = bytes(4 * MIB)
        told = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(clip)))
        assert (told.reason, told.field) == ("DISK_FULL", "chunk")
        assert told.status.name == "RESOURCE_EXHAUSTED"
        files = {"clip": ("a", clip, "video/mp4")}
        over_rest = await rest_refusal(service.rest.post("/v1/embeddings/clips", files=files))
        assert (over_rest.status, over_rest.reason, over_rest.field) == (507, "DISK_FULL", "clip")
        assert service.gateway.uploads.active == 0
        (folder,) = tmp_path.iterdir()
        assert [each.name for each in folder.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
