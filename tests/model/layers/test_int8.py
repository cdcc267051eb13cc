"""Matrix products in 8-bit integers: near the exact ones, token by token, and only where they are worth it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.layers import int8
from model.layers.int8 import Int8Linear, has_vnni, quantize, quantize_linears
from model.layers.prepacked_linear import pack_linears
from model.vjepa2.config import EncoderConfig
from model.vjepa2.encoder import Encoder

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not has_vnni(CPU), reason="this processor has no VNNI")


def layer(width: int, out: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).to(torch.bfloat16).requires_grad_(False)


def rows(count: int, width: int) -> torch.Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    return (drawn * torch.logspace(-4, 4, count).unsqueeze(-1)).to(torch.bfloat16)  # of very different sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_number_is_known_to_a_part_of_its_rows_largest(dtype: torch.dtype) -> None:
    given = rows(400, 300).to(dtype)
    whole, scale = quantize(given)
    assert whole.dtype == torch.int8
    assert whole.abs().amax() <= 126
    largest = given.float().abs().amax(-1, keepdim=True)
    # Half a step for the integer, a quarter for what it was rounded from, and the scale's own rounding.
    assert bool(((whole.float() * scale.float() - given.float()).abs() <= largest * (0.76 / 126 + 2**-7)).all())
    assert torch.equal(quantize(torch.zeros(2, 8, dtype=dtype))[0], torch.zeros(2, 8, dtype=torch.int8))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 256), (4, 6, 256), (300, 256)])
def test_a_product_is_near_the_exact_one_for_rows_of_every_size(shape: tuple[int, ...], bias: bool) -> None:
    exact = layer(256, 320, bias)
    given = rows(shape[0], 256).view(shape[0], *(1,) * (len(shape) - 2), 256).expand(shape).contiguous()
    found = Int8Linear(exact)(given)
    product = given.double() @ exact.weight.double().T
    wanted = product + (exact.bias.double() if bias else 0)
    assert (found.shape, found.dtype) == ((*shape[:-1], 320), torch.bfloat16)
    error = (found.double() - wanted).square().mean(-1).sqrt()
    # Two roundings by steps of about a 42nd of the root mean square each, and what bfloat16 leaves of the sum.
    assert bool((error <= 0.02 * product.square().mean(-1).sqrt() + 0.004 * wanted.abs().amax(-1)).all())


@needs_vnni
def test_rows_that_are_worked_on_in_parts_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    product, given = Int8Linear(layer(256, 320)), rows(10, 256)
    whole = product(given), product.gelu(given)
    monkeypatch.setattr(int8, "AT_ONCE", 3 * 320)
    assert torch.equal(product(given), whole[0])
    assert torch.equal(product.gelu(given), whole[1])
    assert torch.equal(whole[1], F.gelu(whole[0]))


@needs_vnni
def test_a_row_does_not_depend_on_its_company() -> None:
    product, given = Int8Linear(layer(256, 256)), rows(12, 256)
    spoilt = given.clone()
    spoilt[3:] = 1e30
    spoilt[5, 0] = torch.nan
    spoilt[6, 0] = torch.inf
    found = product(spoilt)
    assert torch.equal(product(given)[:3], found[:3])
    assert bool(found[5:7].isnan().all())
    assert not bool(found[:5].isnan().any())


def test_only_wide_layers_are_quantized() -> None:
    network = nn.Sequential(layer(256, 256), nn.Sequential(layer(64, 512), layer(512, 256)))
    if not has_vnni(CPU):
        pytest.skip("this processor has no VNNI")
    quantize_linears(network)
    assert [type(each) for each in (network[0], network[1][0], network[1][1])] == [Int8Linear, nn.Linear, Int8Linear]


@needs_vnni
@torch.inference_mode()
def test_an_encoder_of_integers_tells_nearly_the_same() -> None:
    torch.manual_seed(0)
    exact = Encoder(EncoderConfig(width=256, depth=3, heads=4, mlp_hidden=1024)).eval()
    lowered = Encoder(exact.config).to(torch.bfloat16).eval()
    lowered.load_state_dict(exact.state_dict())
    quantize_linears(lowered.blocks)
    pack_linears(lowered.blocks)
    assert sum(isinstance(part, Int8Linear) for part in lowered.modules()) == 12
    video = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    own, found = exact(video), lowered(video.to(torch.bfloat16)).float()
    cosine = torch.cosine_similarity(own, found, dim=-1)
    assert 0.999 < cosine.min() < 1


def test_accelerators_have_units_of_their_own() -> None:
    assert not has_vnni(torch.device("cuda"))
