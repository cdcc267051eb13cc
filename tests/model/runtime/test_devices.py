"""Which device a name stands for."""

from __future__ import annotations

import pytest
import torch

from model.runtime.devices import DeviceError, usable


def test_auto_is_the_accelerator_or_the_processor() -> None:
    assert usable("auto") == (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    assert usable("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named_with_the_reason(name: str) -> None:
    with pytest.raises(
        DeviceError, match=f"device {name} cannot be used here: .+; auto takes the best there is"
    ) as caught:
        usable(name)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
