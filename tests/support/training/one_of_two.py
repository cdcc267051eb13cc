"""A process of a shared training, for `test_ranks`: python -m tests.support.training.one_of_two FOLDER."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from model.compact.network import CompactConfig
from model.normalizer import ActionNormalizer
from tests.support.training.dots import RECIPE, dot_episodes
from training.compact.initialization import labeled
from training.compact.objective import losses, make_learner
from training.compact.recipe import package_config
from training.compact.sigreg import _EppsPulley
from training.compact.train import TrainProgress, train
from training.compact.windows import Windows, sample_batch
from training.distributed import ProcessGroup, joined, share_batch_norms

SHARED = replace(RECIPE, steps=4, bfloat16=False, accumulate=2, normed_stem=False, labels=1.0)


def main(folder: Path) -> None:
    """Writes the statistic and gradients of one batch, and the log of a short training, as this process has them."""
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as group:
        torch.save(statistic(group), folder / f"statistic{group.rank}.pt")
        torch.save(normed_images(group), folder / f"images{group.rank}.pt")
        torch.save(gradients(group), folder / f"gradients{group.rank}.pt")
        log: list[TrainProgress] = []
        train(SHARED, dot_episodes(), "dot", folder / "dot", log.append, provenance={}, group=group)
        (folder / f"log{group.rank}.json").write_text(json.dumps([asdict(line) for line in log]))


def statistic(group: ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """SIGReg of a batch in double precision, and its slope at this process's samples."""
    everybody = torch.randn(3, 20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    own = everybody[:, group.part(20)].requires_grad_()
    value = _EppsPulley.apply(own, group)
    return value.detach(), torch.autograd.grad(value, own)[0]


def normed_images(group: ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Images behind a batch norm in double precision, and the slope at this process's own."""
    everybody = torch.randn(6, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).double()
    share_batch_norms(network, group)
    own = everybody[group.part(6)].requires_grad_()
    normed = network(own)
    return normed.detach(), torch.autograd.grad((normed.square() * own.detach()).sum(), own)[0]


def gradients(group: ProcessGroup) -> dict[str, torch.Tensor]:
    """Of every weight of a fresh network, for one batch, as an optimizer would get them."""
    episodes = labeled(dot_episodes())
    config = package_config(SHARED, episodes, "dot")
    assert config.action is not None
    torch.manual_seed(3)
    normalizer = ActionNormalizer(config.action)
    learner = make_learner(
        CompactConfig(**config.network), normalizer, torch.device("cpu"), group, episodes.label_count()
    )
    windows = Windows(batch=16, horizon=2, block=2, latent=16, directions=64)
    batch = sample_batch(episodes, windows, torch.Generator().manual_seed(4), group)
    given = (batch.frames, batch.actions, batch.directions)
    found = losses(learner, *given, labels=batch.labels, bfloat16=False, group=group)
    (found.prediction + 0.3 * found.regularizer + 0.2 * found.inverse + found.labels).backward()
    group.average_gradients(learner.parameters())
    return {name: weight.grad for name, weight in learner.named_parameters() if weight.grad is not None}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
