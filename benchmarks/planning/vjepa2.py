"""The V-JEPA 2 family at its real widths, with random weights: plans and clip embeddings.

On a processor the networks are cut to a few of their 24 layers (said in the tables), on an accelerator they are whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.baselines.vjepa2_ac import PublishedLoop
from benchmarks.planning.timing import Table, Work, interleaved, matrix_rate, operations
from model.layers.int8 import has_vnni, quantize_linears
from model.layers.prepacked_linear import pack_linears
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.config import EncoderConfig
from model.vjepa2.encoder import Encoder
from model.vjepa2.rollout import normalize, rollout
from planner.optimizers.cem import CEM
from planner.types import Problem
from planner.vjepa2_ac import vjepa2_ac_space

LAYERS = 24
CLIP_FRAMES, CLIP_SIZE = 16, 256


@dataclass(frozen=True, eq=False)
class Acting:
    """The predictor alone as a world model."""

    predictor: ActionPredictor
    block: int = 1

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        latents, poses, past = context
        return rollout(self.predictor, latents.to(self.predictor.predictor_proj.weight.dtype), poses, past, actions)


def plans(
    device: torch.device, layers: int, samples: int, horizons: tuple[int, ...], repeats: int, iterations: int = 1
) -> tuple[Table, dict[str, float]]:
    """Plans of the published search against the published loop, and against the machine's matrix rate."""
    predictor = _still(ActionPredictor(ActionPredictorConfig(latent_width=1408, depth=layers))).to(device)
    lowered = copy.deepcopy(predictor).to(torch.bfloat16)
    pack_linears(lowered.predictor_blocks)
    generator = torch.Generator().manual_seed(0)
    asked = problem(device)
    context, goal = asked.context, asked.goal
    latent, pose = context[0][0, 0], context[1][0, 0]
    rate = matrix_rate(torch.bfloat16, device)
    rows: list[tuple[object, ...]] = []
    ratios: dict[str, float] = {}
    for horizon in horizons:
        loop = PublishedLoop(samples=samples, iterations=iterations, elites=2, horizon=horizon)
        draws = torch.randn(iterations, horizon, samples, 4, generator=generator)
        sized = replace(
            CEM.vjepa2_ac_paper(), samples=samples, iterations=iterations, elites=2, horizon=horizon, result="best"
        )
        works: dict[str, Work] = {
            "loop": lambda loop=loop, draws=draws: loop.plan(predictor, latent, pose, goal, draws),  # type: ignore[misc]
            "float32": planned(sized, Acting(predictor), asked),
            "bfloat16": planned(sized, Acting(lowered), asked),
        }
        ms = interleaved(works, repeats)
        candidates = torch.zeros(1, samples, horizon, 7, device=device)
        counted = operations(lambda c=candidates: Acting(predictor).rollout(context, c)) * iterations  # type: ignore[misc]
        floor = 1e3 * counted / rate
        rows.append(
            (samples, iterations, horizon, ms["loop"], ms["float32"], ms["bfloat16"], ms["loop"] / ms["bfloat16"],
             counted / 1e9, ms["bfloat16"] / floor)
        )  # fmt: skip
        ratios[f"horizon_{horizon}"] = ms["loop"] / ms["bfloat16"]
    columns = (
        "samples", "iterations", "horizon", "published loop ms", "float32 ms", "bfloat16 ms", "times as fast", "GFLOP",
        "time / floor",
    )  # fmt: skip
    note = (
        f"{layers} of 24 layers, 1024 wide, 256 patches a frame, random weights, {device.type}. "
        f"The floor is the GFLOP at the bfloat16 matrix rate of this run, {rate / 1e9:.0f} GFLOP/s."
    )
    return Table("V-JEPA 2-AC plans", note, columns, rows), ratios


def problem(device: torch.device) -> Problem:
    """From one random frame to another, at the published sizes."""
    latent, goal = normalize(torch.randn(2, 256, 1408, generator=torch.Generator().manual_seed(0))).to(device)
    pose = torch.tensor([0.4, 0.0, 0.3, 3.0, 0.0, 0.0, 0.5], device=device)
    context = (latent[None, None], pose[None, None], pose.new_zeros(1, 0, 7))
    return Problem(context, goal, vjepa2_ac_space(), seed=0)


