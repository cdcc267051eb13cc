"""What a training is run with, what comes of it, and the line that says how far it is."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cli.exit_codes import CommandError
from cli.output import Output

if TYPE_CHECKING:
    import torch

    from training.data.loading import Skipped
    from training.distributed import ProcessGroup

LOG_EVERY = 50  # steps, where nobody watches the bar


class Line(Protocol):
    """What every training logs of a step."""

    @property
    def step(self) -> int: ...

    @property
    def seconds(self) -> float: ...


LogLine = TypeVar("LogLine", bound=Line)


@dataclass(frozen=True)
class ProgressLine:
    """A line of the log in words."""

    losses: str  # beside the bar, and in the text
    more: str = ""  # in the text alone
    measured: bool = False  # worth a line of text at any step, whoever watches


@dataclass(frozen=True)
class Outcome:
    """What a training is summed up as."""

    last: Line  # of its log
    about: str  # losses in words
    values: dict[str, Any]  # for programs, beside what every training tells
    skipped: tuple[Skipped, ...] = ()  # recordings that were left out
    scratch: tuple[str, ...] = ()  # folders in OUT that are not for the package
    then: str = ""  # what to do with the package


@dataclass(frozen=True)
class Run:
    """What a training is run with. `data`: recorded episodes in the place of the config's."""

    output: Output
    out: Path  # folder of the package
    data: Path | None
    device: torch.device
    group: ProcessGroup
    tensorboard: bool

    def follow(
        self,
        name: str,
        steps: int,
        tell: Callable[[LogLine], ProgressLine],
        fit: Callable[[Callable[[LogLine], None]], Path],
        beginning: str = "",
    ) -> LogLine:
        """Run `fit`, which calls its argument at every step; the last line of its log.

        `beginning` stands beside the bar until the first step. Raises CommandError where `fit` finds that the recipe
        does not suit what it is given, or the checkpoint that lies there.
        """
        from rich.progress import TextColumn

        last: list[LogLine] = []
        with self.output.progress(TextColumn("{task.fields[losses]}")) as bars:
            bar = bars.add_task(f"training {name}", total=steps, losses=beginning)

            def advance(line: LogLine) -> None:
                last[:] = [line]
                told, watched = tell(line), self.output.err.is_terminal
                bars.update(bar, completed=line.step, losses=told.losses)
                if told.measured or line.step == 1 or (line.step % LOG_EVERY == 0 and not watched):
                    text = f"{line.seconds:.0f} s, step {line.step} of {steps}: {told.losses}{told.more}"
                    self.output.remark(text)

            try:
                fit(advance)
            except ValueError as error:
                raise CommandError(str(error)) from error
        return last[0]

    def provenance(self) -> dict[str, Any]:
        """Which command made the package, and on what."""
        import torch

        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        accelerator = f", {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else ""
        processes = f", {self.group.world} processes" if self.group.world > 1 else ""
        threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
        return {
            "command": shlex.join(command),
            "machine": f"{platform.machine()}, {threads}{accelerator}{processes}",
            "torch": str(torch.__version__),
        }

    def finish(self, outcome: Outcome) -> None:
        """Remove what is not for the package, write its card, and say what came of the training."""
        from model.package import read_package, write_package
        from training.data.frame_store import remove_frames
        from training.model_card import card

        remove_frames(self.out)
        for folder in outcome.scratch:
            shutil.rmtree(self.out / folder, ignore_errors=True)
        package = read_package(self.out)
        write_package(self.out, package.config, package.weights(), card(package.config))
        value: dict[str, Any] = {
            "folder": str(self.out),
            "skipped": [asdict(entry) for entry in outcome.skipped],
            "steps": outcome.last.step,
            "seconds": round(outcome.last.seconds, 1),
            **outcome.values,
            "weights_digest": package.weights_digest,
        }
        told = f"{self.out}: {outcome.last.step} steps in {outcome.last.seconds / 60:.1f} min, {outcome.about}"
        self.output.result(value, f"{told}\n{outcome.then}" if outcome.then else told)
