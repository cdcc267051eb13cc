"""Several processes that share one training, as `torchrun` starts them. With one process, everything is the identity.

Only sums and means over processes live here, and their taking turns. What must be summed for two processes to train as
one (gradients, the batch norm's moments, SIGReg's statistic) is said where it is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from presage.user_error import UserError
from torch import Tensor, nn

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # that the others have while the first decodes a large dataset


class FirstProcessError(UserError, RuntimeError):
    """The first of several processes could not do what the others wait for; its own message says why."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `world` of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's rows of a batch of `count`; ValueError where they cannot be shared evenly."""
        if count % self.world:
            raise ValueError(f"batch must be a multiple of the {self.world} processes, got {count}")
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def in_turn(self, work: Callable[[], T]) -> T:
        """What ``work`` gives: the first process does it alone, then the others, who find what it left on the disk.

        Raises FirstProcessError in the others where the first one's work raised anything.
        """
        if self.world == 1:
            return work()
        waiting = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        done = torch.zeros(1)
        if self.first:
            try:
                given = work()
                done += 1
            finally:
                torch.distributed.all_reduce(done, group=waiting)
            return given
        torch.distributed.all_reduce(done, group=waiting)
        if not done:
            raise FirstProcessError("the first process could not make ready what all train on; see what it says")
        return work()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, outside autograd."""
        if self.world == 1:
            return values
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.world

    def mean_with_gradient(self, values: Tensor) -> Tensor:
        """The mean over processes; its gradient reaches every process's values."""
        if self.world == 1:
            return values
        total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
        return total / self.world

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        together = self.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


class _Sum(torch.autograd.Function):
    """The sum over processes, on each of them; so each value's gradient is the sum of what reaches the sum anywhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        total = upstream[0].clone()
        torch.distributed.all_reduce(total)
        return total


ALONE = ProcessGroup()


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """The processes that `torchrun` started this one with (NCCL on CUDA, Gloo elsewhere); `ALONE` without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows, or the pixels of the images, of all processes, on any device (torch's: CUDA alone)."""

    def __init__(self, features: int, group: ProcessGroup) -> None:
        super().__init__(features)
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        """Whatever has channels as its second axis."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        rows = x.to(self.running_mean.dtype).movedim(1, -1)
        others = tuple(range(rows.ndim - 1))
        mean = self.group.mean_with_gradient(rows.mean(dim=others))
        variance = self.group.mean_with_gradient((rows - mean).square().mean(dim=others))
        with torch.no_grad():
            count = rows[..., 0].numel() * self.group.world
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), self.momentum)
        normal = (rows - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normal.movedim(-1, 1).to(x.dtype)


def share_batch_norms(network: nn.Module, group: ProcessGroup) -> None:
    """Make every batch norm of a network count the rows or images of all processes; names of weights stay."""
    if group.world == 1:
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                shared = SharedBatchNorm(child.num_features, group).to(child.weight)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
