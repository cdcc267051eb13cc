"""Imports of LeWM's files: both layouts, nothing guessed, nothing half-written."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from presage.limits import ActionLimits

from model.checkpoints.action_statistics import (
    ActionStatistics,
    StatisticsError,
    fit_action_statistics,
    read_action_statistics,
)
from model.checkpoints.families import ImportOptions, import_weights, inspect
from model.checkpoints.state_dict import CheckpointError
from model.lewm.published import KNOWN_STATISTICS, RELEASED
from model.package import PackageError
from model.registry import load
from tests.support.model.lewm import fixture, needs_fixtures, released_config, released_weights, write_folder

STATISTICS = ActionStatistics(mean=(0.1, -0.2), std=(0.4, 0.5), source="a test")
GIVEN = ImportOptions(statistics=STATISTICS)
CPU = torch.device("cpu")


@needs_fixtures
@pytest.mark.parametrize("layout", ["released", "transformers5"])
def test_either_layout_becomes_a_package_with_the_published_latents(layout: str, tmp_path: Path) -> None:
    data = fixture("lewm_network")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data["config"]["hydra"]))
    torch.save(data["checkpoint_layout"][layout], folder / "weights.pt")
    found = inspect(folder)
    assert (found.family, found.layout, found.misfit) == ("lewm", layout, "")
    import_weights(folder, tmp_path / "package", GIVEN)
    model = load(str(tmp_path / "package"), CPU)
    latent = model.encode(data["inputs"]["image.square96"][None])
    assert torch.allclose(latent, data["outputs"]["latent.square96"], atol=1e-5, rtol=0)


def test_a_file_alone_is_known_by_its_keys_where_its_config_lies_beside_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    assert inspect(folder / "weights.pt").family == "lewm"
    imported = import_weights(folder / "weights.pt", tmp_path / "package", GIVEN)
    assert imported.family == "lewm"
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json must lie beside the weights"):
        import_weights(folder / "weights.pt", tmp_path / "other", GIVEN)
    assert not (tmp_path / "other").exists()


def test_without_action_statistics_an_import_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    assert inspect(folder).needs
    with pytest.raises(CheckpointError, match=r"holds no action statistics.*--action-stats FILE.*--fit DATASET"):
        import_weights(folder, tmp_path / "package", ImportOptions())
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("count", [1, 3, 10])
def test_statistics_of_the_wrong_length_are_refused(count: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    wrong = ActionStatistics(mean=(0.0,) * count, std=(1.0,) * count, source="a test")
    with pytest.raises(CheckpointError, match=f"action statistics must have 2 entries .* got {count}"):
        import_weights(folder, tmp_path / "package", ImportOptions(statistics=wrong))
    assert not (tmp_path / "package").exists()


def test_the_card_names_where_the_statistics_come_from(tmp_path: Path) -> None:
    import_weights(write_folder(tmp_path / "downloaded"), tmp_path / "package", GIVEN)
    card = (tmp_path / "package" / "README.md").read_text()
    assert "mean 0.1, -0.2; std 0.4, 0.5. Source: a test." in card


def test_limits_that_an_import_is_given_are_the_packages(tmp_path: Path) -> None:
    folder, limits = write_folder(tmp_path / "downloaded"), ActionLimits(slew=(0.1, 0.1), dwell=(2, 2))
    import_weights(folder, tmp_path / "package", replace(GIVEN, limits=limits))
    action = load(str(tmp_path / "package"), CPU).package.config.action
    assert action is not None
    assert action.limits == limits
    wrong = replace(GIVEN, limits=ActionLimits(slew=(0.1,)))
    with pytest.raises(PackageError, match=r"action\.limits\.slew must have 2 entries, for x, y, got 1"):
        import_weights(folder, tmp_path / "other", wrong)
    assert not (tmp_path / "other").exists()


def test_reacher_has_no_known_statistics_and_all_others_do() -> None:
    assert {model.name for model in RELEASED} - set(KNOWN_STATISTICS) == {"lewm-reacher"}
    for model in RELEASED:
        if model.name in KNOWN_STATISTICS:
            assert KNOWN_STATISTICS[model.name].dimensions * 5 == model.action_width


@pytest.mark.parametrize("change", ["missing", "unknown", "misshapen"])
def test_a_key_that_does_not_fit_is_named(change: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    weights = released_weights(released_config())
    key = "predictor.transformer.layers.1.mlp.net.4.bias"
    if change == "missing":
        del weights[key]
        said = r"predictor\.blocks\.1\.mlp\.fc2\.bias is missing"
    elif change == "unknown":
        weights["predictor.extra"] = torch.zeros(1)
        said = r"key predictor\.extra is unknown"
    else:
        weights[key] = torch.zeros(5)
        said = r"predictor\.blocks\.1\.mlp\.fc2\.bias must have shape \(24,\), got \(5,\)"
    torch.save(weights, folder / "weights.pt")
    assert inspect(folder).misfit
    with pytest.raises(CheckpointError, match=said):
        import_weights(folder, tmp_path / "package", GIVEN)
    assert not (tmp_path / "package").exists()


class Anything:
    """A pickled object."""


def test_a_pickled_object_is_refused_unread(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    torch.save({"model": Anything()}, folder / "weights.pt")
    with pytest.raises(CheckpointError, match="holds more than weights, refused unread"):
        import_weights(folder, tmp_path / "package", GIVEN)
    (folder / "weights.pt").write_bytes(pickle.dumps(Anything()))
    with pytest.raises(CheckpointError, match="refused unread|damaged"):
        import_weights(folder, tmp_path / "package", GIVEN)
    assert not (tmp_path / "package").exists()


def test_a_truncated_download_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    whole = (folder / "weights.pt").read_bytes()
    for kept in (10, len(whole) // 2, len(whole) - 100):
        (folder / "weights.pt").write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match="truncated|not a PyTorch file"):
            import_weights(folder, tmp_path / "package", GIVEN)
    assert not (tmp_path / "package").exists()


def test_a_folder_of_another_family_is_not_taken_for_lewm(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "downloaded")
    config = released_config()
    config["_target_"] = "somewhere.Else"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"_target_ must end in \.LeWM"):
        import_weights(folder, tmp_path / "package", GIVEN)
    torch.save({"encoder": {"weight": torch.zeros(1)}}, folder / "weights.pt")
    with pytest.raises(CheckpointError, match="must be 'vjepa2'"):
        import_weights(folder, tmp_path / "package", ImportOptions())


def test_fitted_statistics_leave_out_rows_with_nan_and_divide_by_all() -> None:
    rows = torch.tensor([[1.0, 10.0], [3.0, 30.0], [float("nan"), 5.0]]).numpy()
    fitted = fit_action_statistics(rows, "a test")
    assert fitted.mean == (2.0, 20.0)
    assert fitted.std == (1.0, 10.0)
    assert (fitted.low, fitted.high) == ((1.0, 10.0), (3.0, 30.0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "must hold an object"),
        ("{", "is not JSON"),
        ('{"mean": [0]}', "std is missing"),
        ('{"mean": [0], "std": [1, 1]}', "std must have 1 entries"),
        ('{"mean": [0], "std": [0]}', "std must be > 0"),
        ('{"mean": [0], "std": [NaN]}', "std must be finite"),
        ('{"mean": ["a"], "std": [1]}', "mean must be a list of numbers"),
        ('{"mean": [0], "std": [1], "variance": [1]}', "unknown key: variance"),
        ('{"mean": [0], "std": [1], "low": [1], "high": [0]}', "low must be below high"),
    ],
)
def test_a_file_of_statistics_that_cannot_be_is_refused_by_name(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(content)
    with pytest.raises(StatisticsError, match=said) as raised:
        read_action_statistics(path)
    assert str(path) in str(raised.value)
