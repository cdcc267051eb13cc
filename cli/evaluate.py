"""`presage eval`: success rate on held-out goals, beside a random policy and an oracle on the same pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.exit_codes import CommandError
from cli.options import (
    DeviceOption,
    SeedOption,
    TaskModelOption,
    TaskOption,
    calm_threads,
    checked_device,
    checked_task,
    model_for,
)
from cli.output import JsonFlag, Output, open_output

if TYPE_CHECKING:
    from rich.table import Table

    from model.interface import LoadedModel
    from model.package import PackageConfig, PlannerDefaults
    from simulation.protocols import Protocol
    from training.evaluation.closed_loop import Episode, Evaluation, Rule

DIAGNOSED = 64  # episodes of open-loop prediction
RATES = ("success_rate", "ci95_low", "ci95_high", "random_success_rate", "oracle_success_rate")


def evaluate(
    model: TaskModelOption = "",
    task: TaskOption = "arm",
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many held-out pairs.")] = 100,
    seed: SeedOption = 7,
    offset: Annotated[int, typer.Option("--offset", help="Steps from start to goal: 25, 50 or 75.")] = 25,
    budget_steps: Annotated[
        int, typer.Option("--budget-steps", min=0, help="Robot actions an episode may take; 0: twice the offset.")
    ] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    device: DeviceOption = "auto",
    record: Annotated[
        bool, typer.Option("--record", help="Also write the scores into the package's config and card.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML page there, with filmstrips and plots.")
    ] = None,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="Instead of the package's: cem, gauss_newton, ...")
    ] = "",
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Instead of the package's.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Instead of the package's.")] = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, help="Model steps; instead of the package's.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict/--no-strict", help="Go on after a success, to judge by the task's other rules too."),
    ] = True,
    ceiling: Annotated[
        int,
        typer.Option("--ceiling", min=0, help="Also try so many pairs with the true dynamics in the model's place."),
    ] = 0,
    protocol_name: Annotated[
        str,
        typer.Option("--protocol", help="Offset, budget, execution and success rule of lewm, moderate or strict."),
    ] = "",
    result_file: Annotated[
        Path | None, typer.Option("--result", metavar="FILE", help="Also write the figures there, as JSON.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Measure a model in closed loop on held-out start and goal pairs, in this process and without the service."""
    calm_threads()
    output = open_output(json_)
    model = model_for(model, checked_task(task))
    chosen = checked_device(device)
    destination = None if result_file is None else _writable(result_file, "--result")
    page = None if report is None else _writable(report, "--report")

    import torch

    from model.registry import load
    from simulation.manifest import Manifest
    from simulation.rules import rules as success_rules
    from training.model_card import record_score

    if threads:
        torch.set_num_threads(threads)
    protocol = _protocol(protocol_name, task, offset, budget_steps, record or bool(ceiling)) if protocol_name else None
    loaded = load(model, chosen)
    scale = _action_scale(loaded.package.config, task)
    if ceiling and scale != 1.0:
        raise CommandError(f"--ceiling: needs a model that acts in the units of robot {task}")
    manifest = Manifest.load(task, offset)
    pairs = manifest.pairs(episodes, seed)
    if protocol is not None and not (pairs := protocol.prepared(task, pairs)):
        raise CommandError(f"--episodes: all {episodes} pairs are solved at their start by {protocol.name}'s rule")
    budget = budget_steps or 2 * offset
    own = loaded.package.config.planner
    wanted = {"optimizer": optimizer or None, "samples": samples, "iterations": iterations, "horizon": horizon}
    settings = with_settings(own, {name: value for name, value in wanted.items() if value is not None})
    if record and settings != own:
        raise CommandError("--record keeps scores of the package's own planner: leave the planner's options out")
    if protocol is not None:
        settings = replace(settings, execute=min(protocol.execute_blocks, settings.horizon) * loaded.block)
    rules = success_rules(task) if strict or protocol is not None else ()
    evaluation = _run(output, loaded, settings, task, pairs, seed, budget, rules, scale)
    value = summary(evaluation, task, model, seed, manifest.initially_solved_excluded)
    value |= by_rule(evaluation, rules)
    if protocol is not None:
        judged = value["rules"][protocol.rule] if protocol.rule else value
        value["protocol"] = {"name": protocol.name, **{name: judged[name] for name in RATES}}
        value["initially_solved_excluded"] += episodes - len(pairs)
    if ceiling:
        value |= _ceiling(output, loaded, settings, task, pairs[:ceiling], seed, budget)
    value |= {"offset": offset, "budget_steps": budget, "planner": asdict(settings), **_open_loop(loaded, task, scale)}
    if destination is not None:
        destination.write_text(json.dumps(value, indent=2) + "\n")
    if page is not None:
        _write_report(page, value, evaluation, pairs, loaded, task)
    if record:
        record_score(loaded.package.folder, value)
    output.result(value, _table(value))


