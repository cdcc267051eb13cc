"""Rollouts captured once and replayed, for networks whose kernels take longer to launch than to run.

A CUDA graph launches all kernels of a rollout at once, but for the tensors it was captured with alone: what comes in is
copied into them, from a smaller batch into their first rows, and what goes out is copied from them. Capturing belongs
to warming up; a size that was not captured runs as it is. Decision 8 says why graphs and not a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.runtime.memory import free_memory

Function = Callable[..., Tensor]
Context = tuple[Tensor, ...]

MEMORY_SHARE = 0.1
"""Of the free memory: the most that a captured rollout may take. All graphs share what the largest takes."""
MOST_WASTE = 1.25
"""The most rows that are computed for one that was asked for, where a larger size is replayed for a smaller one."""


class CaptureError(RuntimeError):
    """A function that cannot be captured, or not in the memory there is."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A function captured with tensors of its own. What those hold past a smaller batch is left from earlier ones."""

    inputs: tuple[Tensor, ...]
    run: Callable[[], Tensor]  # gives the output for what `inputs` hold, in memory that the next run may write again
    reads: tuple[Tensor, ...]  # what else it reads, such as weights: kept, as a graph knows only where they lie

    def __call__(self, given: Sequence[Tensor]) -> Tensor:
        for own, new in zip(self.inputs, given, strict=True):
            own[tuple(slice(0, size) for size in new.shape)].copy_(new)
        return self.run()


class Capture(Protocol):
    """Captures a pure function of tensors, by running it. Raises RuntimeError where that is not possible."""

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Captured: ...


def rehearsed(function: Function, inputs: Sequence[Tensor]) -> Captured:
    """What stands in for graphs on other devices: the same tensors, the same sizes, but every run runs the function."""
    own = tuple(tensor.clone() for tensor in inputs)
    reads = outside(function, own)
    return Captured(own, lambda: function(*own), reads)


class CudaGraphs:
    """Captures CUDA graphs, which share one pool of memory: a result must be copied before the next replay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most_bytes = MEMORY_SHARE * free_memory(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Captured:
        with torch.cuda.device(self._device):
            own = tuple(tensor.clone() for tensor in inputs)
            reads = self._warmed_up(function, own)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = function(*own)

        def run() -> Tensor:
            graph.replay()
            return output

        return Captured(own, run, reads)

    def _warmed_up(self, function: Function, own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run it twice beside the main stream, which sets up libraries and caches; see what it reads and takes."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            function(*own)
            reads = outside(function, own)
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        needed = torch.cuda.max_memory_allocated(self._device) - before
        if needed > self._most_bytes:
            raise CaptureError(f"it takes {needed >> 20} MiB, over {int(self._most_bytes) >> 20}")
        return reads


def being_captured(device: torch.device) -> bool:
    """Whether a graph is being captured, in which nothing may be asked of the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the tensors that are read while it is on but were made before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: set[int] = set()
        self.read: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._made:
                self.read.setdefault(place, tensor)
        result = func(*args, **(kwargs or {}))
        self._made.update(tensor.untyped_storage().data_ptr() for tensor in _tensors(result))
        return result


def outside(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a function reads that it was not given and does not make: weights, and tables it keeps."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    with Outside() as seen:
        function(*inputs)
    return tuple(tensor for place, tensor in seen.read.items() if place not in given)


def _tensors(values: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class WorldModel(Protocol):
    """What can be captured of a model: `planner.WorldModel` by shape."""

    @property
    def block(self) -> int: ...

    def rollout(self, context: Context, actions: Tensor) -> Tensor: ...


class Graphed:
    """A world model whose rollouts of captured sizes are replayed. All others, and differentiated ones, run as ever.

    Relies on what the planner's protocol promises: a rollout never mixes entries of batch or samples.
    """

    def __init__(self, world: WorldModel, capture: Capture) -> None:
        self.world, self.block = world, world.block
        self.why_not = ""  # what kept the next size from being captured
        self._capture = capture
        self._captured: dict[tuple[object, ...], dict[tuple[int, int], Captured]] = {}

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Batch and samples of everything captured."""
        return tuple(size for captured in self._captured.values() for size in captured)

    @torch.no_grad()
    def capture(
        self, context: Context, actions: Float[Tensor, "1 samples time action"], batches: Iterable[int]
    ) -> None:
        """Capture rollouts like this one for so many robots at once, the fewest first, until one cannot be captured."""
        kind = self._captured.setdefault(_kind(context, actions), {})
        for batch in sorted(batches):
            inputs = [tensor.repeat_interleave(batch, dim=0) for tensor in (*context, actions)]
            try:
                kind[batch, actions.shape[1]] = self._capture(self._rolled_out, inputs)
            except RuntimeError as error:
                self.why_not = f"{batch} x {actions.shape[1]} samples: {' '.join(str(error).split())}"
                return

    def rollout(
        self, context: Context, actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon *latent"]:
        """Predict, by the smallest captured size with room for it, if there is one that does not waste too much."""
        captured = self._fitting(context, actions)
        if captured is None or (torch.is_grad_enabled() and actions.requires_grad):
            return self.world.rollout(context, actions)
        batch, samples = actions.shape[:2]
        return captured((*context, actions))[:batch, :samples].clone()

    def _rolled_out(self, *inputs: Tensor) -> Tensor:
        return self.world.rollout(inputs[:-1], inputs[-1])

    def _fitting(self, context: Context, actions: Tensor) -> Captured | None:
        batch, samples = actions.shape[:2]
        most = MOST_WASTE * batch * samples
        fitting = {
            room: captured
            for room, captured in self._captured.get(_kind(context, actions), {}).items()
            if room[0] >= batch and room[1] >= samples and room[0] * room[1] <= most
        }
        return fitting[min(fitting, key=lambda room: room[0] * room[1])] if fitting else None


def _kind(context: Context, actions: Tensor) -> tuple[object, ...]:
    """What must be as it was captured."""
    of_context = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in context)
    return (*of_context, actions.shape[2:], actions.dtype, actions.device)
