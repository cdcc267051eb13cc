"""What `presage train` reads: a task's name, or a file whose every key is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cli.exit_codes import CommandError
from cli.train.config import TrainingConfig, read_config
from training.compact.recipe import CompactRecipe


def test_a_task_alone_takes_the_defaults() -> None:
    assert read_config("arm-push") == TrainingConfig("arm-push", "arm-push")


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("task: arm\nepisodes: 64\nrecipe:\n  steps: 7\n  learning_rate: 1\n  planner: {samples: 30}\n")
    config = read_config(str(file))
    assert (config.task, config.name, config.episodes, config.data_seed) == ("arm", "tiny", 64, 1)
    assert (config.recipe.steps, config.recipe.learning_rate) == (7, 1)
    assert config.recipe.planner.samples == 30
    assert config.recipe.batch == CompactRecipe().batch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: arm\nepisode: 3\n", "episode is not a setting; known: task, name, episodes"),
        ("task: arm\nrecipe: {stepz: 3}\n", "recipe.stepz is not a setting"),
        ("task: arm\nrecipe: {planner: {width: 3}}\n", "recipe.planner.width is not a setting"),
        ("task: arm\nrecipe: {steps: many}\n", "recipe.steps must be a whole number, got 'many'"),
        ("task: arm\nrecipe: {steps: 1.5}\n", "recipe.steps must be a whole number, got 1.5"),
        ("task: arm\nrecipe: {steps: true}\n", "recipe.steps must be a whole number, got True"),
        ("task: arm\nrecipe: {steps: 0}\n", "steps must be >= 1, got 0"),
        ("task: arm\nrecipe: 3\n", "recipe must hold names and values, got 3"),
        ("episodes: 3\n", "missing 1 required positional argument: 'task'"),
        ("- arm\n", "must hold names and values, got list"),
        ("task: [", "is not YAML"),
    ],
)
def test_a_file_at_fault_is_refused_by_key(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(CommandError, match=r"bad\.yaml") as raised:
        read_config(str(file))
    assert said in str(raised.value)


def test_an_unknown_task_is_wrong_use(tmp_path: Path) -> None:
    file = tmp_path / "walk.yaml"
    file.write_text("task: walk\n")
    for given in ("walk", str(file)):
        with pytest.raises(typer.BadParameter, match="must be one of arm, arm-push, .*, tworoom, got 'walk'"):
            read_config(given)
