"""The model card: what a package is, how it was made and what it scored, written from its own config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from presage.limits import told

from model.package import PackageConfig, read_package, write_package


def record_score(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Write an evaluation (the JSON of `presage eval`) into a package's config and card, replacing that task's last."""
    package = read_package(folder)
    offset = evaluation.get("offset", 25)
    name = str(evaluation["task"]) if offset == 25 else f"{evaluation['task']}, goal {offset} steps ahead"
    scores = {**package.config.scores, name: dict(evaluation)}
    config = replace(package.config, scores=scores)
    write_package(folder, config, package.weights(), card(config))


def card(config: PackageConfig) -> str:
    """A package's card in Markdown."""
    return "\n".join([*_head(config), *_training(config.training), *_scores(config.scores), *_use(config)]) + "\n"


def _head(config: PackageConfig) -> list[str]:
    lines = [f"# Model package `{config.name}`", ""]
    lines.append(
        f"Family `{config.family}`: {config.image.height} x {config.image.width} RGB images "
        f"(crop policy `{config.image.crop_policy}`) to latents of shape {list(config.latent_shape)}."
    )
    if config.action is not None:
        lines += ["", "| action | unit | low | high |", "|---|---|---|---|"]
        action = config.action
        for name, unit, low, high in zip(action.names, action.units, action.low, action.high, strict=True):
            lines.append(f"| {name} | {unit} | {low:g} | {high:g} |")
        lines += ["", f"{action.rate_hz:g} actions a second; a model step takes a block of {action.block}."]
        if action.limits is not None:
            lines += ["", "Plans keep to:", ""]
            lines += [f"- {line}" for line in told(action.limits, action.names, action.units)]
    if config.proprioception_names:
        lines += ["", f"Each observation brings proprioception too: {', '.join(config.proprioception_names)}."]
    return [*lines, ""]


def _training(training: Mapping[str, Any]) -> list[str]:
    if not training:
        return ["## Training", "", "Untrained: random weights.", ""]
    lines = ["## Training", "", "| what | value |", "|---|---|"]
    for name, value in training.items():
        if name == "recipe":
            value = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "planner")
        lines.append(f"| {name.replace('_', ' ')} | {value} |")
    return [*lines, ""]


def _scores(scores: Mapping[str, Any]) -> list[str]:
    lines = ["## Scores", ""]
    if not scores:
        return [*lines, "Not evaluated yet.", ""]
    lines += [
        "Held-out start and goal pairs 25 steps apart where nothing else is said, budget twice that, success latched "
        "at the first hit, initially solved pairs excluded; Wilson 95 % interval. Random and oracle policies ran on "
        "the same pairs.",
        "",
        "| task | pairs (seed) | success | 95 % interval | random | oracle | plan p50 / p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, score in scores.items():
        oracle = score["oracle_success_rate"]
        lines.append(
            f"| {task} | {score['episodes']} ({score['seed']}) | {score['success_rate']:.1%} "
            f"| {score['ci95_low']:.1%} to {score['ci95_high']:.1%} | {score['random_success_rate']:.1%} "
            f"| {'none' if oracle is None else f'{oracle:.1%}'} "
            f"| {score['plan_ms_p50']:.0f} / {score['plan_ms_p95']:.0f} ms |"
        )
    rows = [
        f"| {task} | {rule} | {met['success_rate']:.1%} | {met['ci95_low']:.1%} to {met['ci95_high']:.1%} "
        f"| {met['random_success_rate']:.1%} |"
        for task, score in scores.items()
        for rule, met in score.get("rules", {}).items()
    ]
    if rows:
        lines += [
            "",
            "The same tries under other rules (`simulation/rules.py`); they go on after a first success:",
            "",
        ]
        lines += ["| task | rule | success | 95 % interval | random |", "|---|---|---|---|---|", *rows]
    for task, score in scores.items():
        if (most := score.get("ceiling")) is not None:
            between = f"{most['ci95_low']:.1%} to {most['ci95_high']:.1%}"
            told = f"{most['success_rate']:.1%} ({between}) of {most['episodes']} of the pairs"
            lines += ["", f"The same search with the true dynamics and the true state: {told} ({task})."]
    return [*lines, ""]


def _use(config: PackageConfig) -> list[str]:
    planner = config.planner
    weighed = ""
    if planner.discount != 1:
        weighed = f", each step's distance {planner.discount:g} times as heavy as that of the step before"
    if planner.cost == "least":
        weighed = ", the distance of the cheapest step alone counted"
    if planner.cost == "last":
        weighed = ", the distance of the last step alone counted"
    return [
        "## Use",
        "",
        f"Planned by `{planner.optimizer}` with {planner.samples} samples x {planner.iterations} iterations over "
        f"{planner.horizon} model steps{weighed}, {planner.execute} actions executed before planning again. The model "
        "knows the robot, camera and drawing it was trained on and nothing else.",
        "",
    ]
