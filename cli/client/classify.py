"""`presage classify`: what a clip shows, through a running service or one started for this call."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client.embed import open_service, uploading
from cli.client_options import ApiKeyOption, TimeoutOption, TlsOption, TlsRootsOption, connect
from cli.exit_codes import CommandError
from cli.options import wrong_use
from cli.output import JsonFlag, open_output

if TYPE_CHECKING:
    from presage import ClipClasses
    from rich.table import Table


def classify(
    source: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file.")],
    address: Annotated[
        str, typer.Option("--address", help="host:port of a running service; without it one is started for this call.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="A model with labels; without --address a package's name or folder.")
    ] = "",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes to show, the likeliest first.")] = 5,
    fps: Annotated[float | None, typer.Option("--fps", min=0.001, help="Frames per second to use.")] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=1, help="Frames to use, evenly spaced; by default as many as it was trained on."),
    ] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = False,
    tls_roots: TlsRootsOption = None,
    timeout_s: TimeoutOption = 60.0,
    json_: JsonFlag = False,
) -> None:
    """Say what a clip shows: the likeliest of a model's labels, with their probabilities."""
    from presage.protocol.arguments import one_of

    one_of("--frames", {"--fps": fps, "--frames": frames}, wrong_use, least=0)
    if not source.is_file():
        raise CommandError(f"no such file: {source}")
    if not address and not model:
        raise typer.BadParameter("must name a package with labels, where no --address is given", param_hint="--model")
    output = open_output(json_)
    with ExitStack() as stack:
        where, name = open_service(output, stack, address, model)
        client = stack.enter_context(connect(where, api_key, tls, tls_roots, timeout_s))
        sent = stack.enter_context(uploading(output, source, "classifying"))
        found = client.classify(source, top_k, fps=fps, frames=frames, model=name, progress=sent)
    value = {
        "source": str(source),
        "model": found.model,
        "classes": [
            {"index": each.index, "label": each.label, "probability": each.probability} for each in found.classes
        ],
        "frame_times_s": list(found.frame_times_s),
    }
    output.result(value, _shown(source, found))


def _shown(source: Path, found: ClipClasses) -> Table:
    from rich.table import Table

    table = Table(title=f"{source} through {found.model}, {len(found.frame_times_s)} frames")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for each in found.classes:
        table.add_row(each.label, f"{each.probability:.3f}")
    return table
