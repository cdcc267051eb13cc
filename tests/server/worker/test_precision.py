"""How an engine chooses its precision and threads, with real networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from model.compact.world_model import CompactWorldModel
from model.interface import LoadedModel
from model.layers.float8 import E4M3
from model.layers.int8 import has_vnni
from model.offset_free import OffsetFreeModel
from model.package import write_package
from model.registry import load
from model.vjepa2.config import EncoderConfig
from model.vjepa2.package_config import package_config
from server.engine.messages import SearchSize
from server.worker import precision
from server.worker.process import own_search
from tests.support.model.tiny_vjepa2 import encoder, published
from tests.support.server.linear import CONFIGS, GAIN, Linear

CPU = torch.device("cpu")
SIZE = SearchSize(samples=48, iterations=4, elites=6, horizon=3)


@pytest.fixture(scope="module")
def wide_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that only embeds, with layers wide enough for 8-bit integers."""
    shape = EncoderConfig(width=256, depth=2, heads=4, mlp_hidden=256, patch=8)
    model = replace(published(acts=False), encoder=shape, predictor=None)
    weights = {f"encoder.{name}": weight for name, weight in encoder(shape).state_dict().items()}
    folder = tmp_path_factory.mktemp("packages") / "wide"
    write_package(folder, package_config(model, "a test", "none", torch.float32), weights, "# wide\n")
    return folder


class Coarse:
    """A model whose lower precision is ruined: a share of what its predictor weighs is noise."""

    def __init__(self, model: CompactWorldModel, noise: float) -> None:
        self.model, self.noise = model, noise
        self.package, self.device, self.block, self.dtype = model.package, model.device, model.block, model.dtype
        self.encode, self.embed_clip, self.context = model.encode, model.embed_clip, model.context
        self.rollout, self.proposer = model.rollout, model.proposer

    def to_precision(self, dtype: torch.dtype) -> LoadedModel:
        lowered = CompactWorldModel.from_package(self.package, self.device, dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in lowered._network.predictor.parameters():
                weight += self.noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        return lowered


def test_a_precision_that_chooses_the_same_actions_agrees_and_a_ruined_one_does_not() -> None:
    arm = load("arm", CPU)
    size = own_search(arm.package.config.planner)
    problems = precision.imagined_problems(arm, size, count=3)
    same = precision.agreement(arm, arm, size, problems)
    assert (same.gap, same.excess) == (0, 0)
    lowered = precision.agreement(arm, arm.to_precision(torch.bfloat16), size, problems)
    assert lowered.gap > 0
    assert lowered.holds
    assert isinstance(arm, OffsetFreeModel)
    assert isinstance(arm.model, CompactWorldModel)
    ruined = OffsetFreeModel(Coarse(arm.model, noise=1.0).to_precision(torch.bfloat16), arm.rest)
    assert not precision.agreement(arm, ruined, size, problems).holds


def test_a_ruined_precision_is_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(precision, "GATE_S", float("inf"))  # a test must not depend on how busy its machine is
    arm = load("arm", CPU)
    assert isinstance(arm, OffsetFreeModel)
    assert isinstance(arm.model, CompactWorldModel)
    ruined = cast(LoadedModel, Coarse(arm.model, noise=1.0))
    served, verdict = precision.with_best_precision(ruined, SIZE)
    assert served is ruined
    assert "does not agree" in verdict.why
    assert verdict.dtype is torch.float32


def test_a_precision_that_is_not_faster_is_not_taken(compact_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(compact_folder), CPU)
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 1e9)
    served, verdict = precision.with_best_precision(model, own_search(model.package.config.planner))
    assert served is model
    assert "times as fast" in verdict.why
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(precision, "GATE_S", 0.0)
    served, verdict = precision.with_best_precision(model, own_search(model.package.config.planner))
    assert served is model
    assert "would take" in verdict.why


def test_what_agrees_and_is_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(precision, "GATE_S", float("inf"))
    arm = load("arm", CPU)
    size = own_search(arm.package.config.planner)
    served, verdict = precision.with_best_precision(arm, size)
    assert served.dtype is verdict.dtype is torch.bfloat16
    again = precision.with_best_precision(served, size)
    assert (again[0], again[1].why) == (served, "it is loaded so")


def test_a_model_of_one_precision_keeps_it() -> None:
    model = Linear(CONFIGS["linear"])
    assert precision.with_best_precision(model, SIZE) == (model, precision.Verdict(torch.float32, "it is loaded so"))


