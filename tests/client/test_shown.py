"""What `print` and notebooks show of values."""

from __future__ import annotations

import numpy as np
from presage.values import Landscape, Plan, Timings

ACTIONS = np.array([[0.5, -1.25], [0.25, 1.0], [0.0, 3.0]], dtype=np.float32)


def plan(**more: object) -> Plan:
    return Plan(
        actions=ACTIONS, cost=1.5, step_costs=(1.0, 0.5), goal_distance=2.25, iteration_costs=(2.0, 1.5),
        elite_spread=(0.5, 0.1), iterations_done=2, stop_reason="budget", seed=7, timings=Timings(total_ms=81.4), **more
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_plan_prints_as_a_few_lines() -> None:
    assert str(plan()).splitlines() == [
        "plan: 3 actions of 2 entries, the first [0.5, -1.25]",
        "  cost 1.5; goal distance 2.25 now, predicted 0.5 after the last step",
        "  stopped by budget after 2 iterations, 81 ms; seed 7",
    ]


def test_a_degraded_plan_says_so_with_its_warnings() -> None:
    shown = str(plan(degraded=True, warm_started=True, warnings=("1 of 8 iterations fit 80 ms",))).splitlines()
    assert shown[2].endswith("seed 7, warm start, DEGRADED")
    assert shown[3] == "  warning: 1 of 8 iterations fit 80 ms"


def test_a_notebook_draws_every_action_entry_and_runs_nothing() -> None:
    html = plan(warnings=("<script>alert(1)</script>",))._repr_html_()
    assert html.count("<svg") == html.count("<polyline") == 2
    assert "-1.25 to 3" in html
    assert "<script>" not in html


def test_a_notebook_shows_a_landscapes_plot_where_there_is_one() -> None:
    bare = Landscape(("x",), ACTIONS[:1], ACTIONS[:1], ACTIONS[0], 0.0, 1.0)
    assert bare._repr_png_() is None
    assert Landscape(("x",), ACTIONS[:1], ACTIONS[:1], ACTIONS[0], 0.0, 1.0, b"\x89PNG")._repr_png_() == b"\x89PNG"
