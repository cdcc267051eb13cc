"""Which device a name stands for, and whether this machine has it."""

from __future__ import annotations

import torch


class DeviceError(RuntimeError):
    """A device that cannot be used here; `reason` is torch's, on one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"device {name} cannot be used here: {reason}; auto takes the best there is")
        self.reason = reason


def usable(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator if there is one. Raises DeviceError where there is none."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(name, str(error).splitlines()[0]) from None
    return chosen
