"""`presage landscape`: what actions around rest would cost, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client_options import (
    DEFAULT_ADDRESS,
    AddressOption,
    ApiKeyOption,
    GoalOption,
    ImageOption,
    ProprioceptionOption,
    ServedModelOption,
    TimeoutOption,
    TlsOption,
    TlsRootsOption,
    connect,
    numbers,
    read_image,
)
from cli.output import JsonFlag, open_output

if TYPE_CHECKING:
    from presage import Landscape
    from rich.console import RenderableType


def landscape(
    image: ImageOption,
    goal: GoalOption,
    address: AddressOption = DEFAULT_ADDRESS,
    model: ServedModelOption = "",
    proprioception: ProprioceptionOption = "",
    dimensions: Annotated[
        str, typer.Option("--dimensions", help="One to three action entries by commas; empty: the first searched.")
    ] = "",
    points: Annotated[int, typer.Option("--points", min=3, help="Grid points along each entry; odd.")] = 5,
    extent: Annotated[float, typer.Option("--extent", help="How far to go, as a fraction of the bounds.")] = 1.0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the picture into this PNG file.")] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = False,
    tls_roots: TlsRootsOption = None,
    timeout_s: TimeoutOption = 60.0,
    json_: JsonFlag = False,
) -> None:
    """Ask a running service what a grid of actions costs, each held for one step of the model."""
    measured = numbers(proprioception, "--proprioception") if proprioception else None
    with connect(address, api_key, tls, tls_roots, timeout_s) as client:
        found = client.landscape(
            read_image(image),
            client.goal(read_image(goal), model=model),
            model=model,
            proprioception=measured,
            dimensions=tuple(dimensions.split(",")) if dimensions else (),
            points=points,
            extent=extent,
            plot=out is not None,
        )
    if out is not None:
        out.write_bytes(found.plot)
    open_output(json_).result(_value(found), _shown(found))


def _value(found: Landscape) -> dict[str, Any]:
    return {
        "dimensions": list(found.dimensions),
        "values": found.values.tolist(),
        "costs": found.costs.tolist(),
        "best_action": found.best_action.tolist(),
        "best_cost": found.best_cost,
        "rest_cost": found.rest_cost,
    }


def _shown(found: Landscape) -> RenderableType:
    from rich.table import Table

    best = ", ".join(f"{entry:+.3g}" for entry in found.best_action)
    table = Table(
        title=f"{found.costs.size} actions: lowest cost at each value, the other entries free",
        caption=f"best {found.best_cost:.4g} at [{best}], at rest {found.rest_cost:.4g}",
    )
    table.add_column("entry")
    for place in range(found.values.shape[1]):
        table.add_column(f"{place + 1}", justify="right")
    for axis, name in enumerate(found.dimensions):
        others = tuple(other for other in range(found.costs.ndim) if other != axis)
        lowest = found.costs.min(axis=others)
        cells = [f"{value:+.3g}\n{cost:.4g}" for value, cost in zip(found.values[axis], lowest, strict=True)]
        table.add_row(name, *cells)
    return table
