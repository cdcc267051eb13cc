"""`presage weights`: the published models, their download, what a file or a package holds, and import to a package."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.exit_codes import CommandError
from cli.output import JsonFlag, Output, open_output
from model import extras

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress
    from rich.table import Table

    from model.checkpoints.action_statistics import ActionStatistics
    from model.checkpoints.families import Found
    from model.checkpoints.listing import Published
    from model.package import Package

DTYPES = ("bfloat16", "float16", "float32")


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A package's folder or built-in name, a file of weights, or a published folder."
        ),
    ],
    json_: JsonFlag = False,
) -> None:
    """Say what weights are, without running them: nothing in a file is executed."""
    from model.built_in import BUILT_IN, built_in
    from model.package import CONFIG, WEIGHTS, read_package

    folder = BUILT_IN / path if path in built_in() else Path(path)
    output = open_output(json_)
    if not folder.exists():
        raise CommandError(f"no such file, folder or built-in package: {path} (built in: {', '.join(built_in())})")
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        package = read_package(folder)
        value = _package_value(package)
        output.result(value, _package_table(value))
        return

    from model.checkpoints.families import inspect as look_into

    value = _checkpoint_value(look_into(folder))
    output.result(value, _checkpoint_table(value))


def import_weights(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A published file of weights, or a folder with one and its config.json."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the package to write.")],
    dtype: Annotated[
        str,
        typer.Option("--dtype", help=f"What to keep numbers in: {', '.join(DTYPES)}; by default the family's choice."),
    ] = "",
    encoder: Annotated[
        str, typer.Option("--encoder", help="Which of the file's encoders to take; by default the published choice.")
    ] = "",
    action_stats: Annotated[
        Path | None,
        typer.Option("--action-stats", help="JSON with mean and std of the actions the model was trained on."),
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option("--fit", help="Recordings of the kind the model was trained on: the statistics are theirs."),
    ] = None,
    camera: Annotated[str, typer.Option("--camera", help="Which camera of --fit, where there are several.")] = "",
    encoder_weights: Annotated[
        Path | None,
        typer.Option("--encoder-weights", help="File or folder of the encoder, where the file holds none."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Which published model the file is, where it does not say.")
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Names of a classifier's classes: a text file with one a line, or a JSON list."),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option("--limits", help="JSON with slew, max_norm, frozen or dwell, which plans keep to."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Make a model package of a published checkpoint; everything in it must fit, or nothing is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"--out {out} is there already and is not overwritten: name a new folder, or remove it")
    if dtype not in ("", *DTYPES):
        raise typer.BadParameter(f"must be one of {', '.join(DTYPES)}, got {dtype!r}", param_hint="--dtype")
    if action_stats is not None and fit is not None:
        raise typer.BadParameter("must not be given beside --action-stats", param_hint="--fit")
    output = open_output(json_)
    statistics = _action_statistics(action_stats, fit, camera)

    import torch
    from presage.limits import read_limits

    from model.checkpoints.families import ImportOptions
    from model.checkpoints.families import import_weights as write

    dtypes = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    with _byte_progress(output) as bars:
        bar = bars.add_task("importing", total=None)
        options = ImportOptions(
            dtype=dtypes[dtype],
            encoder_key=encoder or None,
            statistics=statistics,
            encoder_weights=encoder_weights,
            model=model or None,
            labels=None if labels is None else _labels(labels),
            limits=None if limits is None else read_limits(limits),
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
        imported = write(source, out, options)
    value = {
        "folder": str(imported.folder),
        "model": imported.model,
        "family": imported.family,
        **{name.replace(" ", "_"): text for name, text in imported.details.items()},
        "parameters": imported.parameters,
        "weights_bytes": imported.weights_bytes,
        "weights_sha256": imported.weights_sha256,
    }
    size = f"{imported.parameters / 1e6:.1f} M parameters, {imported.weights_bytes / 1e6:.0f} MB"
    about = "".join(f"\n  {name}: {text}" for name, text in imported.details.items())
    output.result(value, f"{imported.model} ({imported.family}) in {out}: {size}{about}")


def _labels(path: Path) -> tuple[str, ...]:
    """Names of classes, in order. CommandError where the file holds none."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from error
    if not text.lstrip().startswith("["):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            names = json.loads(text)
        except ValueError as error:
            raise CommandError(f"{path}: is not JSON: {error}") from error
    if not names or not all(isinstance(name, str) and name for name in names):
        raise CommandError(f"{path}: must hold the names of classes, one a line or as a JSON list of texts")
    return tuple(names)


