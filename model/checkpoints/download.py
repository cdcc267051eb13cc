"""Download of published weight files: resumed where a cut left off, checked for size and digest, put in place whole.

Says nothing of what is in the file beyond "these may be weights": reading it is `model.checkpoints.importer`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx
from presage.user_error import UserError

from model.checkpoints.published import ADDRESS

Progress = Callable[[int, "int | None"], None]
"""Told bytes on disk, and bytes in all where the server says so."""

CHUNK = 1 << 20
REDIRECTS = 5
TIMEOUT = httpx.Timeout(30.0)
"""Seconds to connect, and seconds without a single byte."""


class DownloadError(UserError):
    """A download that did not give the file; the message says of which address, and what to do."""


class AddressRefused(DownloadError):
    """An address, or where it redirects to, that is not HTTP or HTTPS, or that leaves HTTPS for HTTP."""


class ServerRefused(DownloadError):
    """The server cannot be reached, or does not give the file: not there (404), not allowed, out of order."""


class NotWeights(DownloadError):
    """Something else came in the file's place, such as a web page."""


class Truncated(DownloadError):
    """The connection ended early, or bytes do not add up. What came is kept where the next attempt can go on."""


class WrongDigest(DownloadError):
    """The whole file is there and is not the one expected."""


class DiskFull(DownloadError):
    """No room for the file. What came so far is kept."""


@dataclass(frozen=True)
class _Body:
    """What a response is about to bring."""

    start: int
    """Byte of the file that the body begins at."""
    total: int | None
    """Bytes of the whole file, where the server says."""
    validator: str
    """What names this version of the file to the server; empty where it gives nothing of the kind."""


class HasFile(Protocol):
    """What is downloaded, by the name of its file."""

    @property
    def file(self) -> str: ...


def pull(
    model: HasFile,
    folder: Path,
    progress: Progress | None = None,
    *,
    base: str = ADDRESS,
    sha256: str | None = None,
) -> Path:
    """Download a published model's file into `folder` and return its path; a file already there is kept as it is.

    While it comes it is named `FILE.part`. A later call goes on from there if the server can and still holds the same
    version (by its ETag or date); else it starts over. `base` is the address of a mirror that holds the same file
    names. With `sha256` (64 hex digits) the file is checked, also one already there; without, nothing but its size is.
    Raises `DownloadError`, and `ValueError` for a digest that cannot be one.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256: must be 64 hexadecimal digits, got {sha256!r}")
    path = folder / model.file
    if path.exists():
        _check_digest(path, sha256)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{base.rstrip('/')}/{model.file}"
    part = path.with_name(f"{path.name}.part")
    version = path.with_name(f"{path.name}.part.version")
    with httpx.Client(timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as client:
        _bring(client, address, part, version, progress or (lambda done, total: None))
    try:
        _check_digest(part, sha256)
    except WrongDigest:
        part.unlink()
        version.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    version.unlink(missing_ok=True)
    return path


def _bring(client: httpx.Client, address: str, part: Path, version: Path, progress: Progress) -> None:
    """Make `part` the whole file, from where it stands."""
    held = part.stat().st_size if part.exists() else 0
    validator = version.read_text().strip() if held and version.exists() else ""
    headers = {"Range": f"bytes={held}-", "If-Range": validator} if validator else {}
    with _answer(client, address, headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and headers:
            if response.headers.get("Content-Range", "") == f"bytes */{held}":
                progress(held, held)
                return
        else:
            body = _opening(response, address, held if headers else 0)
            with _disk_errors(part):
                if not body.start:
                    part.write_bytes(
                        b""
                    )  # before the version is named: old bytes must never pass for the new version's
                    version.write_text(body.validator)
                _write(response, address, part, body, progress)
            return
    part.unlink()
    version.unlink()
    _bring(client, address, part, version, progress)


@contextmanager
def _answer(client: httpx.Client, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """The response once redirects are followed, its body unread. Transport failures inside become our errors."""
    try:
        request = client.build_request("GET", address, headers=headers)
        _check_scheme(request.url, request.url)
        response = client.send(request, stream=True)
        for _ in range(REDIRECTS):
            if response.next_request is None:
                break
            response.close()
            _check_scheme(response.next_request.url, request.url)
            request = response.next_request
            response = client.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerRefused(f"{address}: cannot be reached: {error or type(error).__name__}") from error


def _check_scheme(url: httpx.URL, before: httpx.URL) -> None:
    if url.scheme not in ("http", "https") or (before.scheme == "https" and url.scheme == "http"):
        came = f" (redirected from {before})" if url != before else ""
        raise AddressRefused(f"{url}: must be an https (or http) address{came}")


def _opening(response: httpx.Response, address: str, asked: int) -> _Body:
    """Read a response's head; refuse what cannot be the file."""
    status, headers = response.status_code, response.headers
    if status == httpx.codes.NOT_FOUND:
        raise ServerRefused(f"{address}: is not there (404)")
    if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise ServerRefused(f"{address}: the server answered {status} {response.reason_phrase}".rstrip())
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise NotWeights(f"{address}: gave a web page ({kind}), not weights")
    if encoding := headers.get("Content-Encoding", "").replace("identity", ""):
        raise NotWeights(f"{address}: came compressed ({encoding}), which was not asked for")
    # A weak tag may stay the same while bytes change, so it cannot vouch for a resumed file.
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    if status == httpx.codes.OK:
        length = headers.get("Content-Length")
        return _Body(0, int(length) if length is not None else None, validator)
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
    if place is None or int(place[1]) != asked or not asked:
        raise ServerRefused(
            f"{address}: must answer with bytes from {asked} on, got Content-Range {headers.get('Content-Range')!r}"
        )
    return _Body(asked, int(place[2]), validator)


def _write(response: httpx.Response, address: str, part: Path, body: _Body, progress: Progress) -> None:
    done = body.start
    missing = body.total - done if body.total is not None else 0
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise DiskFull(f"{part.parent}: needs {missing / 1e9:.1f} GB more for {part.name}, has {free / 1e9:.1f} GB")
    with part.open("ab" if done else "wb") as file:
        progress(done, body.total)
        try:
            for chunk in response.iter_raw():
                if not done:
                    _check_beginning(chunk, address)
                file.write(chunk)
                done += len(chunk)
                progress(done, body.total)
        except (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError) as error:
            _settle(file)
            raise _cut(address, done, body) from error
        _settle(file)
    if not done:
        raise NotWeights(f"{address}: is empty")
    if body.total is not None and part.stat().st_size != body.total:
        raise _cut(address, done, body)


def _cut(address: str, done: int, body: _Body) -> Truncated:
    of = f" of {body.total}" if body.total is not None else ""
    again = "continues" if body.validator else "starts over: the server does not name the file's version"
    return Truncated(f"{address}: was cut off after {done}{of} bytes; the same command {again}")


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_beginning(chunk: bytes, address: str) -> None:
    """Weights are ZIP archives or pickles; a page begins with a mark that neither can."""
    text = chunk[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        raise NotWeights(f"{address}: gave a web page, not weights: it begins {text[:15].decode(errors='replace')!r}")


def _check_digest(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256.lower():
        raise WrongDigest(f"{path}: sha256 must be {sha256.lower()}, got {digest.hexdigest()}")


@contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{part}: no room left on the disk") from error
        raise
