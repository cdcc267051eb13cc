"""Downloads resume, check what comes, and leave the file whole or not at all; against a server on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.checkpoints.download import (
    AddressRefused,
    DiskFull,
    DownloadError,
    NotWeights,
    ServerRefused,
    Truncated,
    WrongDigest,
    pull,
)
from model.checkpoints.published import PUBLISHED, by_name

MODEL = by_name("vjepa2-vitl-256")
CONTENT = b"PK\x03\x04" + bytes(range(256)) * 12_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CUT = 1_500_000


@dataclass
class Shelf:
    """What the server gives, and what it was asked."""

    content: bytes = CONTENT
    status: int = 200
    kind: str = "application/octet-stream"
    tag: str = '"first"'
    ranges: bool = True
    cut_after: int | None = None
    """Bytes of the body to send before the connection is closed."""
    declared: int | None = None
    """Length to declare instead of the true one."""
    location: str = ""
    asked: list[str | None] = field(default_factory=list)
    """The Range of every request."""
    base: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        if self.location:
            handler.send_response(302)
            handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            self.location = ""
            return
        status, start = self.status, 0
        if wanted and self.ranges and handler.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(self.content) else 416
        body = self.content[start:]
        handler.send_response(status)
        handler.send_header("Content-Type", self.kind)
        handler.send_header("Content-Length", str(len(body) if self.declared is None else self.declared))
        if self.tag:
            handler.send_header("ETag", self.tag)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
        handler.end_headers()
        with suppress(ConnectionError):  # a client that has seen enough hangs up
            handler.wfile.write(body if self.cut_after is None else body[: self.cut_after])


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    held = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    held.base = f"http://127.0.0.1:{server.server_address[1]}/files/"
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut_once(shelf: Shelf, folder: Path) -> None:
    """Leave a download that was cut off after CUT bytes."""
    shelf.cut_after = CUT
    with pytest.raises(Truncated, match=f"cut off after {CUT} of {len(CONTENT)} bytes"):
        pull(MODEL, folder, base=shelf.base)
    shelf.cut_after = None
    assert (folder / "vitl.pt.part").read_bytes() == CONTENT[:CUT]
    assert not (folder / "vitl.pt").exists()


def test_a_download_gives_the_file_and_nothing_else(shelf: Shelf, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = pull(MODEL, folder, lambda done, total: told.append((done, total)), base=shelf.base, sha256=DIGEST.upper())
    assert path == folder / "vitl.pt"
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["vitl.pt"]
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert told == sorted(told)


def test_a_cut_download_goes_on_where_it_stopped(shelf: Shelf, tmp_path: Path) -> None:
    cut_once(shelf, tmp_path)
    told: list[int] = []
    path = pull(MODEL, tmp_path, lambda done, total: told.append(done), base=shelf.base, sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert shelf.asked == [None, f"bytes={CUT}-"]
    assert told[0] == CUT
    assert names(tmp_path) == ["vitl.pt"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.ranges = False
    cut_once(shelf, tmp_path)
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == CONTENT


def test_a_file_that_changed_after_the_cut_is_not_glued_to_the_old_half(shelf: Shelf, tmp_path: Path) -> None:
    cut_once(shelf, tmp_path)
    shelf.content, shelf.tag = CONTENT[::-1].replace(b"<", b"-"), '"second"'
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == shelf.content


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_version_a_cut_download_starts_over(tag: str, shelf: Shelf, tmp_path: Path) -> None:
    shelf.tag, shelf.cut_after = tag, CUT
    with pytest.raises(Truncated, match="starts over"):
        pull(MODEL, tmp_path, base=shelf.base)
    shelf.cut_after = None
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == CONTENT
    assert shelf.asked == [None, None]


def test_a_part_that_is_already_whole_is_put_in_place(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "vitl.pt.part").write_bytes(CONTENT)
    (tmp_path / "vitl.pt.part.version").write_text(shelf.tag)
    assert pull(MODEL, tmp_path, base=shelf.base, sha256=DIGEST).read_bytes() == CONTENT
    assert names(tmp_path) == ["vitl.pt"]


def test_a_part_longer_than_the_file_is_thrown_away(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "vitl.pt.part").write_bytes(CONTENT + b"more")
    (tmp_path / "vitl.pt.part.version").write_text(shelf.tag)
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == CONTENT
    assert shelf.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_digest_leaves_nothing_behind(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(WrongDigest, match=f"sha256 must be {'0' * 64}, got {DIGEST}"):
        pull(MODEL, tmp_path, base=shelf.base, sha256="0" * 64)
    assert names(tmp_path) == []


def test_a_file_already_there_is_checked_and_not_asked_for(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "vitl.pt").write_bytes(b"PK other")
    assert pull(MODEL, tmp_path, base=shelf.base) == tmp_path / "vitl.pt"
    with pytest.raises(WrongDigest, match="vitl.pt"):
        pull(MODEL, tmp_path, base=shelf.base, sha256=DIGEST)
    assert (tmp_path / "vitl.pt").read_bytes() == b"PK other"
    assert shelf.asked == []


def test_a_digest_that_cannot_be_one_is_refused_before_anything_is_asked(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256: must be 64 hexadecimal digits, got 'abc'"):
        pull(MODEL, tmp_path, base=shelf.base, sha256="abc")
    assert shelf.asked == []


@pytest.mark.parametrize(
    ("status", "said"), [(404, "vitl.pt: is not there (404)"), (403, "403 Forbidden"), (503, "503 Service Unavailable")]
)
def test_a_refusal_by_the_server_is_told(status: int, said: str, shelf: Shelf, tmp_path: Path) -> None:
    shelf.status = status
    with pytest.raises(ServerRefused, match=re.escape(said)):
        pull(MODEL, tmp_path, base=shelf.base)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (CONTENT, "text/html; charset=utf-8"),
        (b"\n  <!DOCTYPE html><p>sign in", "application/octet-stream"),
        (b"\xef\xbb\xbf<html>", "binary/octet-stream"),
        (b"<?xml version='1.0'?><Error/>", ""),
    ],
)
def test_a_page_in_place_of_weights_is_refused(content: bytes, kind: str, shelf: Shelf, tmp_path: Path) -> None:
    shelf.content, shelf.kind = content, kind
    with pytest.raises(NotWeights, match="gave a web page"):
        pull(MODEL, tmp_path, base=shelf.base)
    assert not (tmp_path / "vitl.pt").exists()
    shelf.content, shelf.kind, shelf.tag = CONTENT, "application/octet-stream", '"mended"'
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == CONTENT


def test_an_empty_file_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    shelf.content = b""
    with pytest.raises(NotWeights, match="is empty"):
        pull(MODEL, tmp_path, base=shelf.base)


def test_a_file_larger_than_the_disk_is_not_begun(shelf: Shelf, tmp_path: Path) -> None:
    shelf.declared, shelf.cut_after = 10**18, 10
    with pytest.raises(DiskFull, match=r"needs 1000000000.0 GB more for vitl.pt.part"):
        pull(MODEL, tmp_path, base=shelf.base)
    assert not (tmp_path / "vitl.pt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_told(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "vitl.pt.part").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="no room left on the disk"):
        pull(MODEL, tmp_path, base=shelf.base)
    assert not (tmp_path / "vitl.pt").exists()


def test_redirects_are_followed_over_http(shelf: Shelf, tmp_path: Path) -> None:
    shelf.location = "/elsewhere/vitl.pt"
    assert pull(MODEL, tmp_path, base=shelf.base).read_bytes() == CONTENT
    assert len(shelf.asked) == 2


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/vitl.pt"])
def test_redirects_never_leave_http(location: str, shelf: Shelf, tmp_path: Path) -> None:
    shelf.location = location
    with pytest.raises(AddressRefused, match="must be an https"):
        pull(MODEL, tmp_path, base=shelf.base)
    assert names(tmp_path) == []


@pytest.mark.parametrize("base", ["file:///etc", "ftp://127.0.0.1/", "no address"])
def test_only_http_addresses_are_asked(base: str, tmp_path: Path) -> None:
    with pytest.raises(AddressRefused, match="must be an https"):
        pull(MODEL, tmp_path, base=base)


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ServerRefused, match="cannot be reached"):
        pull(MODEL, tmp_path, base="http://127.0.0.1:9")


def test_every_error_is_a_download_error() -> None:
    kinds = (AddressRefused, DiskFull, NotWeights, ServerRefused, Truncated, WrongDigest)
    assert all(issubclass(kind, DownloadError) for kind in kinds)


def test_every_published_file_has_an_https_address_of_its_own() -> None:
    addresses = [model.address for model in PUBLISHED]
    assert len(set(addresses)) == len(addresses)
    assert all(address.startswith("https://") for address in addresses)