def _action_statistics(file: Path | None, dataset: Path | None, camera: str) -> ActionStatistics | None:
    """What the user says of actions: from a file, or from recordings."""
    from model.checkpoints.action_statistics import fit_action_statistics, read_action_statistics

    if file is not None:
        return read_action_statistics(file)
    if dataset is None:
        return None

    import numpy as np

    from cli.data.recordings import open_recordings
    from training.data.dataset import ReadOptions

    opened = open_recordings(dataset, ReadOptions(camera))
    actions = [opened.episode(index).actions for index in range(len(opened.header.episodes))]
    rows = np.concatenate(actions) if actions else np.zeros((0, 1))
    source = f"{len(rows)} actions of {len(actions)} episodes in {dataset.name}, fitted at import"
    return fit_action_statistics(rows, source, opened.header.action_names)


def list_published(json_: JsonFlag = False) -> None:
    """List the published models that can be downloaded and imported, with licenses as far as known."""
    from model.checkpoints.listing import published

    output = open_output(json_)
    values = [_published_value(model) for model in published()]
    output.result({"models": values}, _published_table(values))


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A published model; `presage weights list` names them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to put the file in; of several files, a folder in it.")],
    sha256: Annotated[str, typer.Option("--sha256", help="The digest the file must have.")] = "",
    mirror: Annotated[
        str, typer.Option("--mirror", help="Address of a folder with the same files, instead of the official one.")
    ] = "",
    json_: JsonFlag = False,
) -> None:
    """Download a published model's files; run again, it goes on where it was cut off."""
    extras.require("httpx", "http", "downloading weights")
    from model.checkpoints.download import DownloadError
    from model.checkpoints.download import pull as download
    from model.checkpoints.listing import find, published

    model = find(name)
    if model is None and name.lower().startswith("dinov3"):
        raise CommandError(
            f"{name}: Presage has no code for DINOv3, which has a license of its own; dinov2_vits14 can be imported"
        )
    if model is None:
        names = ", ".join(each.name for each in published())
        raise typer.BadParameter(f"must be one of {names}, got {name!r}", param_hint="NAME")
    if sha256 and len(model.files) > 1:
        raise typer.BadParameter(f"must not be given for {name}, whose files' digests are known", param_hint="--sha256")
    output, folder = open_output(json_), out if len(model.files) == 1 else out / name
    kept = all((folder / each.file).exists() for each in model.files)
    digests = {each.file: sha256 or each.sha256 for each in model.files}
    try:
        with _byte_progress(output) as bars:
            for each in model.files:
                bar = bars.add_task(each.file, total=None)
                path = download(
                    each,
                    folder,
                    lambda done, total, bar=bar: bars.update(bar, completed=done, total=total),  # type: ignore[misc]
                    base=mirror or each.folder,
                    sha256=digests[each.file],
                )
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("sha256: "), param_hint="--sha256") from error
    except DownloadError as error:
        raise CommandError(str(error)) from error
    verified = all(digests.values())
    value = {
        "model": model.name,
        "path": str(path if len(model.files) == 1 else folder),
        "bytes": sum((folder / each.file).stat().st_size for each in model.files),
        "was_there": kept,
        "sha256_verified": verified,
        "license": model.license,
        "import": f"presage weights import {path if len(model.files) == 1 else folder} --out PACKAGE",
        "needs": model.refused or model.needs,
    }
    digest = "sha256 verified" if verified else "sha256 not verified: none is published, give one with --sha256"
    there = "was already there" if kept else "downloaded"
    needs = f"; {value['needs']}" if value["needs"] else ""
    size = f"{sum((folder / each.file).stat().st_size for each in model.files) / 1e6:.1f} MB"
    output.result(value, f"{value['path']} {there}: {size}, {digest}; license: {model.license}{needs}")


