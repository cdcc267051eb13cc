"""The recipes of the built-in packages are those they were made with: who runs one gets the same network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cli.train.config import read_config
from cli.train.training_data import as_training_episodes
from model.built_in import BUILT_IN
from model.compact.world_model import network_settings
from model.compact.world_model import read_config as read_network
from model.package import read_package
from simulation.episodes import collect
from tests.support.paths import ROOT
from training.compact.recipe import package_config

RECIPES = ROOT / "training" / "recipes"


@pytest.mark.parametrize("package", sorted(BUILT_IN.iterdir()), ids=lambda folder: folder.name)
def test_a_built_in_package_has_the_recipe_that_made_it(package: Path) -> None:
    config = read_package(package).config
    told = read_config(str(RECIPES / f"{package.name}.yaml"))
    recorded, recipe = config.training["recipe"], asdict(told.recipe)
    assert {name: recipe[name] for name in recorded if name != "planner"} == {
        name: value for name, value in recorded.items() if name != "planner"
    }
    assert (told.task, told.name) == (package.name, package.name)
    assert f"{told.episodes} episodes" in config.training["episodes"]
    if told.task == "pusht":
        pytest.importorskip("gym_pusht")
    episodes = as_training_episodes(collect(told.task, 2, 6, seed=told.data_seed, image_size=told.image_size))
    made = package_config(told.recipe, episodes, told.name)
    assert network_settings(read_network(made)) == network_settings(read_network(config))
