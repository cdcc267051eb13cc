"""`presage train`: a world model from episodes, as a model package."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.exit_codes import CommandError
from cli.options import DeviceOption, calm_threads, checked_device
from cli.output import JsonFlag, Output, open_output, silent_output
from cli.train.progress import ProgressLine, follow
from cli.train.training_data import training_episodes

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from cli.train.config import TrainingConfig
    from training.compact.train import TrainProgress
    from training.data.episodes import Episodes
    from training.data.loading import Skipped
    from training.distributed import ProcessGroup

SHARED = "episodes"  # folder in OUT of what is gathered for several processes, until the training ends


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG_OR_TASK", help="A YAML file, or a task's name.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the package to write; resumes what lies there.",
            show_default="runs/NAME of the file or the task",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Recorded episodes; otherwise the config's dataset, or they are gathered first."),
    ] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=2, help="How many to gather.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the weights and the batches.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on a checkpoint in --out; without it one is used if it is there.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard/--no-tensorboard", help="Log to OUT/logs, where tensorboard is installed.")
    ] = True,
    json_: JsonFlag = False,
) -> None:
    """Train a compact world model end to end from pixels, or what the config's `family` says.

    Interrupted, the same command goes on where it was.

    Several accelerators or machines train as one: torchrun --nproc-per-node N -m cli train CONFIG --out OUT
    """
    calm_threads()
    output = open_output(json_)

    from cli.train.config import family_of, read_config

    out = out or Path("runs") / Path(config).stem
    family = family_of(config)
    chosen = read_config(config) if family == "compact" else None

    import torch

    from model.runtime.memory import keep_memory
    from training.checkpoint import CHECKPOINT
    from training.distributed import joined

    if resume and not (out / CHECKPOINT).is_file():
        raise CommandError(f"{out / CHECKPOINT} is not there: nothing to resume; leave --resume out to start")
    keep_memory()
    if threads:
        torch.set_num_threads(threads)
    where = checked_device(device)
    if chosen is None:
        with kept_on_interrupt(out):
            return _train_otherwise(family, output, config, out, data, steps, seed, where)
    recipe = replace(
        chosen.recipe,
        steps=chosen.recipe.steps if steps is None else steps,
        seed=chosen.recipe.seed if seed is None else seed,
    )
    chosen = replace(chosen, episodes=episodes or chosen.episodes, recipe=recipe)
    with kept_on_interrupt(out), joined(where) as group:
        if not group.first:
            output = silent_output()
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", where.index or 0)))
        shared = out / SHARED if group.world > 1 else None
        # One process decodes or gathers; the others map the files that it made.
        gathered, skipped = group.in_turn(partial(training_episodes, output, chosen, data, out, shared))
        folder, last = _fit(output, chosen, gathered, out, where, group, tensorboard)
        if group.first:
            _finish(output, chosen, gathered, skipped, folder, last)


@contextmanager
def kept_on_interrupt(out: Path) -> Iterator[None]:
    """Tell on Ctrl-C what is kept and how to go on; exit code 130."""
    from training.checkpoint import CHECKPOINT

    try:
        yield
    except KeyboardInterrupt:
        kept = out / CHECKPOINT
        there = (
            f"{kept} is kept; the same command goes on from it" if kept.is_file() else "no checkpoint was written yet"
        )
        sys.stderr.write(f"\npresage: interrupted: {there}\n")
        raise typer.Exit(130) from None


def _train_otherwise(
    family: str,
    output: Output,
    config: str,
    out: Path,
    data: Path | None,
    steps: int | None,
    seed: int | None,
    device: torch.device,
) -> None:
    """The families that `training.compact.train` does not train; in one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError(f"family {family} trains in one process: start it without torchrun")
    if family == "masked":
        from cli.train.masked import train_masked

        train_masked(output, config, out, data, steps, seed, device)
    elif family in ("proposer", "step-predictor"):
        from cli.train.frozen import FrozenFamily, train_frozen

        kind: FrozenFamily = "proposer" if family == "proposer" else "step-predictor"
        train_frozen(output, kind, config, out, data, steps, seed, device)
    else:
        from cli.train.action_conditioned import train_action_conditioned

        train_action_conditioned(output, config, out, data, steps, seed, device)


