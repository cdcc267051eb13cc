"""A command in a network and process namespace of its own (Linux, root): Ray opens many ports, some of them on every
address, and starts many processes. In there nobody else reaches the ones, and the others end with the command."""

from __future__ import annotations

import subprocess

_UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--")


def inside(*command: str) -> list[str]:
    """`command` with loopback alone."""
    return [*_UNSHARE, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


def possible() -> bool:
    """Whether this machine and user can make one."""
    try:
        return subprocess.run(inside("true"), capture_output=True, check=False).returncode == 0
    except OSError:
        return False
