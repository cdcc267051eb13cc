"""What an import of published weights takes: seconds, and peak resident memory beside what it must hold at least.

`python -m benchmarks.weights` writes a checkpoint of a published model's real layout with random weights (a trained
encoder, its moving average and the predictor, float32), imports it in a process of its own, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.source import commit
from cli.demo.machine import describe_machine
from model.checkpoints.importer import import_checkpoint
from model.checkpoints.published import PublishedModel, by_name
from model.checkpoints.safetensors_writer import GROUP_BYTES
from model.vjepa2.package_config import parts

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vjepa2-vitl-256", help="whose layout; vjepa2-ac-vitg takes 10 GB of disk")
    parser.add_argument("--folder", type=Path, help="where to put the files meanwhile; default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder to write weights-MODEL.json and .md to")
    arguments = parser.parse_args()
    model = by_name(arguments.model)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / model.file
        in_a_process(write_checkpoint, model, source)
        figures = {
            "model": model.name,
            "file_bytes": source.stat().st_size,
            "group_bytes": GROUP_BYTES,
            "import": in_a_process(measure, source, Path(folder) / "package"),
            "machine": describe_machine(),
            "commit": commit(),
        }
    table = markdown(figures)
    if arguments.out is not None:
        (arguments.out / f"weights-{model.name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        (arguments.out / f"weights-{model.name}.md").write_text(table)
    print(table)


def in_a_process(work: Any, *values: Any) -> Any:
    """Call `work` where no earlier memory counts."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, values)


def write_checkpoint(model: PublishedModel, path: Path) -> None:
    """A file as published: prefixes, both encoders, the predictor; every weight random."""
    content: dict[str, Any] = {"epoch": 1}
    for part, (section, network) in parts(model).items():
        names = ("encoder", "target_encoder") if part == "encoder" else (section,)
        prefix = "module.backbone." if part != "action_predictor" else "module."
        for name in names:
            tensors = network.state_dict()
            content[name] = {f"{prefix}{key}": torch.randn(tensor.shape) for key, tensor in tensors.items()}
    torch.save(content, path)


def measure(source: Path, out: Path) -> dict[str, float]:
    """Import, and say how long it took and how far memory rose above what the imported libraries take."""
    before = _status("VmRSS")
    began = time.perf_counter()
    made = import_checkpoint(source, out)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "package_bytes": made.weights_bytes,
        "parameters": made.parameters,
        "resident_before_mib": round(before / MIB, 1),
        "peak_resident_mib": round(_status("VmHWM") / MIB, 1),
        "peak_above_before_mib": round((_status("VmHWM") - before) / MIB, 1),
    }


def _status(name: str) -> int:
    """A number of bytes from this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    took = figures["import"]
    rise, group = took["peak_above_before_mib"], figures["group_bytes"] / MIB
    rows = [
        ("checkpoint", f"{figures['file_bytes'] / MIB:.0f} MiB, float32"),
        ("package", f"{took['package_bytes'] / MIB:.0f} MiB, bfloat16, {took['parameters'] / 1e6:.1f} M parameters"),
        ("time", f"{took['seconds']:.1f} s"),
        ("resident memory before", f"{took['resident_before_mib']:.0f} MiB"),
        ("peak resident memory", f"{took['peak_resident_mib']:.0f} MiB"),
        ("rise over the largest group held", f"{rise:.0f} MiB / {group:.0f} MiB = {rise / group:.2f}"),
    ]
    lines = [f"# Import of {figures['model']}, random weights", "", "| what | measured |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    machine = "; ".join(f"{name} {value}" for name, value in figures["machine"].items())
    return "\n".join([*lines, "", f"{machine}; commit {figures['commit']}.", ""])


if __name__ == "__main__":
    main()