def _protocol(name: str, task: str, offset: int, budget_steps: int, goes_on: bool) -> Protocol:
    """The protocol of that name, if the task knows its rule and nothing was asked for that it fixes or forbids."""
    from simulation.protocols import protocol

    found = protocol(name)
    found.success_rule(task)
    if offset != found.offset or budget_steps not in (0, found.budget_steps) or goes_on:
        raise CommandError(
            f"--protocol {found.name}: fixes --offset {found.offset} and --budget-steps {found.budget_steps}, "
            "and goes with neither --record nor --ceiling"
        )
    return found


def summary(evaluation: Evaluation, task: str, model: str, seed: int, excluded: int) -> dict[str, Any]:
    """The numbers of an evaluation under their fixed names; rates are 0 to 1, times are of single plans."""
    from training.evaluation.closed_loop import success_rate

    low, high = evaluation.interval
    median, slow = evaluation.plan_ms(50), evaluation.plan_ms(95)
    return {
        "task": task,
        "model": model,
        "episodes": len(evaluation.episodes),
        "seed": seed,
        "successes": evaluation.successes,
        "success_rate": success_rate(evaluation.episodes),
        "ci95_low": low,
        "ci95_high": high,
        "random_success_rate": success_rate(evaluation.random),
        "oracle_success_rate": None if evaluation.oracle is None else success_rate(evaluation.oracle),
        "initially_solved_excluded": excluded + evaluation.initially_solved,
        "plan_ms_p50": median and round(median, 3),
        "plan_ms_p95": slow and round(slow, 3),
    }


def by_rule(evaluation: Evaluation, rules: Sequence[Rule]) -> dict[str, Any]:
    """Success under each other rule: the model's, with Wilson's interval, and the baselines' on the same pairs."""
    from training.evaluation.statistics import wilson_interval

    def share(episodes: Sequence[Episode] | None, name: str) -> float | None:
        return None if episodes is None else sum(name in each.met for each in episodes) / len(episodes)

    told = {}
    for rule in rules:
        met = sum(rule.name in each.met for each in evaluation.episodes)
        low, high = wilson_interval(met, len(evaluation.episodes))
        told[rule.name] = {
            "success_rate": met / len(evaluation.episodes),
            "ci95_low": low,
            "ci95_high": high,
            "random_success_rate": share(evaluation.random, rule.name),
            "oracle_success_rate": share(evaluation.oracle, rule.name),
        }
    return {"rules": told}


def _ceiling(
    output: Output,
    model: LoadedModel,
    settings: PlannerDefaults,
    task: str,
    pairs: list[Any],
    seed: int,
    budget_steps: int,
) -> dict[str, Any]:
    """The same search with the true dynamics and the true state, on these pairs."""
    from planner import registry
    from planner.optimizers.policy import Policy
    from simulation.rules import features
    from simulation.tasks import make
    from training.evaluation.closed_loop import action_space
    from training.evaluation.statistics import episode_seed, wilson_interval
    from training.evaluation.true_dynamics import TrueDynamics, run_ceiling

    compared, optimizer = features(task), registry.configured(settings)
    if compared is None:
        raise CommandError(f"--ceiling: nobody has said what states of {task} are compared by")
    if isinstance(optimizer, Policy):
        raise CommandError("--ceiling: a policy searches nothing, and has no ceiling")
    robot = make(task, 16)
    dynamics = TrueDynamics(make(task, 16), compared, model.block)
    reached = 0
    with output.progress() as bars:
        bar = bars.add_task("true dynamics", total=len(pairs))
        for pair in pairs:
            own = episode_seed(seed, pair.index)
            tried = run_ceiling(dynamics, optimizer, settings, action_space(model), robot, pair, own, budget_steps)
            reached += tried.success
            bars.update(bar, advance=1)
    low, high = wilson_interval(reached, len(pairs))
    told = {"episodes": len(pairs), "success_rate": reached / len(pairs), "ci95_low": low, "ci95_high": high}
    return {"ceiling": told}


def _open_loop(model: LoadedModel, task: str, scale: float) -> dict[str, Any]:
    """How far ahead the model predicts, and whether its cost tells true actions from others, on held-out episodes."""
    import numpy as np

    from simulation.episodes import HELD_OUT_SEED_START
    from simulation.exploration import explore
    from training.evaluation.diagnostics import open_loop, plan_worthiness

    config = model.package.config
    ahead = config.planner.horizon * model.block
    # Seeds next to the manifests' own: neither they nor training have seen these episodes.
    group = explore(task, HELD_OUT_SEED_START + 1, range(DIAGNOSED), 2 * ahead, config.image.height)
    actions = group.actions / np.float32(scale)
    predicted = open_loop(model, group.frames, actions, group.proprioception)
    worth = plan_worthiness(model, group.frames, actions, group.proprioception, config.planner.horizon)
    return {
        "open_loop_actions": list(predicted.actions),
        "open_loop_error": [round(value, 5) for value in predicted.error],
        "open_loop_unchanged": [round(value, 5) for value in predicted.unchanged],
        "true_actions_candidates": worth.candidates,
        "true_actions_median_rank": round(worth.median_rank, 4),
        "true_actions_first": round(worth.first, 4),
    }