def _finish(
    output: Output,
    chosen: TrainingConfig,
    gathered: Episodes,
    skipped: tuple[Skipped, ...],
    folder: Path,
    last: TrainProgress,
) -> None:
    from model.package import read_package, write_package
    from training.data.frame_store import remove_frames
    from training.model_card import card

    remove_frames(folder)
    shutil.rmtree(folder / SHARED, ignore_errors=True)
    package = read_package(folder)
    write_package(folder, package.config, package.weights(), card(package.config))
    value: dict[str, Any] = {
        "folder": str(folder),
        "task": chosen.task or None,
        "episodes": gathered.source,
        "skipped": [asdict(entry) for entry in skipped],
        "steps": last.steps,
        "seconds": round(last.seconds, 1),
        "prediction_loss": last.prediction_loss,
        "held_out_loss": last.held_out_loss,
        "probe_r2": list(last.probe_r2),
        "weights_digest": package.weights_digest,
    }
    probe = f", probe R2 {min(last.probe_r2):.3f} to {max(last.probe_r2):.3f}" if last.probe_r2 else ""
    held_out = "" if last.held_out_loss is None else f" (held out {last.held_out_loss:.4f})"
    losses = f"loss {last.prediction_loss:.4f}{held_out}{probe}"
    told = f"{folder}: {last.steps} steps in {last.seconds / 60:.1f} min, {losses}"
    then = f"measure it with: presage eval --model {folder} --task {chosen.task}"
    output.result(value, f"{told}\n{then if chosen.task else f'serve it with: presage serve --model {folder}'}")


def _fit(
    output: Output,
    config: TrainingConfig,
    episodes: Episodes,
    out: Path,
    device: torch.device,
    group: ProcessGroup,
    tensorboard: bool,
) -> tuple[Path, TrainProgress]:
    """The finished package's folder and the last line of its log."""
    from model.registry import find
    from training.compact.train import train

    initial = find(config.init_from) if config.init_from else None

    def fit(advance: Callable[[TrainProgress], None]) -> Path:
        def progress(line: TrainProgress) -> None:
            if group.first:
                log(line)
            advance(line)

        return train(
            config.recipe,
            episodes,
            config.name,
            out,
            progress,
            provenance=provenance(device, group.world),
            initial=initial,
            device=device,
            group=group,
        )

    with _log(output, out, tensorboard and group.first) as log:
        return follow(output, config.name, config.recipe.steps, _told, fit)


def _told(line: TrainProgress) -> ProgressLine:
    losses = f"loss {line.prediction_loss:.4f} inverse {line.inverse_loss:.3f} sigreg {line.regularizer:.2f}"
    labels = f" labels {line.label_loss:.3f}" if line.label_loss else ""
    probe = ", probe R2 " + " ".join(f"{value:.3f}" for value in line.probe_r2) if line.probe_r2 else ""
    unlearned = "" if line.held_out_loss is None else f", held-out loss {line.held_out_loss:.4f}"
    more = f", latent std {line.latent_std:.2f}{unlearned}{probe}, {line.compute_share:.1%} of the time computing"
    return ProgressLine(f"{losses}{labels}, {line.frames_per_s:.0f} frames/s", more, bool(probe))


@contextmanager
def _log(output: Output, out: Path, wanted: bool) -> Iterator[Callable[[TrainProgress], None]]:
    """Where lines of the log go beside the output: TensorBoard's files, or nowhere where it is not installed."""
    if wanted and find_spec("tensorboard") is None:
        output.remark("no TensorBoard logs: install the extra 'train' (pip install -e '.[train]')")
    if not wanted or find_spec("tensorboard") is None:
        yield lambda line: None
        return

    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "logs"))
    try:
        yield lambda line: _write(writer, line)
    finally:
        writer.close()


def _write(writer: SummaryWriter, line: TrainProgress) -> None:
    values = {
        "loss/prediction": line.prediction_loss,
        "loss/inverse": line.inverse_loss,
        "loss/sigreg": line.regularizer,
        "latents/std": line.latent_std,
        "speed/frames_per_s": line.frames_per_s,
        "speed/compute_share": line.compute_share,
    }
    if line.held_out_loss is not None:
        values["loss/held_out"] = line.held_out_loss
    if line.label_loss:
        values["loss/labels"] = line.label_loss
    values |= {f"probe_r2/{number}": value for number, value in enumerate(line.probe_r2)}
    for name, value in values.items():
        writer.add_scalar(name, value, line.step)


def provenance(device: torch.device, world: int = 1) -> dict[str, Any]:
    import torch

    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    accelerator = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    processes = f", {world} processes" if world > 1 else ""
    threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    return {
        "command": shlex.join(command),
        "machine": f"{platform.machine()}, {threads}{accelerator}{processes}",
        "torch": str(torch.__version__),
    }
