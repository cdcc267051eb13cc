"""Datasets that LeRobot itself writes, and what LeRobot itself reads of them: for comparing with what is read here.

    python -m tests.support.training.lerobot_sets OUT [--stand-in]

needs `lerobot` and its `datasets`. It writes OUT/whole, OUT/thinned, OUT/trimmed and OUT/images, and beside each
`NAME.json`: for every row of LeRobot's own reading the episode, the actions, the state and the number that the frame of
each camera shows. `--stand-in` puts a module of a few lines in torchvision's place, where torchvision does not import
beside the build of torch: LeRobot's choice of a frame is its own code and stays so.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import inspect
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.training.numbered import SIZE, number_of, numbered_frame

LENGTHS = (9, 14, 7)
FPS = 30
JOINTS = ("shoulder", "elbow", "grip")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
THINNED, CUT = 3, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stand-in", action="store_true")
    given = parser.parse_args()
    if given.stand_in:
        stand_in_for_torchvision()
    write_sets(given.out)


def write_sets(out: Path) -> None:
    """All four sets and LeRobot's readings of them, in the format of the LeRobot that is installed."""
    write_set(out / "whole", images=False)
    write_set(out / "images", images=True)
    cut_rows(out / "whole", out / "thinned", cut=0, step=THINNED)
    cut_rows(out / "whole", out / "trimmed", cut=CUT, step=1)
    for name in ("whole", "images", "thinned", "trimmed"):
        (out / f"{name}.json").write_text(json.dumps(read_by_lerobot(out / name), indent=0) + "\n")


def write_set(path: Path, *, images: bool) -> None:
    """A dataset of numbered frames by LeRobot's own recorder; the wrist camera shows each picture's negative."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind, picture = ("image" if images else "video"), (SIZE, SIZE, 3)
    axes = ["height", "width", "channels"]
    features: dict[str, dict[str, Any]] = {
        "action": {"dtype": "float32", "shape": (3,), "names": list(JOINTS)},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": {"motors": list(JOINTS)}},
        FRONT: {"dtype": kind, "shape": picture, "names": axes},
        WRIST: {"dtype": kind, "shape": picture, "names": axes},
    }
    shutil.rmtree(path, ignore_errors=True)
    dataset = LeRobotDataset.create("lab/numbered", FPS, features=features, root=path, use_videos=not images)
    by_argument = "task" in inspect.signature(dataset.add_frame).parameters
    drawn = np.random.default_rng(5)
    number = 0
    for episode, length in enumerate(LENGTHS):
        task = f"count\u2028from {number}" if episode == 1 else "count"
        for _ in range(length):
            action, state = drawn.normal(size=(2, 3)).astype(np.float32)
            action[0] = number
            frame = numbered_frame(number)
            row = {"action": action, "observation.state": state, FRONT: frame, WRIST: 255 - frame}
            if by_argument:
                dataset.add_frame(row, task=task)
            else:
                dataset.add_frame({**row, "task": task})
            number += 1
        dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()


def read_by_lerobot(path: Path) -> list[dict[str, Any]]:
    """Every row as LeRobot reads it."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("lab/numbered", root=path, video_backend="pyav", tolerance_s=1e-3)
    read = []
    for at in range(len(dataset)):
        item = dataset[at]
        front, wrist = (np.round(item[name].permute(1, 2, 0).numpy() * 255).astype(np.uint8) for name in (FRONT, WRIST))
        read.append(
            {
                "episode": int(item["episode_index"]),
                "action": item["action"].tolist(),
                "state": item["observation.state"].tolist(),
                "front": number_of(front),
                "wrist": number_of(255 - wrist),
            }
        )
    return read


def cut_rows(source: Path, path: Path, cut: int, step: int) -> None:
    """The dataset without the first rows of each episode, or with every `step`-th alone; clips and times stay whole."""
    import pyarrow
    from pyarrow import compute, parquet

    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, path)
    info = json.loads((path / "meta/info.json").read_text())
    lengths: dict[int, int] = {}
    total = 0
    for file in sorted(path.glob("data/chunk-*/*.parquet")):
        table, parts = parquet.read_table(file), []
        for episode in sorted(set(table.column("episode_index").to_pylist())):
            own = table.filter(compute.equal(table.column("episode_index"), episode))
            own = own.take(pyarrow.array(np.arange(cut, own.num_rows, step)))
            count = own.num_rows
            for name, values in (("frame_index", np.arange(count)), ("index", np.arange(total, total + count))):
                own = own.set_column(own.schema.get_field_index(name), name, pyarrow.array(values))
            lengths[episode], total = count, total + count
            parts.append(own)
        parquet.write_table(pyarrow.concat_tables(parts), file)
    listing = path / "meta/episodes.jsonl"
    if listing.is_file():
        entries = [json.loads(line) for line in listing.read_text("utf-8").split("\n") if line.strip()]
        lines = [json.dumps({**entry, "length": lengths[entry["episode_index"]]}) for entry in entries]
        listing.write_text("\n".join(lines) + "\n")
    for file in path.glob("meta/episodes/chunk-*/*.parquet"):
        table = parquet.read_table(file)
        numbers = np.array([lengths[episode] for episode in table.column("episode_index").to_pylist()])
        ends = np.cumsum(numbers)
        for name, values in (("length", numbers), ("dataset_from_index", ends - numbers), ("dataset_to_index", ends)):
            table = table.set_column(table.schema.get_field_index(name), name, pyarrow.array(values))
        parquet.write_table(table, file)
    info |= {"total_frames": total, "fps": info["fps"] // step}
    (path / "meta/info.json").write_text(json.dumps(info))


def stand_in_for_torchvision() -> None:
    """What LeRobot's datasets use of torchvision: pictures to tensors, and a reader of clips. Transforms do nothing."""
    import av
    import torch

    class ToTensor:
        def __call__(self, image: Any) -> torch.Tensor:
            return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()).float().div(255)

    class VideoReader:
        def __init__(self, path: str, stream: str = "video") -> None:
            self.container = av.open(str(path))
            self._stream = self.container.streams.video[0]
            self._frames: Iterator[Any] = self.container.decode(self._stream)

        def seek(self, time_s: float, keyframes_only: bool = False) -> VideoReader:
            assert self._stream.time_base is not None
            self.container.seek(int(time_s / self._stream.time_base), stream=self._stream, backward=True)
            self._frames = self.container.decode(self._stream)
            return self

        def __iter__(self) -> VideoReader:
            return self

        def __next__(self) -> dict[str, Any]:
            frame = next(self._frames)
            data = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            return {"pts": float(frame.pts * frame.time_base), "data": data}

    class Transform(torch.nn.Module):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

    def module(name: str, **content: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        made.__path__ = []
        made.__dict__.update(content)
        made.__dict__["__getattr__"] = lambda wanted: Transform if not wanted.startswith("__") else _absent(wanted)
        sys.modules[name] = made
        return made

    functional = module("torchvision.transforms.v2.functional")
    v2 = module("torchvision.transforms.v2", Transform=Transform, functional=functional)
    plain = module("torchvision.transforms.functional")
    transforms = module("torchvision.transforms", ToTensor=ToTensor, v2=v2, functional=plain)
    io = module("torchvision.io", VideoReader=VideoReader)
    module("torchvision", transforms=transforms, io=io, set_video_backend=lambda name: None)


def _absent(name: str) -> Any:
    raise AttributeError(name)


if __name__ == "__main__":
    main()
