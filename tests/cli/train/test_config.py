"""What `presage train` reads: a task's name, or a file whose every key is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from presage.limits import ActionLimits

from cli.exit_codes import CommandError
from cli.train.compact import CompactTraining
from cli.train.config import FAMILIES, build, read_config
from training.compact.recipe import CompactRecipe


def test_a_task_alone_takes_the_defaults() -> None:
    assert read_config("arm-push") == CompactTraining(task="arm-push", name="arm-push")


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("task: arm\nepisodes: 64\nrecipe:\n  steps: 7\n  learning_rate: 1\n  planner: {samples: 30}\n")
    config = read_config(str(file))
    assert (config.task, config.name, config.episodes, config.data_seed) == ("arm", "tiny", 64, 1)
    assert (config.recipe.steps, config.recipe.learning_rate) == (7, 1)
    assert config.recipe.planner.samples == 30
    assert config.recipe.batch == CompactRecipe().batch


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("2.5e-4", 2.5e-4), (".5e-2", 5e-3)])
def test_numbers_may_be_written_with_an_exponent_alone(text: str, value: float, tmp_path: Path) -> None:
    file = tmp_path / "fast.yaml"
    file.write_text(f"task: arm\nname: 1e-3x\nrecipe: {{learning_rate: {text}}}\n")
    assert read_config(str(file)).recipe.learning_rate == value
    assert read_config(str(file)).name == "1e-3x"


def test_a_dataset_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab/arm").mkdir(parents=True)
    (tmp_path / "lab/videos").mkdir()
    (tmp_path / "lab/own.yaml").write_text("dataset: arm\n")
    (tmp_path / "lab/masked.yaml").write_text("family: masked\nvideos: [videos]\ndataset: arm\n")
    (tmp_path / "lab/absolute.yaml").write_text(f"dataset: {tmp_path / 'lab/arm'}\n")
    monkeypatch.chdir(tmp_path)
    for file in ("own", "absolute"):
        assert Path(read_config(f"lab/{file}.yaml").dataset).resolve() == tmp_path / "lab/arm"
    masked = read_config("lab/masked.yaml")
    assert Path(masked.dataset).resolve() == tmp_path / "lab/arm"
    assert [Path(each).resolve() for each in masked.videos] == [tmp_path / "lab/videos"]
    (tmp_path / "lab/root.yaml").write_text("dataset: lab/arm\n")  # as seen from where the command is run
    assert Path(read_config("lab/root.yaml").dataset).resolve() == tmp_path / "lab/arm"
    (tmp_path / "lab/gone.yaml").write_text("dataset: gone\n")
    assert read_config("lab/gone.yaml").dataset == "lab/gone"


def test_an_image_size_without_whole_patches_is_refused_by_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("task: arm\nimage_size: 50\n")
    with pytest.raises(CommandError, match="image_size must be a multiple of the patch, 16 pixels, got 50"):
        read_config(str(file))
    file.write_text("family: masked\ntask: arm\nimage_size: 50\nrecipe: {patch: 8}\n")
    with pytest.raises(CommandError, match="image_size must be a multiple of the patch, 8 pixels, got 50"):
        read_config(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: arm\nepisode: 3\n", "episode is not a setting; known: name, dataset, camera, action_key"),
        ("task: arm\nrecipe: {stepz: 3}\n", "recipe.stepz is not a setting"),
        ("task: arm\nrecipe: {planner: {width: 3}}\n", "recipe.planner.width is not a setting"),
        ("task: arm\nrecipe: {steps: many}\n", "recipe.steps must be a whole number, got 'many'"),
        ("task: arm\nrecipe: {steps: 1.5}\n", "recipe.steps must be a whole number, got 1.5"),
        ("task: arm\nrecipe: {steps: true}\n", "recipe.steps must be a whole number, got True"),
        ("task: arm\nrecipe: {steps: 0}\n", "steps must be >= 1, got 0"),
        ("task: arm\nrecipe: 3\n", "recipe must hold names and values, got 3"),
        ("episodes: 3\n", "must name a task or a dataset"),
        ("task: arm\ndataset: lab\n", "must name a task or a dataset, and not both"),
        ("task: arm\nepisodes: 1\n", "episodes must be >= 2, got 1"),
        (
            "task: arm\nrecipe: {planner: {dimensions: x}}\n",
            "recipe.planner.dimensions must be a list of texts, got 'x'",
        ),
        ("task: arm\nrecipe: {limits: {slew: [a]}}\n", "recipe.limits.slew must be a list of numbers, got ['a']"),
        ("task: arm\nrecipe: {limits: {speed: [1]}}\n", "recipe.limits.speed is not a setting; known: low, high, slew"),
        ("family: dense\n", "family must be one of compact, masked, action-conditioned, proposer, step-predictor"),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_what_it_does_not_know_and_reads_what_it_does(family: str, tmp_path: Path) -> None:
    needed = {
        "action-conditioned": "encoder: runs/encoder\n",
        "proposer": "package: arm\n",
        "step-predictor": "package: arm\n",
    }
    source = "dataset: lab\ncamera: front\naction_key: a\nstate_key: s\nrate_hz: 10\n"
    file = tmp_path / "own.yaml"
    file.write_text(f"family: {family}\n{source}{needed.get(family, '')}recipe: {{steps: 7, seed: 3}}\n")
    config = read_config(str(file))
    assert (config.name, config.camera, config.action_key, config.state_key, config.rate_hz) == (
        "own",
        "front",
        "a",
        "s",
        10,
    )
    assert (config.recipe.steps, config.recipe.seed) == (7, 3)
    for line, said in (("colour: red\n", "colour is not a setting"), ("recipe: {colour: 3}\n", "recipe.colour is not")):
        file.write_text(f"family: {family}\n{source}{needed.get(family, '')}{line}")
        with pytest.raises(CommandError, match=said):
            read_config(str(file))


def test_limits_of_a_recipe_are_read() -> None:
    """As the page on limits writes them."""
    assert build(CompactRecipe, {"limits": {"slew": [0.1, 1], "frozen": ["yaw"]}}).limits == ActionLimits(
        slew=(0.1, 1.0), frozen=("yaw",)
    )


def test_an_unknown_task_is_wrong_use(tmp_path: Path) -> None:
    file = tmp_path / "walk.yaml"
    file.write_text("task: walk\n")
    for given in ("walk", str(file)):
        with pytest.raises(typer.BadParameter, match="must be one of arm, arm-push, .*, tworoom, got 'walk'"):
            read_config(given)
