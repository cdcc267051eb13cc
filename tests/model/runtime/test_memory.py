"""Free memory as the system tells it, read from a folder laid out like one; and memory that is kept."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.runtime.memory import UNKNOWN, free_memory

CPU = torch.device("cpu")


def system(root: Path, **files: str) -> Path:
    places = {
        "meminfo": "proc/meminfo",
        "v2_limit": "sys/fs/cgroup/memory.max",
        "v2_used": "sys/fs/cgroup/memory.current",
        "v1_limit": "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "v1_used": "sys/fs/cgroup/memory/memory.usage_in_bytes",
    }
    for name, text in files.items():
        path = root / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = "MemTotal: 4000 kB\nMemFree: 100 kB\nMemAvailable:  1000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"meminfo": MACHINE}, 1_024_000),
        ({"meminfo": MACHINE, "v2_limit": "max\n", "v2_used": "77\n"}, 1_024_000),
        ({"meminfo": MACHINE, "v2_limit": "5000\n", "v2_used": "2000\n"}, 3000),
        ({"meminfo": MACHINE, "v1_limit": "9000\n", "v1_used": "2000\n"}, 7000),
        ({"meminfo": MACHINE, "v1_limit": "9223372036854771712\n", "v1_used": "2000\n"}, 1_024_000),
        ({"meminfo": MACHINE, "v2_limit": "10\n", "v2_used": "20\n"}, 0),
        ({}, UNKNOWN),
    ],
)
def test_the_least_that_is_known_is_free(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory(CPU, system(tmp_path, **files)) == free


def test_this_machine_has_some() -> None:
    assert free_memory(CPU) > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keeps memory with the GNU C library alone")
def test_kept_memory_is_used_again_without_the_systems_help() -> None:
    program = (
        "import resource, torch\n"
        "from model.runtime.memory import keep_memory\n"
        "keep_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work(): return torch.empty(10 << 20).fill_(1)\n"
        "for _ in range(30): work()\n"
        "before = faults()\n"
        "for _ in range(10): work()\n"
        "print(faults() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 10_240  # what one of the ten tensors has pages
