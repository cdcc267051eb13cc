"""A clip on its way to the server: a header that announces it, then its bytes in chunks.

Not a transport: the clients pull the messages and send them.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Callable, Iterator, Union

from presage.errors import invalid
from presage.protocol import arguments, codec
from presage.v1 import embeddings_pb2
from presage.values import Goal

CHUNK_BYTES = 1 << 20  # the contract's limit
Progress = Callable[[int, int], None]  # bytes handed to the transport, bytes in all

ClipLike = Union[str, "os.PathLike[str]", bytes, BinaryIO]  # a path, the content of a file, or a file open for reading
Source = Union[str, "os.PathLike[str]", bytes]


@dataclass(frozen=True)
class ClipUpload:
    """A file, or its content, and its announcement, the same whether it is embedded or classified. `size`: bytes."""

    source: Source
    size: int
    header: bytes

    def messages(self, progress: Progress | None = None) -> Iterator[bytes]:
        """The serialized messages, header first. `progress` is called after each, once more than there are chunks."""
        yield self.header
        sent = 0
        with _opened(self.source) as file:
            while sent < self.size:
                # A file that grew since it was announced is cut; one that shrank is the server's to refuse.
                chunk = file.read(min(CHUNK_BYTES, self.size - sent))
                if not chunk:
                    return
                if progress is not None:
                    progress(sent, self.size)
                yield embeddings_pb2.EmbedClipRequest(chunk=chunk).SerializeToString()
                sent += len(chunk)
        if progress is not None:
            progress(sent, self.size)


def announce_clip(
    clip: ClipLike,
    *,
    kind: str | None = None,
    fps: float | None = None,
    frames: int | None = None,
    goal: Goal | str | None = None,
    model: str = "",
    step_distances: bool = False,
    top_k: int | None = None,
) -> ClipUpload:
    """Reads the clip once for its size and digest. `kind`, `goal` and `step_distances` are for a clip to embed, `top_k`
    for one to classify.

    Raises OSError for a file that cannot be read, InvalidRequest for an argument that breaks its rule.
    """
    source = _source(clip)
    header = embeddings_pb2.ClipHeader(
        model=codec.model_name(model), goal_id=codec.goal_id(goal), step_distances=bool(step_distances)
    )
    if kind is not None:
        header.kind = codec.kind_number(kind)
    if top_k is not None:
        if not 1 <= top_k < 1 << 32:
            raise invalid("top_k", "must be at least 1", top_k)
        header.top_k = top_k
    arguments.one_of("frames", {"fps": fps, "frames": frames}, invalid, least=0)
    if fps is not None:
        header.sampling.fps = arguments.positive("fps", fps)
    if frames is not None:
        header.sampling.frames = arguments.whole("frames", frames, least=1)
    digest = hashlib.sha256()
    with _opened(source) as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                break
            digest.update(chunk)
            header.total_bytes += len(chunk)
    if not header.total_bytes:
        raise invalid(
            "clip", "must hold a video file", f"the empty file {source!r}" if source else "no bytes", "INVALID_CLIP"
        )
    header.sha256 = digest.digest()
    return ClipUpload(source, header.total_bytes, embeddings_pb2.EmbedClipRequest(header=header).SerializeToString())


def _source(clip: object) -> Source:
    """What is sent, by its path or as its bytes. Raises InvalidRequest."""
    if isinstance(clip, (str, os.PathLike)):
        return clip
    if isinstance(clip, (bytes, bytearray, memoryview)):
        return bytes(clip)
    read = getattr(clip, "read", None)
    content = read() if callable(read) else None
    if not isinstance(content, bytes):
        rule = "must be the path of a video file, its bytes, or the file opened in binary mode"
        raise invalid("clip", rule, arguments.shown(clip), "INVALID_CLIP")
    return content


def _opened(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def upload_time_s(size: int, timeout_s: float) -> float:
    """A deadline for a clip of `size` bytes: a call's usual one, and a second for each MiB."""
    return timeout_s + size / CHUNK_BYTES
