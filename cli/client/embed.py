"""`presage embed`: an image or a clip as latents, through a running service or one started for this call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client_options import ApiKeyOption, TimeoutOption, TlsOption, TlsRootsOption, connect, read_image
from cli.exit_codes import CommandError
from cli.options import wrong_use
from cli.output import JsonFlag, Output, open_output

if TYPE_CHECKING:
    from presage import Client, ClipEmbedding, Embedding, Goal
    from rich.console import RenderableType

KINDS = ("pooled", "per_frame", "tokens")


def embed(
    source: Annotated[Path, typer.Argument(metavar="CLIP_OR_IMAGE", help="A video, or a JPEG, PNG or WebP file.")],
    address: Annotated[
        str, typer.Option("--address", help="host:port of a running service; without it one is started for this call.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="A model of the service's; without --address a package's name or folder.")
    ] = "",
    kind: Annotated[str, typer.Option("--kind", help="pooled, per_frame or tokens.")] = "per_frame",
    fps: Annotated[float | None, typer.Option("--fps", min=0.001, help="Frames per second to use of a clip.")] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Frames to use of a clip, evenly spaced.")
    ] = None,
    goal: Annotated[
        Path | None, typer.Option("--goal", help="An image; each frame's distance to it is shown too.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the embedding there, as a NumPy .npy file.")] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = False,
    tls_roots: TlsRootsOption = None,
    timeout_s: TimeoutOption = 60.0,
    json_: JsonFlag = False,
) -> None:
    """Embed an image or a clip and print what came back; every frame of a clip unless --fps or --frames says less."""
    if kind not in KINDS:
        raise typer.BadParameter(f"must be one of {', '.join(KINDS)}, got {kind!r}", param_hint="--kind")
    from presage.protocol.arguments import one_of

    one_of("--frames", {"--fps": fps, "--frames": frames}, wrong_use, least=0)
    if out is not None and out.suffix != ".npy":
        raise typer.BadParameter(f"must end in .npy, got {out}", param_hint="--out")
    if not source.is_file():
        raise CommandError(f"no such file: {source}")
    output = open_output(json_)
    is_image = _is_image(source)
    with ExitStack() as stack:
        where, name = open_service(output, stack, address, model)
        client = stack.enter_context(connect(where, api_key, tls, tls_roots, timeout_s))
        towards = None if goal is None else client.goal(read_image(goal), model=name)
        if is_image:
            found: Embedding | ClipEmbedding = client.embed_images([read_image(source)], kind, goal=towards, model=name)
        else:
            found = _embed_clip(output, client, source, kind, fps, frames, towards, name)
    if out is not None:
        import numpy as np

        np.save(out, found.embedding, allow_pickle=False)
    value = _value(source, found, out)
    output.result(value, _shown(value))


def open_service(output: Output, stack: ExitStack, address: str, model: str) -> tuple[str, str]:
    """Where to ask, and the model's name there."""
    if address:
        return address, model
    from cli.private_service import ended_by_sigterm, private_service

    stack.enter_context(ended_by_sigterm())
    with output.err.status("starting a service for this call ..."):
        return stack.enter_context(private_service(model or "arm")).grpc, ""


def _embed_clip(
    output: Output,
    client: Client,
    source: Path,
    kind: str,
    fps: float | None,
    frames: int | None,
    goal: Goal | None,
    model: str,
) -> ClipEmbedding:
    with uploading(output, source, "embedding") as sent:
        return client.embed_clip(
            source, kind, fps=fps, frames=frames, goal=goal, step_distances=True, model=model, progress=sent
        )


@contextmanager
def uploading(output: Output, source: Path, then: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for an upload, where a person watches stderr: told bytes sent and in all. `then` is what follows."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal) as bars:
        bar = bars.add_task("uploading", total=source.stat().st_size)

        def sent(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, description="uploading" if done < total else then)

        yield sent


def _is_image(path: Path) -> bool:
    """Whether the file is of a kind the service takes as an image, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _value(source: Path, found: Embedding | ClipEmbedding, out: Path | None) -> dict[str, Any]:
    import numpy as np

    embedding = found.embedding
    norms = np.linalg.norm(embedding.reshape(-1, embedding.shape[-1]), axis=-1)
    return {
        "source": str(source),
        "model": found.model,
        "kind": found.kind,
        "shape": list(embedding.shape),
        "dtype": str(embedding.dtype),
        "mean": float(embedding.mean()),
        "std": float(embedding.std()),
        "norm_mean": float(norms.mean()),
        "frame_times_s": list(getattr(found, "frame_times_s", ())),
        "goal_distances": list(found.goal_distances),
        "step_distances": list(getattr(found, "step_distances", ())),
        "out": None if out is None else str(out),
    }


def _shown(value: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"{value['source']} through {value['model']}", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("embedding", f"{value['kind']} {value['shape']} {value['dtype']}")
    table.add_row("values", f"mean {value['mean']:.4f}, std {value['std']:.4f}, norm {value['norm_mean']:.3f}")
    times, changes, distances = value["frame_times_s"], value["step_distances"], value["goal_distances"]
    if times:
        table.add_row("frames", f"{len(times)} used, {times[0]:.2f} to {times[-1]:.2f} s")
    if changes:
        largest = max(range(len(changes)), key=changes.__getitem__)
        when = f" at {times[largest + 1]:.2f} s" if len(times) > largest + 1 else ""
        table.add_row("change", f"{sparkline(changes)} largest {changes[largest]:.4f}{when}")
    if distances:
        nearest = min(range(len(distances)), key=distances.__getitem__)
        table.add_row("to the goal", f"{sparkline(distances)} nearest {distances[nearest]:.4f} at frame {nearest}")
    if value["out"]:
        table.add_row("written to", value["out"])
    return table


def sparkline(values: list[float], width: int = 40) -> str:
    """Values from 0 up as a row of bars, at most `width` of them; each bar is the largest of its share."""
    top, count = max(values), min(width, len(values))
    edges = [len(values) * place // count for place in range(count + 1)]
    peaks = [max(values[low:high]) for low, high in pairwise(edges)]
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * peak / top))] if top > 0 else "▁" for peak in peaks)
