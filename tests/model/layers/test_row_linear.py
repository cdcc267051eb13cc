"""A linear layer whose rows do not depend on how many there are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.layers.row_linear import LEAST_ROWS, RowLinear


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 15, 16])
def test_a_few_rows_are_the_same_as_among_as_many_as_the_least(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = RowLinear(192, 576), torch.randn(LEAST_ROWS, 192)
    assert torch.equal(layer(x[:rows]), layer(x)[:rows])


def test_its_numbers_and_gradients_are_those_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = RowLinear(32, 8).double()
    usual = nn.Linear(32, 8).double()
    usual.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(ours).square().sum().backward()
    usual(theirs).square().sum().backward()
    assert layer(x).shape == (2, 3, 8)
    torch.testing.assert_close(layer(x), usual(x), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer.weight.grad, usual.weight.grad, rtol=1e-13, atol=1e-13)


def test_no_rows_give_no_rows() -> None:
    assert RowLinear(4, 3)(torch.empty(0, 4)).shape == (0, 3)