def _write_report(
    path: Path, value: dict[str, Any], evaluation: Evaluation, pairs: list[Any], model: LoadedModel, task: str
) -> None:
    from cli.evaluation_report import render
    from simulation.tasks import make

    robot = make(task, model.package.config.image.height)
    goals = {pair.index: pair.goal_state for pair in pairs}
    path.write_text(render(value, evaluation, goals, robot.render_state), encoding="utf-8")


def with_settings(own: PlannerDefaults, wanted: Mapping[str, Any]) -> PlannerDefaults:
    """A package's planner with other settings. As many elites as before, in proportion, where samples change."""
    if not wanted:
        return own
    samples = wanted.get("samples", own.samples)
    elites = min(samples, max(min(2, own.elites), round(own.elites * samples / own.samples)))
    return replace(own, **{"elites": elites, **wanted})


def _run(
    output: Output,
    model: LoadedModel,
    settings: PlannerDefaults,
    task: str,
    pairs: list[Any],
    seed: int,
    budget_steps: int,
    rules: Sequence[Rule],
    scale: float,
) -> Evaluation:
    from rich.progress import TextColumn

    from planner import registry
    from simulation.policies import oracle_policy, random_policy
    from simulation.tasks import make
    from training.evaluation.closed_loop import evaluate

    config = model.package.config
    optimizer = registry.configured(settings)
    with output.progress(TextColumn("{task.fields[solved]} solved")) as bars:
        bar = bars.add_task(f"{config.name} on {task}", total=len(pairs), solved=0)
        solved = 0

        def advance(episode: Episode) -> None:
            nonlocal solved
            solved += episode.success
            bars.update(bar, advance=1, solved=solved)

        return evaluate(
            model,
            optimizer,
            lambda: make(task, config.image.height),
            pairs,
            seed=seed,
            random_policy=random_policy,
            oracle_policy=oracle_policy,
            budget_steps=budget_steps,
            rules=rules,
            progress=advance,
            execute=settings.execute,
            action_scale=scale,
        )


def _action_scale(config: PackageConfig, task: str) -> float:
    """What a model's actions are multiplied by to be this robot's. CommandError for a model of another robot."""
    from model.lewm.published import RELEASED
    from simulation.protocols import action_scale
    from simulation.tasks import make

    trained = {each.repository: each.task for each in RELEASED}.get(config.training.get("repository", ""), task)
    if trained != task:
        raise CommandError(f"model {config.name} was trained for {trained}: it cannot be evaluated on {task}")
    names, units = ((), ()) if config.action is None else (config.action.names, config.action.units)
    return action_scale(task, make(task, 16).action_names, names, units, config.name)


def _table(value: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{value['model']} on {value['task']}, {value['episodes']} episodes, seed {value['seed']}")
    table.add_column("policy")
    table.add_column("success", justify="right")
    table.add_column("95 % interval", justify="right")
    interval = f"{value['ci95_low']:.1%} to {value['ci95_high']:.1%}"
    other = value.get("rules", {})
    for name in other:
        table.add_column(name, justify="right")

    def others(policy: str) -> list[str]:
        rates = [rule[f"{policy}success_rate"] for rule in other.values()]
        return ["" if rate is None else f"{rate:.1%}" for rate in rates]

    table.add_row(f"[bold]{value['model']}[/bold]", f"[bold]{value['success_rate']:.1%}[/bold]", interval, *others(""))
    if (most := value.get("ceiling")) is not None:
        between = f"{most['ci95_low']:.1%} to {most['ci95_high']:.1%}"
        table.add_row(f"true dynamics, {most['episodes']} pairs", f"{most['success_rate']:.1%}", between)
    table.add_row("random", f"{value['random_success_rate']:.1%}", "", *others("random_"))
    oracle = value["oracle_success_rate"]
    table.add_row("oracle", "none" if oracle is None else f"{oracle:.1%}", "", *others("oracle_"))
    if (fixed := value.get("protocol")) is not None:
        table.title = f"{table.title}; protocol {fixed['name']}: {fixed['success_rate']:.1%}"
    if value["plan_ms_p50"] is not None:
        goals = f"goals {value['offset']} steps ahead, budget {value['budget_steps']}"
        times = f"one plan: p50 {value['plan_ms_p50']:.0f} ms, p95 {value['plan_ms_p95']:.0f} ms"
        table.caption = f"{goals}; {times}"
    return table


def _writable(path: Path, option: str) -> Path:
    """The path, once it is certain that the result will not be lost for want of a folder."""
    if path.is_dir():
        raise typer.BadParameter(f"must be a file, got the folder {path}", param_hint=option)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
