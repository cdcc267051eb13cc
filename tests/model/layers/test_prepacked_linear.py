"""Linear layers laid out once: the same numbers as plain ones, in every place that computes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.compact import CompactWorldModel
from model.layers import prepacked_linear
from model.layers.prepacked_linear import PackedLinear, can_pack, pack_linears
from model.layers.transformer import Block
from model.registry import as_trained, find

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_pack(), reason="this processor has no bfloat16 products to pack weights for")


def layer(width: int, out: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).to(torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 64), (1, 64), (7, 3, 64), (300, 64)])
def test_a_product_is_that_of_the_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    plain = layer(64, 96, bias)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = PackedLinear(plain)(given)
    assert found.shape == (*shape[:-1], 96)
    torch.testing.assert_close(found, plain(given), rtol=2**-7, atol=2**-9)  # a rounding of bfloat16


def test_a_view_is_multiplied_as_what_it_shows() -> None:
    plain = layer(64, 96)
    given = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)[:, ::2]
    torch.testing.assert_close(PackedLinear(plain)(given), plain(given), rtol=2**-7, atol=2**-9)


def test_gelu_is_taken_before_rounding() -> None:
    plain = layer(64, 96)
    given = 3 * torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    exact = F.gelu(F.linear(given.double(), plain.weight.double(), plain.bias.double()))
    found = PackedLinear(plain).gelu(given)
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-9)


def test_its_slope_is_that_of_the_plain_layer() -> None:
    plain = layer(64, 96)
    given = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    slopes = []
    for one in (plain, PackedLinear(plain)):
        point = given.clone().requires_grad_()
        one(point).float().square().sum().backward()
        slopes.append(point.grad)
    torch.testing.assert_close(slopes[0], slopes[1])


def test_only_bfloat16_layers_are_packed_and_blocks_go_on_as_before() -> None:
    block = Block(64, 4, 128).eval().requires_grad_(False)
    pack_linears(block)
    assert isinstance(block.attn.qkv, nn.Linear)
    block.to(torch.bfloat16)
    given = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    plain = block(given)
    pack_linears(block)
    assert all(isinstance(one, PackedLinear) for one in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))
    torch.testing.assert_close(block(given).float(), plain.float(), rtol=0.02, atol=0.02)


def test_a_served_model_plans_on_packed_layers_as_on_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = as_trained(find("arm"), CPU)
    assert isinstance(exact, CompactWorldModel)
    fast = exact.to_precision(torch.bfloat16)
    monkeypatch.setattr(prepacked_linear, "can_pack", lambda: False)
    plain = exact.to_precision(torch.bfloat16)
    counts = [sum(isinstance(part, PackedLinear) for part in one._network.predictor.modules()) for one in (fast, plain)]
    assert counts == [16, 0]  # three blocks of five, and what mixes an action block
    context = (torch.randn(1, 128, generator=torch.Generator().manual_seed(0)),)
    actions = torch.randn(1, 20, 25, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    one, other = (model.rollout(context, actions) for model in (fast, plain))
    assert (one - other).square().mean().sqrt() < 0.01 * other.std()
    slopes = [torch.autograd.grad(found.square().sum(), actions)[0] for found in (one, other)]
    assert (slopes[0] - slopes[1]).norm() < 0.05 * slopes[1].norm()
    with torch.no_grad():
        assert (fast.rollout(context, actions) - other).square().mean().sqrt() < 0.01 * other.std()
