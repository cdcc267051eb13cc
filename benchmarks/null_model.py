"""A model that costs nothing, so that what a service adds to a plan is all there is to measure. It plans no robot.

The latent of an image is the mean of two of its corners' pixels, and actions push it. `python -m benchmarks.null_model`
serves it on free ports and prints where, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.interface import ClipEmbedding
from model.package import ActionSpec, ImageSpec, Package, PackageConfig, PlannerDefaults
from server.config import load as load_settings
from server.observability.logging import configure_logging
from server.serving import serve
from server.transport.listeners import Addresses

SIDE = 256
CONFIG = PackageConfig(
    name="null",
    family="null",
    image=ImageSpec(SIDE, SIDE),
    latent_shape=(2,),
    network={},
    action=ActionSpec(
        names=("right", "down"),
        units=("m/s", "m/s"),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        rate_hz=10.0,
        block=1,
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
    ),
    planner=PlannerDefaults(samples=16, iterations=1, elites=4, horizon=5),
)


class NullModel:
    """Satisfies `model.interface.LoadedModel`."""

    def __init__(self) -> None:
        self.package = Package(CONFIG, Path("nowhere"), "0" * 64)
        self.device = torch.device("cpu")
        self.block = 1
        self.dtype = torch.float32
        self.proposer = None

    def to_precision(self, dtype: torch.dtype) -> NullModel:
        return self

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, ::255, 0, :2].float().mean(1) / 255

    def observation_warnings(self, frame: Tensor, proprioception: Tensor | None) -> tuple[str, ...]:
        return ()

    def embed_clip(self, frames: Tensor) -> ClipEmbedding:
        latents = self.encode(frames)
        return ClipEmbedding(latents.mean(0), latents, latents[:, None])

    def context(self, latents: Sequence[Tensor], proprioception: Tensor | None) -> tuple[Tensor, ...]:
        return (latents[-1][None],)

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        return context[0][:, None, None] + 0.05 * actions.cumsum(2)


def load(name: str, device: str) -> NullModel:
    return NullModel()


def main() -> None:
    flags = {"models": ["null"], "devices": ["cpu"], "engine_threads": 1, "grpc_port": 0, "http_port": 0}
    settings = load_settings(flags={**flags, "log_level": "warning", "limits": {"max_queue": 256, "sessions": 2048}})
    configure_logging(settings.log_format, settings.log_level)

    def announce(addresses: Addresses) -> None:
        print(json.dumps({"grpc": addresses.grpc, "rest": addresses.rest}), flush=True)

    asyncio.run(serve(settings, announce, load))


if __name__ == "__main__":
    # An engine is another process: it must find `load` under the module's own name, not as __main__'s.
    from benchmarks import null_model

    null_model.main()