def _byte_progress(output: Output) -> Progress:
    """A bar that counts bytes, where a person watches stderr."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=output.err, disable=not output.err.is_terminal)


def _published_value(model: Published) -> dict[str, Any]:
    return {
        "name": model.name,
        "family": model.family,
        "what": model.what,
        "files": [
            {"file": each.file, "address": each.address, "sha256": each.sha256, "bytes": each.bytes}
            for each in model.files
        ],
        "license": model.license,
        "verified": model.verified,
        "needs": model.needs,
        "refused": model.refused,
    }


def _published_table(values: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="published models", show_lines=True)
    table.add_column("name", no_wrap=True)
    for column in ("what", "license", "verified"):
        table.add_column(column, overflow="fold")
    for value in values:
        needs = f"\nneeds {value['needs']}" if value["needs"] else ""
        refused = f"\nnot imported: {value['refused']}" if value["refused"] else ""
        table.add_row(value["name"], f"{value['what']}{refused or needs}", value["license"], value["verified"])
    return table


def _package_value(package: Package) -> dict[str, Any]:
    from safetensors import safe_open

    from model.package import WEIGHTS

    parameters = tensors = 0
    with safe_open(package.folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dictionary)
            count = 1
            for size in file.get_slice(name).get_shape():
                count *= size
            parameters, tensors = parameters + count, tensors + 1
    return {
        "kind": "package",
        "folder": str(package.folder),
        "weights_digest": package.weights_digest,
        "weights_bytes": (package.folder / WEIGHTS).stat().st_size,
        "parameters": parameters,
        "tensors": tensors,
        "config": asdict(package.config),
    }


def _checkpoint_value(found: Found) -> dict[str, Any]:
    from model.package import file_digest

    files = (
        [found.path] if found.path.is_file() else sorted([*found.path.glob("*.safetensors"), *found.path.glob("*.pt")])
    )
    return {
        "kind": "checkpoint",
        "path": str(found.path),
        "layout": found.layout,
        "model": found.model,
        "family": found.family,
        "encoder" if found.family in ("", "vjepa2") else "network": dict(found.shape),
        "misfit": found.misfit,
        "needs": list(found.needs),
        "sections": {name: asdict(section) for name, section in found.sections.items()},
        "sha256": {file.name: file_digest(file) for file in files},
    }


def _package_table(value: dict[str, Any]) -> Table:
    from rich.table import Table

    config = value["config"]
    table = Table(title=f"model package {config['name']}", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("family", config["family"])
    table.add_row("weights", f"{value['parameters'] / 1e6:.2f} M parameters, {value['weights_bytes'] / 1e6:.1f} MB")
    table.add_row("sha256", short_digest(value["weights_digest"]))
    image = config["image"]
    table.add_row("image", f"{image['height']} x {image['width']}, crop policy {image['crop_policy']}")
    table.add_row("latent", " x ".join(str(size) for size in config["latent_shape"]) + " per frame")
    table.add_row("action", _action_text(config["action"]))
    table.add_row("planner", ", ".join(f"{name} {number}" for name, number in config["planner"].items()))
    for section in ("training", "scores"):
        if config[section]:
            table.add_row(section, "\n".join(f"{name}: {entry}" for name, entry in config[section].items()))
    table.add_row("folder", value["folder"])
    return table


def short_digest(digest: str) -> str:
    """Enough of a digest to compare by eye; --json has all of it."""
    return f"{digest[:16]}..."


def _action_text(action: dict[str, Any] | None) -> str:
    from presage.limits import ActionLimits, told

    if action is None:
        return "none: it only embeds"
    ranges = zip(action["names"], action["low"], action["high"], action["units"], strict=True)
    lines = [f"{name} {low:g} to {high:g} {unit}" for name, low, high, unit in ranges]
    lines += told(ActionLimits(**action["limits"]), action["names"], action["units"]) if action["limits"] else []
    return "\n".join([*lines, f"{action['rate_hz']:g} Hz, {action['block']} actions per model step"])


def _checkpoint_table(value: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"checkpoint {value['path']} ({value['layout']})")
    table.add_column("section")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    for name, section in value["sections"].items():
        table.add_row(name, str(section["tensors"]), f"{section['parameters'] / 1e6:.1f} M")
    part = "network" if "network" in value else "encoder"
    shape = ", ".join(f"{name} {size}" for name, size in value[part].items() if type(size) is int)
    lines = [f"family {value['family']}, it is {value['model']}", f"{part}: {shape}"] if value["model"] else []
    lines += [value["misfit"]] if value["misfit"] else []
    lines += [f"an import needs {need}" for need in value["needs"]]
    lines += [f"sha256 {name}: {short_digest(digest)}" for name, digest in value["sha256"].items()]
    return Group(table, *lines)
