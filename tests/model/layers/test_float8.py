"""Matrix products in 8-bit floats: near the exact ones, token by token, and only where they are worth it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.compact.world_model import CompactWorldModel
from model.layers.float8 import E4M3, Float8Linear, has_units, quantize, quantize_linears
from model.registry import as_trained, find

CPU = torch.device("cpu")


def layer(width: int, out: int, bias: bool = True) -> nn.Linear:
    made = nn.Linear(width, out, bias=bias).to(torch.bfloat16).requires_grad_(False)
    made.weight.copy_(torch.randn(out, width, generator=torch.Generator().manual_seed(0)) * width**-0.5)
    return made


def rows(count: int, width: int, seed: int = 1) -> torch.Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (drawn * torch.logspace(-4, 4, count).unsqueeze(-1)).to(torch.bfloat16)  # of very different sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_number_is_known_to_a_sixteenth_of_itself_or_a_little_of_its_rows_largest(dtype: torch.dtype) -> None:
    given = rows(50, 300).to(dtype)
    quantized, scale = quantize(given)
    assert quantized.dtype == E4M3
    back, exact = quantized.float() * scale, given.float()
    largest = exact.abs().amax(-1, keepdim=True)
    assert bool(((back - exact).abs() <= exact.abs() / 15 + largest * 2**-17).all())
    assert bool((back.abs().amax(-1, keepdim=True) <= 1.01 * largest).all())
    assert torch.equal(quantize(torch.zeros(2, 8, dtype=dtype))[0].float(), torch.zeros(2, 8))


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_near_the_exact_one_for_rows_of_every_size(bias: bool) -> None:
    exact = layer(256, 320, bias=False)
    other = nn.Linear(256, 320, bias=bias).to(torch.bfloat16).requires_grad_(False)
    other.weight.copy_(exact.weight)
    given = rows(24, 256).unflatten(0, (4, 6))
    found = Float8Linear(other)(given)
    wanted = given.double() @ other.weight.double().T + (other.bias.double() if bias else 0)
    assert found.shape == (4, 6, 320)
    assert found.dtype == torch.bfloat16
    size = (given.double() @ other.weight.double().T).square().mean(-1).sqrt()
    error = (found.double() - wanted).square().mean(-1).sqrt()
    # Two roundings of 2^-4 at most, evenly spread: each adds about 2.6 % of the root mean square.
    assert bool((error <= 0.06 * size + 0.004 * wanted.abs().amax(-1)).all())


def test_a_row_does_not_depend_on_its_company() -> None:
    product, given = Float8Linear(layer(256, 256)), rows(12, 256)
    spoilt = given.clone()
    spoilt[3:] = 1e30
    spoilt[5, 0] = torch.nan
    assert torch.allclose(product(given)[:3].float(), product(spoilt)[:3].float(), rtol=1e-2)
    assert bool(product(spoilt)[5].isnan().all())
    assert not bool(product(spoilt)[[0, 1, 2]].isnan().any())


def test_slopes_are_near_those_of_the_exact_layer() -> None:
    exact = layer(256, 256)
    given = rows(1, 256).expand(6, -1).clone().requires_grad_()
    weights = torch.randn(6, 256, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    slopes = [torch.autograd.grad((each(given) * weights).sum(), given)[0] for each in (exact, Float8Linear(exact))]
    cosine = torch.cosine_similarity(slopes[0].float(), slopes[1].float(), dim=-1)
    assert bool((cosine > 0.999).all())
    assert bool((cosine < 1).any())


def test_only_large_layers_whose_sides_fit_are_quantized() -> None:
    network = nn.Sequential(layer(256, 256), nn.Sequential(layer(16, 16), layer(520, 256)), layer(256, 512))
    quantize_linears(network)
    kinds = [type(network[0]), type(network[1][0]), type(network[1][1]), type(network[2])]
    assert kinds == [Float8Linear, nn.Linear, nn.Linear, Float8Linear]
    assert sum(buffer.element_size() for buffer in network[0].buffers() if buffer.dtype == E4M3) == 1


def test_a_model_in_8_bit_floats_predicts_nearly_the_same_and_embeds_the_same() -> None:
    arm = as_trained(find("arm"), CPU)
    lowered = arm.to_precision(E4M3)
    assert isinstance(lowered, CompactWorldModel)
    assert lowered.dtype == E4M3
    quantized = [module for module in lowered._network.modules() if isinstance(module, Float8Linear)]
    assert len(quantized) >= 9  # three blocks, of each at least one projection and the two of its MLP
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(arm.encode(frames), lowered.encode(frames))
    context = arm.context([arm.encode(frames)[0]], None)
    actions = 2 * torch.rand(1, 20, 25, 2, generator=torch.Generator().manual_seed(1)) - 1
    exact, found = (model.rollout(context, actions) for model in (arm, lowered))
    assert found.dtype == torch.float32
    moved = (exact - context[0]).square().mean().sqrt()
    error = (found - exact).square().mean().sqrt()
    assert 0 < error < 0.05 * moved
    alone = lowered.rollout(context, actions[:, 3:4])
    assert torch.allclose(found[:, 3:4], alone, atol=0.02 * float(moved))
    actions.requires_grad_()
    slopes = [torch.autograd.grad(model.rollout(context, actions).sum(), actions)[0] for model in (arm, lowered)]
    assert torch.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) > 0.98


def test_processors_have_no_units_for_it() -> None:
    assert not has_units(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.is_available() and not has_units(torch.device("cuda")), reason="needs FP8 units")
@pytest.mark.parametrize("bias", [True, False])
def test_an_accelerator_multiplies_as_the_processor_does(bias: bool) -> None:
    product, given = Float8Linear(layer(1024, 4096, bias)), rows(300, 1024)
    there = product.to("cuda")(given.to("cuda")).cpu()
    assert torch.allclose(there.float(), product.to(CPU)(given).float(), rtol=2e-2, atol=1e-2)