def test_imagined_problems_are_the_same_every_time_and_their_goals_are_in_reach() -> None:
    model = Linear(CONFIGS["historian"])
    first, second = (precision.imagined_problems(model, SIZE) for _ in range(2))
    assert len(first) == precision.PROBLEMS
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.goal, other.goal)
        distance = (one.goal - one.context[0][0]).abs()
        assert bool((distance <= GAIN * SIZE.horizon * model.block).all())
        assert bool((distance > 0).all())


def test_threads_are_chosen_among_those_available_and_left_as_they_were() -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()
    chosen = precision.fastest_threads(lambda: seen.add(torch.get_num_threads()), available=3)
    assert chosen in seen == {1, 2, 3}
    assert torch.get_num_threads() == before
    assert precision.fastest_threads(lambda: None, available=1) == 1
    assert precision.available_cpus() >= 1


def test_lowering_keeps_latents_and_inputs_in_float32() -> None:
    model = load("arm", CPU)
    lowered = model.to_precision(torch.bfloat16)
    assert model.to_precision(torch.float32) is model
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(model.encode(frames), lowered.encode(frames))
    context = model.context([model.encode(frames)[0]], None)
    actions = 2 * torch.rand(1, 5, 25, 2) - 1
    own, other = model.rollout(context, actions), lowered.rollout(context, actions)
    assert other.dtype == torch.float32
    assert 0 < (own - other).abs().max() < 0.05 * own.abs().max()


def test_8_bit_floats_are_judged_by_the_plans_they_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(precision, "GATE_S", float("inf"))
    monkeypatch.setattr(precision, "has_units", lambda device: True)
    arm = load("arm", CPU)
    served, verdict = precision.with_best_precision(arm, SIZE)
    measured = precision.agreement(arm, arm.to_precision(E4M3), SIZE, precision.imagined_problems(arm, SIZE))
    assert measured.gap > 0
    assert (verdict.dtype == E4M3) == measured.holds
    assert verdict.dtype == served.dtype
    monkeypatch.setattr(precision, "LARGEST_EXCESS", measured.excess)
    monkeypatch.setattr(precision, "LARGEST_GAP", measured.gap)
    served, verdict = precision.with_best_precision(arm, SIZE)
    assert served.dtype == verdict.dtype == E4M3
    monkeypatch.setattr(precision, "LARGEST_GAP", 0.0)
    served, verdict = precision.with_best_precision(arm, SIZE)
    assert served is arm
    assert "bfloat16 does not agree" in verdict.why
    assert "float8 does not agree" in verdict.why


@pytest.mark.skipif(not has_vnni(CPU), reason="this processor has no VNNI")
def test_8_bit_integers_are_judged_by_the_embeddings_of_an_encoder(
    wide_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)
    model = load(str(wide_encoder), CPU)
    size = own_search(model.package.config.planner)
    served, verdict = precision.with_best_precision(model, size)
    cosine, nearer = (
        precision._embedding_cosine(model, model.to_precision(dtype)) for dtype in (torch.int8, torch.bfloat16)
    )
    assert cosine < nearer < 1
    assert (verdict.dtype == torch.int8) == (cosine >= precision.LEAST_COSINE)
    monkeypatch.setattr(precision, "LEAST_COSINE", cosine)
    served, verdict = precision.with_best_precision(model, size)
    assert served.dtype == verdict.dtype == torch.int8
    monkeypatch.setattr(precision, "LEAST_COSINE", (nearer + cosine) / 2)
    served, verdict = precision.with_best_precision(model, size)
    assert served.dtype == torch.bfloat16
    assert "int8 embeddings have a cosine of" in verdict.why
    assert precision.in_precision(model, "int8").dtype == torch.int8


def test_8_bit_integers_are_refused_by_name_without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_vnni", lambda device: False)
    with pytest.raises(RuntimeError, match="precision int8 needs a processor with VNNI, got cpu"):
        precision.in_precision(load("arm", CPU), "int8")


def test_a_model_that_plans_is_in_bfloat16_where_8_bit_integers_are_asked_for() -> None:
    assert load("arm", CPU).to_precision(torch.int8).dtype == torch.bfloat16


def test_a_precision_that_is_set_is_taken_where_the_device_has_units_for_it() -> None:
    arm = load("arm", CPU)
    assert precision.in_precision(arm, "float32") is arm
    assert precision.in_precision(arm, "bfloat16").dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="precision float8 needs a CUDA device .* got cpu"):
        precision.in_precision(arm, "float8")
