"""Alternating measurement, operation counts, and the machine's matrix rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.layers.prepacked_linear import pack_linears

Work = Callable[[], object]


@dataclass(frozen=True)
class Table:
    """One table of the report. Cells are numbers as measured, or words."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


def written(table: Table) -> str:
    """A table under its title."""
    lines = [f"## {table.title}", "", table.note, "", f"| {' | '.join(table.columns)} |"]
    lines.append("|" + "---|" * len(table.columns))
    return "\n".join([*lines, *(f"| {' | '.join(_cell(value) for value in row)} |" for row in table.rows)])


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interleaved(works: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """Median milliseconds of each work, all of them run in turns after one run for warm-up."""
    for work in works.values():
        finished(work())
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            finished(work())
            taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(ms) for name, ms in taken.items()}


def finished(result: object) -> None:
    """Wait for an accelerator through what it computed."""
    if isinstance(result, Tensor):
        result.flatten()[:1].cpu()


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int | None = None, seconds: float = 1.0) -> float:
    """Operations a second of a square matrix product: the best of many, which is the machine's, not its company's.

    The product is large enough that an accelerator takes a millisecond for it, beside which waiting for it is little.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    one = torch.randn(size, size, device=device).to(dtype)
    product = nn.Sequential(nn.Linear(size, size, bias=False, device=device, dtype=dtype)).requires_grad_(False)
    pack_linears(product)  # as the networks do: the faster way, where there is one
    finished(product(one))
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        began = time.perf_counter()
        finished(product(one))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def operations(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions of one run."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return int(counter.get_total_flops())
