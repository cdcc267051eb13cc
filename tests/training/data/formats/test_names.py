"""Names of actions survive whatever shape a recorder keeps them in, and no two are alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.training.numbered import rows, write_numbered_lerobot
from training.data.dataset import DatasetError, ReadOptions
from training.data.formats.names import names_of, natural
from training.data.formats.opening import open_dataset


@pytest.mark.parametrize(
    ("described", "names"),
    [
        (["x", "y", "z", "grip"], ("x", "y", "z", "grip")),
        ([["x", "y", "z", "grip"]], ("x", "y", "z", "grip")),
        ({"motors": ["x", "y", "z", "grip"]}, ("x", "y", "z", "grip")),
        ({"axes": ["x", "y", "z"], "tool": ["grip"]}, ("x", "y", "z", "grip")),
        ({"left": ["j1", "j2"], "right": ["j1", "j2"]}, ("left.j1", "left.j2", "right.j1", "right.j2")),
        ({"of": {"l": ["j1", "j2"], "r": ["j1", "j2"]}}, ("of.l.j1", "of.l.j2", "of.r.j1", "of.r.j2")),
        ({"grip": 3, "y": 1, "x": 0, "z": 2}, ("x", "y", "z", "grip")),
        ({"10": "grip", "0": "x", "1": "y", "2": "z"}, ("x", "y", "z", "grip")),
        (["x", "x", "y", "x"], ("x", "x_2", "y", "x_3")),
        (["x", "x", "x_2", "y"], ("x", "x_3", "x_2", "y")),
        ([0, 1, 2, 3], ("0", "1", "2", "3")),
    ],
)
def test_every_name_is_kept_and_is_told_from_the_others(described: object, names: tuple[str, ...]) -> None:
    assert names_of(described, 4) == names


@pytest.mark.parametrize("described", [None, [], ["x"], {"motors": ["x", "y"]}, {}])
def test_names_of_another_number_of_entries_are_none(described: object) -> None:
    assert names_of(described, 4) is None


def test_numbers_in_names_count() -> None:
    assert sorted(["demo_10", "demo_9", "demo_1", "a2b10", "a2b9"], key=natural) == [
        "a2b9",
        "a2b10",
        "demo_1",
        "demo_9",
        "demo_10",
    ]


def test_columns_by_another_name_are_found_or_named_in_the_options(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra datasets")
    from pyarrow import parquet

    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(8), 10)], 10, 10)
    file = path / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(file)
    info = json.loads((path / "meta/info.json").read_text())
    described = info["features"].pop("action")

    def renamed(name: str) -> None:
        parquet.write_table(
            table.rename_columns([name if each == "action" else each for each in table.column_names]), file
        )
        features = {**info["features"], name: described}
        (path / "meta/info.json").write_text(json.dumps({**info, "features": features}))

    renamed("actions")
    dataset = open_dataset(path)
    assert dataset.header.action_names == ("number", "noise")
    assert dataset.episode(0).actions[:, 0].tolist() == list(range(8))
    renamed("joint_targets")
    with pytest.raises(DatasetError, match="features must name action; action_key says what else it is called"):
        open_dataset(path)
    dataset = open_dataset(path, ReadOptions(action_key="joint_targets", state_key="joint_targets"))
    assert dataset.episode(0).actions[:, 0].tolist() == list(range(8))
    assert dataset.header.proprioception_names == ("number", "noise")
    with pytest.raises(DatasetError, match=r"state_key must be a feature, one of .*joint_targets; got 'state'"):
        open_dataset(path, ReadOptions(action_key="joint_targets", state_key="state"))


@pytest.mark.parametrize(("kind", "values"), [("int64", [0, 1] * 4), ("bool", [False, True] * 4)])
def test_an_action_of_one_number_may_be_an_integer_or_a_switch(kind: str, values: list[int], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra datasets")
    from pyarrow import parquet

    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(8), 10)], 10, 10)
    file = path / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(file)
    parquet.write_table(table.set_column(0, "action", pyarrow.array(values)), file)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["action"] = {"dtype": kind, "shape": [1], "names": ["push"]}
    (path / "meta/info.json").write_text(json.dumps(info))
    dataset = open_dataset(path)
    assert dataset.header.action_names == ("push",)
    assert dataset.episode(0).actions.tolist() == [[0.0], [1.0]] * 4
