"""`presage plan`: one plan from a running service, from what the robot sees to what it should see."""

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
    timings_value,
)
from cli.output import JsonFlag, open_output

if TYPE_CHECKING:
    from presage import ActionSpec, Plan
    from rich.console import RenderableType


def plan(
    image: ImageOption,
    goal: GoalOption,
    address: AddressOption = DEFAULT_ADDRESS,
    model: ServedModelOption = "",
    proprioception: ProprioceptionOption = "",
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed gives the same plan.")] = None,
    budget_ms: Annotated[
        float | None, typer.Option("--budget-ms", min=0.001, help="Time to think; the best plan by then is taken.")
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option("--limits", help="JSON with slew, max_norm, frozen or dwell, which the plan keeps to."),
    ] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = False,
    tls_roots: TlsRootsOption = None,
    timeout_s: TimeoutOption = 30.0,
    json_: JsonFlag = False,
) -> None:
    """Ask a running service for one plan and print its actions."""
    from presage.limits import read_limits

    seen, wanted = read_image(image), read_image(goal)
    narrower = None if limits is None else read_limits(limits)
    measured = numbers(proprioception, "--proprioception") if proprioception else None
    with connect(address, api_key, tls, tls_roots, timeout_s) as client:
        described = client.model(model)
        found = client.plan(
            seen,
            client.goal(wanted, model=model),
            model=model,
            proprioception=measured,
            budget_ms=budget_ms,
            seed=seed,
            limits=narrower,
        )
    open_output(json_).result(_value(found), _shown(found, described.action))


def _value(plan: Plan) -> dict[str, Any]:
    return {
        "actions": [[float(entry) for entry in action] for action in plan.actions],
        "cost": plan.cost,
        "step_costs": list(plan.step_costs),
        "goal_distance": plan.goal_distance,
        "iteration_costs": list(plan.iteration_costs),
        "iterations_done": plan.iterations_done,
        "stop_reason": plan.stop_reason,
        "seed": plan.seed,
        "objective": plan.objective,
        "degraded": plan.degraded,
        "shortage": list(plan.shortage),
        "warnings": list(plan.warnings),
        "timings": timings_value(plan.timings),
        "model": plan.provenance.model,
        "weights_digest": plan.provenance.weights_digest,
    }


def _shown(plan: Plan, spec: ActionSpec | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    width = plan.actions.shape[1]
    names = spec.names if spec is not None else tuple(f"action {entry}" for entry in range(width))
    units = spec.units if spec is not None else ("",) * width
    table = Table(title=f"{len(plan.actions)} actions" + (f" at {spec.rate_hz:g} Hz" if spec is not None else ""))
    table.add_column("#", justify="right", style="dim")
    for name, unit in zip(names, units, strict=True):
        table.add_column(f"{name}\n{unit}", justify="right")
    for number, action in enumerate(plan.actions):
        table.add_row(str(number), *(f"{entry:+.3f}" for entry in action))
    first, last = plan.iteration_costs[:1], plan.iteration_costs[-1:]
    search = f"{plan.iterations_done} iterations, stopped: {plan.stop_reason}"
    if first and last:
        search += f", cost {first[0]:.4f} -> {last[0]:.4f}"
    times = plan.timings
    lines = [
        f"distance to the goal now {plan.goal_distance:.4f}, predicted after each model step: "
        + ", ".join(f"{cost:.4f}" for cost in plan.step_costs),
        search,
        f"encode {times.encode_ms:.1f} ms, plan {times.plan_ms:.1f} ms, in the service {times.total_ms:.1f} ms, "
        f"seed {plan.seed}, model {plan.provenance.model} {plan.provenance.weights_digest[:12]}",
        *(f"[yellow]warning:[/yellow] {warning}" for warning in plan.warnings),
    ]
    return Group(table, *lines)
