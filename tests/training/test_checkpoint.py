"""A checkpoint is whole or it is the one before."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import resume_checkpoint, save_checkpoint

MADE_WITH = {"recipe": "Recipe(steps=10, batch=4, seed=0, planner='a planner whose settings take some room')"}
MADE_WITH |= {"image size": "32 x 32", "recordings": "0123456789abcdef" * 4}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    network, generator = nn.Linear(3, 2), torch.Generator().manual_seed(1)
    save_checkpoint(tmp_path / "c.pt", {"network": network}, generator, MADE_WITH, 7, 1.5)
    drawn = torch.rand(3, generator=generator)
    other, fresh = nn.Linear(3, 2), torch.Generator()
    assert resume_checkpoint(tmp_path / "c.pt", {"network": other}, fresh, MADE_WITH) == (7, 1.5)
    assert torch.equal(other.weight, network.weight)
    assert torch.equal(torch.rand(3, generator=fresh), drawn)
    assert resume_checkpoint(tmp_path / "none.pt", {}, fresh, MADE_WITH) == (0, 0.0)


FULL = """
import resource, sys, torch
from pathlib import Path
from training.checkpoint import save_checkpoint
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_checkpoint(Path(sys.argv[1]), {"network": torch.nn.Linear(300, 300)}, torch.Generator(), {}, 8, 2.0)
except OSError as error:
    print(error.filename, error.strerror)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on a file's size")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writing past either fails in the middle of the file."""
    network, generator = nn.Linear(3, 2), torch.Generator()
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"network": network}, generator, MADE_WITH, 7, 1.5)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), "100000"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "checkpoint of step 8 cannot be written and the one before is kept" in done.stdout, done.stderr
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="is not a checkpoint: remove it"):
        resume_checkpoint(tmp_path / "c.pt", {}, torch.Generator(), MADE_WITH)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image size": "64 x 64"}, "image size was 32 x 32, now 64 x 64"),
        ({"recordings": "f" * 64}, "recordings was 0123456789ab, now ffffffffffff"),
        ({"recipe": MADE_WITH["recipe"].replace("batch=4", "batch=8")}, "recipe differs in batch=4 now batch=8"),
        ({"encoder": "other"}, "encoder was none, now other"),
    ],
)
def test_a_checkpoint_made_with_something_else_is_refused_by_its_name(
    changed: dict[str, str], said: str, tmp_path: Path
) -> None:
    network = nn.Linear(3, 2)
    save_checkpoint(tmp_path / "c.pt", {"network": network}, torch.Generator(), MADE_WITH, 7, 1.5)
    with pytest.raises(
        ValueError, match=f"was made with other settings or recordings: {said}; finish it with those, or remove it"
    ):
        resume_checkpoint(tmp_path / "c.pt", {"network": network}, torch.Generator(), MADE_WITH | changed)
