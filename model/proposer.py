"""The proposer of a package: goal- and time-conditioned inverse dynamics on its latents.

Told where the robot is, where it should be and in how many actions, it says which actions do it. What it says competes
with a search's own candidates, and by itself it is a policy that answers in one forward pass. Any family's package may
hold one: a file of weights beside the package's own, and its shapes in the config.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.layers.row_linear import RowLinear
from model.normalizer import ActionNormalizer
from model.package import ActionSpec, Package, PackageError, latent_digest

PROPOSER = "proposer.safetensors"


@dataclass(frozen=True)
class ProposerConfig:
    """Shapes, and what it was trained on."""

    latent: int  # numbers of a latent, tokens averaged
    action_width: int  # numbers per action block: actions x dimensions
    blocks: int  # action blocks it tells in one pass
    longest: int  # steps to go that it was trained for, at most
    trained_on: str  # the package's `latent_digest`
    width: int = 512
    depth: int = 3  # hidden layers
    reading: int = 0  # numbers that a straight line reads off a latent first; 0: it sees the latent itself
    products: bool = False  # whether it reads products of every two numbers of latent and goal: for latents of few
    proprioception: int = 0  # numbers a robot measures of itself, read where they are known


class ProposerNetwork(nn.Module):
    """Latent, goal and steps to go to action blocks in network units."""

    reading_weight: Tensor
    reading_bias: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    measured_mean: Tensor
    measured_std: Tensor

    def __init__(self, config: ProposerConfig) -> None:
        super().__init__()
        self.config = config
        seen = config.reading or config.latent
        if config.reading:
            self.register_buffer("reading_weight", torch.zeros(config.latent, config.reading))
            self.register_buffer("reading_bias", torch.zeros(config.reading))
        for name, count in (("latent", seen), ("measured", config.proprioception)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))  # of the training episodes
            self.register_buffer(f"{name}_std", torch.ones(count))
        known = config.proprioception + 1 if config.proprioception else 0
        read = 3 * seen + 3 + known + (4 * seen**2 if config.products else 0)
        layers: list[nn.Module] = [RowLinear(read, config.width), nn.GELU()]
        for _ in range(config.depth - 1):
            layers += [RowLinear(config.width, config.width), nn.GELU()]
        self.layers = nn.Sequential(*layers, RowLinear(config.width, config.blocks * config.action_width))

    def forward(
        self,
        latent: Float[Tensor, "batch latent"],
        goal: Float[Tensor, "batch latent"],
        steps_to_go: Float[Tensor, " batch"],
        proprioception: Float[Tensor, "batch numbers"] | None = None,
    ) -> Float[Tensor, "batch blocks action_width"]:
        """`steps_to_go` counts robot actions; `proprioception` is in the robot's units, NaN in a row: not measured."""
        return self.of_read(self.read(latent), self.read(goal), steps_to_go, proprioception)

    def of_read(
        self,
        seen: Float[Tensor, "batch seen"],
        wanted: Float[Tensor, "batch seen"],
        steps_to_go: Float[Tensor, " batch"],
        proprioception: Float[Tensor, "batch numbers"] | None = None,
    ) -> Float[Tensor, "batch blocks action_width"]:
        """The same of latents that are read already (`read`)."""
        here, there = ((each - self.latent_mean) / self.latent_std for each in (seen, wanted))
        share = (steps_to_go.clamp(min=1) / self.config.longest).unsqueeze(-1)
        told = [here, there, there - here, share, share.sqrt(), 1 / (steps_to_go.clamp(min=1).unsqueeze(-1))]
        if self.config.products:
            both = torch.cat([here, there], dim=-1)
            told.append((both.unsqueeze(-1) * both.unsqueeze(-2)).flatten(-2))
        if self.config.proprioception:
            told += self._measured(proprioception, seen)
        actions: Tensor = self.layers(torch.cat(told, dim=-1))
        return actions.reshape(*actions.shape[:-1], self.config.blocks, self.config.action_width)

    def read(self, latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch seen"]:
        """What the layers see of a latent."""
        return latent @ self.reading_weight + self.reading_bias if self.config.reading else latent

    def _measured(self, proprioception: Tensor | None, like: Tensor) -> list[Tensor]:
        """What is measured in spreads of the training episodes, 0 where nothing is, and which rows are measured."""
        if proprioception is None:
            proprioception = like.new_full((len(like), self.config.proprioception), torch.nan)
        known = proprioception.isfinite().all(dim=-1, keepdim=True)
        scaled = (proprioception - self.measured_mean) / self.measured_std
        return [torch.where(known, scaled, 0.0).nan_to_num(0.0, 0.0, 0.0), known.to(like.dtype)]


class PackageProposer:
    """A package's proposer in use: satisfies `planner.proposals.Proposer`."""

    def __init__(self, network: ProposerNetwork, action: ActionSpec, device: torch.device) -> None:
        self._network = network.to(device).eval().requires_grad_(False)
        self._normalizer = ActionNormalizer(action).to(device)
        low, high = torch.tensor(action.low), torch.tensor(action.high)
        self._rest = torch.zeros_like(low).clamp(low, high).to(device)
        self.block = action.block
        self.longest = network.config.longest

    @torch.no_grad()
    def propose(
        self,
        context: tuple[Tensor, ...],
        goal: Float[Tensor, "batch *latent"],  # noqa: F821  # a shape
        steps_to_go: Float[Tensor, "batch n"],
    ) -> Float[Tensor, "batch n time action"]:
        """Actions in robot units for each number of steps to go, in one pass; then rest (0, or nearest to it)."""
        now = context[0] if context[0].ndim == 2 else context[0][:, -1]
        measured = None
        if self._network.config.proprioception and len(context) > 1:
            measured = context[1].repeat_interleave(steps_to_go.shape[1], dim=0)
        latents = now.unsqueeze(1).expand(-1, steps_to_go.shape[1], *now.shape[1:])
        return self._propose(latents, goal, steps_to_go, measured)

    @torch.no_grad()
    def propose_from(
        self,
        latents: Float[Tensor, "batch n *latent"],
        goal: Float[Tensor, "batch *latent"],  # noqa: F821  # a shape
        steps_to_go: Float[Tensor, "batch n"],
    ) -> Float[Tensor, "batch n time action"]:
        """The same from predicted latents, one for each number of steps to go; nothing is measured there."""
        return self._propose(latents, goal, steps_to_go, None)

    def _propose(self, latents: Tensor, goal: Tensor, steps_to_go: Tensor, measured: Tensor | None) -> Tensor:
        batch, count = steps_to_go.shape
        goals = goal.unsqueeze(1).expand(-1, count, *goal.shape[1:])
        blocks = self._network(
            _vectors(latents.flatten(0, 1)).float(),
            _vectors(goals.flatten(0, 1)).float(),
            steps_to_go.flatten().float(),
            measured,
        )
        actions = self._normalizer.inverse(blocks.view(batch, count, -1, len(self._rest)))
        step = torch.arange(actions.shape[2], device=actions.device)
        under_way = step < steps_to_go.unsqueeze(-1)  # [batch, n, time]
        return torch.where(under_way.unsqueeze(-1), actions, self._rest)


class AnyProposer(Protocol):
    """What a `PackageProposer` answers, and what stands in front of one."""

    @property
    def longest(self) -> int: ...

    def propose(self, context: tuple[Tensor, ...], goal: Tensor, steps_to_go: Tensor) -> Tensor: ...

    def propose_from(self, latents: Tensor, goal: Tensor, steps_to_go: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class BehindFirst:
    """A proposer for contexts that have one entry more in front than those it knows."""

    inner: AnyProposer

    @property
    def longest(self) -> int:
        return self.inner.longest

    def propose(self, context: tuple[Tensor, ...], goal: Tensor, steps_to_go: Tensor) -> Tensor:
        """As `PackageProposer.propose`, from the rest of the context."""
        return self.inner.propose(context[1:], goal, steps_to_go)

    def propose_from(self, latents: Tensor, goal: Tensor, steps_to_go: Tensor) -> Tensor:
        """As `PackageProposer.propose_from`."""
        return self.inner.propose_from(latents, goal, steps_to_go)


def _vectors(latents: Tensor) -> Float[Tensor, "batch latent"]:
    """As they are, or the mean over their tokens."""
    return latents if latents.ndim == 2 else latents.flatten(1, -2).mean(dim=1)


def load_proposer(package: Package, device: torch.device) -> PackageProposer | None:
    """The package's proposer; None where it has none.

    Raises PackageError for a file without settings or settings without a file, weights that do not fit, and a proposer
    that was trained on another package's latents.
    """
    path, settings = package.folder / PROPOSER, package.config.proposer
    if settings is None and not path.exists():
        return None
    if settings is None:
        raise PackageError(f"{path} is there, but config.json has no proposer that says what it is")
    if not path.exists():
        raise PackageError(f"{package.folder} has no {PROPOSER}, which its config.json describes")
    config = read_proposer_config(settings, package.config.name)
    own = latent_digest(package.weights())
    if config.trained_on != own:
        raise PackageError(
            f"{path} must be trained on the package's own latents (encoder {own[:12]}), "
            f"got a proposer of encoder {config.trained_on[:12]}: train one for this package"
        )
    action = package.config.action
    if action is None or config.action_width != action.block * len(action.names):
        raise PackageError(f"{path} must tell blocks of the package's own actions, got {config.action_width} numbers")
    network = ProposerNetwork(config)
    try:
        network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()}, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise PackageError(f"{path}: the weights do not fit the config: {error}") from error
    return PackageProposer(network, action, device)


def read_proposer_config(settings: dict[str, Any], name: str) -> ProposerConfig:
    """PackageError names an unknown or missing key."""
    known = {field.name for field in fields(ProposerConfig)}
    if unknown := sorted(set(settings) - known):
        raise PackageError(f"{name}: proposer has an unknown key: {unknown[0]}")
    try:
        return ProposerConfig(**settings)
    except TypeError as error:
        raise PackageError(f"{name}: proposer: {error}") from error


def save_proposer(folder: Path, network: ProposerNetwork) -> dict[str, Any]:
    """Write the weights beside a package's own, the layers' matrices in bfloat16; the settings for its config."""
    kept = {
        name: (weight.to(torch.bfloat16) if name.startswith("layers.") and weight.ndim >= 2 else weight)
        .detach()
        .cpu()
        .contiguous()
        for name, weight in network.state_dict().items()
    }
    temporary = folder / f".{PROPOSER}.new"
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode  # of a file made here; safetensors would keep it from all other users
    save_file(kept, temporary)
    temporary.chmod(mode)
    temporary.replace(folder / PROPOSER)
    return asdict(network.config)