def embeddings(device: torch.device, layers: int, repeats: int) -> tuple[Table, dict[str, float]] | None:
    """Embedding a clip with ViT-L, against `transformers`; None where it is not installed.

    Ratios are by precision: bfloat16, and 8-bit integers where the device has units for them.
    """
    try:
        from transformers import VJEPA2Config, VJEPA2Model
    except ImportError:
        return None
    theirs = _still(VJEPA2Model(VJEPA2Config(num_hidden_layers=layers, pred_num_hidden_layers=1))).to(device)
    ours = _still(Encoder(EncoderConfig(width=1024, depth=layers, heads=16, mlp_hidden=4096))).to(device)
    lowered = copy.deepcopy(ours).to(torch.bfloat16)
    pack_linears(lowered.blocks)
    clip = torch.randn(1, CLIP_FRAMES, 3, CLIP_SIZE, CLIP_SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    video = clip.transpose(1, 2)

    @torch.inference_mode()
    def of_theirs() -> Tensor:
        hidden: Tensor = theirs(clip, skip_predictor=True).last_hidden_state
        return hidden

    @torch.inference_mode()
    def exact() -> Tensor:
        tokens: Tensor = ours(video)
        return tokens

    @torch.inference_mode()
    def fast() -> Tensor:
        tokens: Tensor = lowered(video.to(torch.bfloat16))
        return tokens

    lower: dict[str, Callable[[], Tensor]] = {"bfloat16": fast}
    if has_vnni(device):
        quantized = copy.deepcopy(ours).to(torch.bfloat16)
        quantize_linears(quantized.blocks)

        @torch.inference_mode()
        def in_integers() -> Tensor:
            tokens: Tensor = quantized(video.to(torch.bfloat16))
            return tokens

        lower["int8"] = in_integers
    works: dict[str, Work] = {"theirs": of_theirs, "float32": exact, **lower}
    if device.type != "cpu":  # where who embeds for a living would lower theirs as well
        their_lowered = copy.deepcopy(theirs).to(torch.bfloat16)

        @torch.inference_mode()
        def of_their_lowered() -> Tensor:
            hidden: Tensor = their_lowered(clip.to(torch.bfloat16), skip_predictor=True).last_hidden_state
            return hidden

        works["theirs, lowered"] = of_their_lowered
    ms = interleaved(works, repeats)
    rate, counted = matrix_rate(torch.bfloat16, device), operations(exact)
    own = exact().flatten(0, 1)
    near = {
        name: torch.cosine_similarity(own, tokens().flatten(0, 1).float(), dim=-1).min().item()
        for name, tokens in lower.items()
    }
    ratios = {name: ms["theirs"] / ms[name] for name in lower}
    rows: list[tuple[object, ...]] = [
        ("transformers, float32", ms["theirs"], 1.0, ""),
        *(
            ("transformers, bfloat16", ms[name], ms["theirs"] / ms[name], "")
            for name in ms
            if name == "theirs, lowered"
        ),
        ("Presage, float32", ms["float32"], ms["theirs"] / ms["float32"], ""),
        *((f"Presage, {name}", ms[name], ratios[name], f"{cosine:.5f}") for name, cosine in near.items()),
        (
            f"floor of bfloat16 at {rate / 1e9:.0f} GFLOP/s",
            1e3 * counted / rate,
            ms["theirs"] * rate / counted / 1e3,
            "",
        ),
    ]
    note = f"{CLIP_FRAMES} frames of {CLIP_SIZE} px, {layers} of 24 layers, random weights, {device.type}."
    columns = ("", "ms", "times as fast", "least cosine of a token to float32")
    return Table("Clip embedding, ViT-L", note, columns, rows), ratios


def planned(optimizer: CEM, model: Acting, problem: Problem) -> Callable[[], Tensor]:
    """The work of planning once."""
    return lambda: optimizer.plan(model, problem).actions


def _still(network: torch.nn.Module):  # type: ignore[no-untyped-def]
    return network.eval().requires_grad_(False)
