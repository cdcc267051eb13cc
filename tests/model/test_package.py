"""The limits of a package's actions: checked when it is read, kept when it is written, told by its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from presage.limits import ActionLimits

from model.compact import CompactWorldModel
from model.package import CONFIG, PackageError, limited, read_package
from tests.support.model.compact_packages import tiny_config
from training.model_card import card

LIMITS = ActionLimits(slew=(0.1, 0.2), max_norm=1.5, norm_of=("a",), frozen=("b",), dwell=(1, 3))


def test_limits_are_kept_when_a_package_is_written_and_read(tmp_path: Path) -> None:
    config = limited(tiny_config(), LIMITS)
    CompactWorldModel.random(tmp_path / "tiny", config, seed=0)
    assert read_package(tmp_path / "tiny").config == config
    assert "- largest change from one action to the next: a 0.1 rad/s, b 0.2 rad/s" in card(config)
    assert limited(config, None) is config


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"slew": [0.1]}, "action.limits.slew must have 2 entries, for a, b, got 1"),
        ({"slew": 0.1}, "action.limits.slew must be a list of numbers, got 0.1"),
        ({"frozen": "b"}, "action.limits.frozen must be a list of names, got b"),
        ({"slew": [0.1, "fast"]}, r"action.limits.slew\[1\] must be a finite number, got fast"),
        ({"slew": [0.1, -1]}, r"action.limits.slew\[1\] must be above .*, got -1"),
        ({"frozen": ["c"]}, r"action.limits.frozen\[0\] must be one of a, b, got c"),
        ({"max_norm": 0}, "action.limits.max_norm must be finite and above 0, got 0"),
        ({"dwell": [1, 0]}, r"action.limits.dwell\[1\] must be a whole number from 1"),
        ({"low": [0, 0]}, "action.limits.low must be left out: action.low holds the bounds"),
        ({"speed": [1, 1]}, "unknown key: speed"),
    ],
)
def test_limits_that_cannot_be_are_named_when_a_package_is_read(
    wrong: dict[str, Any], says: str, tmp_path: Path
) -> None:
    CompactWorldModel.random(tmp_path, tiny_config(), seed=0)
    raw = json.loads((tmp_path / CONFIG).read_text())
    raw["action"]["limits"] = wrong
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=says):
        read_package(tmp_path)


def test_a_model_that_only_embeds_takes_no_limits() -> None:
    with pytest.raises(PackageError, match="tiny only embeds"):
        limited(replace(tiny_config(), action=None), LIMITS)
