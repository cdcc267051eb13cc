"""Two processes that share each batch train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.training.one_of_two import main
from training.distributed import ALONE, ProcessGroup, SharedBatchNorm


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Real processes over Gloo; single precision, in which sums in another order differ in the seventh digit."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    main(alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.support.training.one_of_two", str(together)]
    running = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=240) for process in running] == [0, 0]

    value, slopes = torch.load(alone / "statistic0.pt", weights_only=True)
    halves = [torch.load(together / f"statistic{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close([half[0] for half in halves], [value, value], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([half[1] for half in halves], dim=1) / 2, slopes, rtol=1e-12, atol=1e-12)
    whole = torch.load(alone / "images0.pt", weights_only=True)
    parts = [torch.load(together / f"images{rank}.pt", weights_only=True) for rank in range(2)]
    for one, two in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(two), one, rtol=1e-12, atol=1e-12)
    expected = torch.load(alone / "gradients0.pt", weights_only=True)
    log = json.loads((alone / "log0.json").read_text())
    for rank in range(2):
        gradients = torch.load(together / f"gradients{rank}.pt", weights_only=True)
        assert gradients.keys() == expected.keys()
        length = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * length, name  # sums in another order, layer by layer
        found = json.loads((together / f"log{rank}.json").read_text())
        for one, two in zip(log, found, strict=True):
            # Adam's first steps have the size of the learning rate whatever the gradient's: what rounding makes of a
            # gradient that is zero (a bias before a batch norm) moves its weight, and the losses after it, a little.
            within = 1e-6 if one["step"] == 1 else 1e-3
            for name in ("prediction_loss", "regularizer", "inverse_loss"):
                assert two[name] == pytest.approx(one[name], rel=within, abs=within), (one["step"], name)


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert [ProcessGroup(rank, 4).part(12) for rank in range(4)] == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 9),
        slice(9, 12),
    ]
    with pytest.raises(ValueError, match="multiple of the 5 processes, got 12"):
        ProcessGroup(0, 5).part(12)


@pytest.mark.parametrize(
    ("norm", "shape"), [(torch.nn.BatchNorm1d, (16, 5)), (torch.nn.BatchNorm2d, (16, 5, 3, 2))], ids=["rows", "images"]
)
def test_a_shared_batch_norm_alone_is_torchs(norm: type[torch.nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    shared, plain = SharedBatchNorm(5, ALONE), norm(5)
    for scale in (1.0, 3.0):
        x = scale * torch.randn(shape) + 2
        torch.testing.assert_close(shared(x), plain(x))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))
