"""Limits only get narrower, are refused by name, and what breaks one is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest
from hypothesis import given
from hypothesis import strategies as st
from presage import ActionLimits, ActionSpec
from presage.errors import invalid
from presage.limits import LimitsError, fault, held_for, narrowed, read_limits, told

SPEC = ActionSpec(("x", "y"), ("m", "rad"), (-1.0, 0.0), (1.0, 2.0), 10.0, 1, rest=(0.0, 0.5))
HELD = ActionLimits((-0.5, 0.0), (0.5, 2.0), slew=(0.2, 0.4), max_norm=1.5, norm_order=2, dwell=(1, 2))


def holding(asked: ActionLimits, held: ActionLimits | None = None) -> ActionLimits:
    return narrowed(SPEC, SPEC.rest, held, asked, invalid)


def test_what_is_left_out_is_as_it_was() -> None:
    assert holding(ActionLimits()) == ActionLimits(low=SPEC.low, high=SPEC.high)
    assert holding(ActionLimits(), HELD) == HELD
    assert holding(ActionLimits(slew=(0.1, 0.1)), HELD) == replace(HELD, slew=(0.1, 0.1))


@pytest.mark.parametrize("held", [None, HELD], ids=["a model's bounds", "limits that hold"])
@given(st.data())
def test_narrowing_twice_changes_nothing_and_never_widens(held: ActionLimits | None, data: st.DataObject) -> None:
    shares = [data.draw(st.sampled_from([0.0, 0.25, 1.0])) for _ in range(4)]
    edge = (held or ActionLimits(SPEC.low, SPEC.high)).high
    asked = ActionLimits(
        high=(shares[0] * edge[0], shares[1] * edge[1] / 2 + edge[1] / 2),
        slew=data.draw(st.sampled_from([(), (0.2, 0.3)])),
        frozen=data.draw(st.sampled_from([(), ("x",), ("y", "x")])),
        dwell=data.draw(st.sampled_from([(), (4, 2)])),
    )
    once = holding(asked, held)
    assert holding(asked, once) == once
    assert all(new <= old for new, old in zip(once.high, edge, strict=True))
    if held is not None:
        assert all(new <= old for new, old in zip(once.slew, held.slew, strict=True))
        assert all(new >= old for new, old in zip(once.dwell, held.dwell, strict=True))
        assert once.max_norm == held.max_norm


@pytest.mark.parametrize(
    ("asked", "held", "field"),
    [
        (ActionLimits(low=(-0.6, 0.0)), HELD, "low[0]"),
        (ActionLimits(high=(0.5, 2.1)), HELD, "high[1]"),
        (ActionLimits(high=(-0.6, 2.0)), HELD, "high[0]"),
        (ActionLimits(low=(0.4, 0.0), high=(0.3, 2.0)), HELD, "low[0]"),
        (ActionLimits(low=(0.1, 0.0), high=(0.1, 2.0)), HELD, "low[0]"),  # 0.1 is no float32 number
        (ActionLimits(slew=(0.2, 0.5)), HELD, "slew[1]"),
        (ActionLimits(slew=(1e-8, 0.1)), HELD, "slew[0]"),
        (ActionLimits(max_norm=2.0), HELD, "max_norm"),
        (ActionLimits(max_norm=1.0, norm_order=1), HELD, "norm_order"),
        (ActionLimits(max_norm=1.0, norm_of=("x",)), HELD, "norm_of"),
        (ActionLimits(dwell=(1, 1)), HELD, "dwell[1]"),
        (ActionLimits(dwell=(1, 70_000)), None, "dwell[1]"),
        (ActionLimits(dwell=(1, 2.5)), None, "dwell[1]"),  # type: ignore[arg-type]
        (ActionLimits(low=(-1.0, 1.0), frozen=("y",)), None, "frozen[0]"),
        (ActionLimits(low=(-1.0, 1.0)), ActionLimits(frozen=("y",)), "low"),
        (ActionLimits(max_norm=0.4, frozen=("y",)), None, "max_norm"),
        (ActionLimits(slew=(0.1,)), None, "slew"),
        (ActionLimits(slew=(0.1, float("nan"))), None, "slew[1]"),
        (ActionLimits(slew=(0.1, "0.1")), None, "slew[1]"),  # type: ignore[arg-type]
        (ActionLimits(max_norm=float("nan")), None, "max_norm"),
        (ActionLimits(max_norm=True), None, "max_norm"),
        (ActionLimits(norm_order=1), None, "norm_order"),
    ],
)
def test_what_is_wider_or_cannot_be_is_refused_by_name(
    asked: ActionLimits, held: ActionLimits | None, field: str
) -> None:
    with pytest.raises(presage.InvalidRequest) as caught:
        holding(asked, held)
    assert caught.value.field == f"limits.{field}"


@pytest.mark.parametrize(
    ("limits", "actions", "says"),
    [
        (ActionLimits(low=(-0.5, 0.0)), [[-0.6, 0.0]], "out of bounds"),
        (ActionLimits(high=(0.5, 1.0)), [[0.0, 1.25]], "out of bounds"),
        (ActionLimits(frozen=("y",)), [[0.0, 0.5], [0.0, 0.75]], "moves y"),
        (ActionLimits(max_norm=1.0), [[0.75, 0.75]], "norm 1.06066, above 1"),
        (ActionLimits(max_norm=1.0, norm_order=1), [[0.5, 0.75]], "norm 1.25, above 1"),
        (ActionLimits(max_norm=1.0, norm_of=("y",)), [[0.5, 1.25]], "norm 1.25, above 1"),
        (ActionLimits(slew=(0.25, 2.0)), [[0.25, 0.0], [0.75, 0.0]], "slew"),
        (ActionLimits(slew=(0.25, 2.0)), [[0.5, 0.0], [0.5, 0.0]], "slew"),  # after x = 0
        (ActionLimits(dwell=(2, 1)), [[0.5, 0.0], [0.0, 0.0], [0.5, 0.0]], "dwell"),
        (ActionLimits(dwell=(1, 4)), [[0.0, 0.5]], "dwell"),  # y = 0 was kept for 3
    ],
)
def test_what_breaks_a_limit_is_found(limits: ActionLimits, actions: list[list[float]], says: str) -> None:
    found = fault(np.array(actions, np.float32), SPEC.names, limits, SPEC.rest, previous=(0.0, 0.0), held=(2.0, 3.0))
    assert says in found
    kept = np.zeros((3, 2), np.float32)
    kept[:, 1] = 0.5 if limits.frozen else 0.0
    assert fault(kept, SPEC.names, limits, SPEC.rest) == ""


def test_how_long_values_were_kept_is_counted_across_plans() -> None:
    executed = [[0.1, 0.5], [0.1, 0.6], [0.1, 0.6]]
    assert held_for(executed) == (3, 2)
    assert held_for(executed, (0.1, 0.6), (4, 9)) == (7, 2)
    assert held_for(executed[1:], (0.1, 0.6), (1, 9)) == (3, 11)
    assert held_for([], (0.1, 0.6), (1, 9)) == (1, 9)
    assert held_for([]) is None


def test_limits_are_told_in_words() -> None:
    limits = ActionLimits(slew=(0.1, 0.2), max_norm=0.5, norm_order=1, norm_of=("x",), frozen=("y",), dwell=(1, 3))
    assert told(limits, SPEC.names, SPEC.units) == (
        "largest change from one action to the next: x 0.1 m, y 0.2 rad",
        "frozen at rest: y",
        "kept at least: y 3 actions",
        "L1 norm of x: 0.5",
    )


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"slew": 0.1}, "slew"),
        ({"slew": ("a",)}, "slew[0]"),
        ({"dwell": (1.5,)}, "dwell[0]"),
        ({"frozen": "x"}, "frozen"),
    ],
)
def test_the_client_names_what_is_no_number_before_it_is_sent(wrong: dict[str, Any], field: str) -> None:
    client = presage.Client("127.0.0.1:1")
    with pytest.raises(presage.InvalidRequest) as caught:
        client.session(limits=ActionLimits(**wrong))
    assert caught.value.field == f"limits.{field}"
    with pytest.raises(presage.InvalidRequest, match="limits must be ActionLimits"):
        client.session(limits={"slew": (0.1, 0.1)})  # type: ignore[arg-type]


def test_a_file_of_limits_is_read_and_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text('{"slew": [0.1, 0.2], "frozen": ["b"]}')
    assert read_limits(file) == ActionLimits(slew=(0.1, 0.2), frozen=("b",))
    for content, says in (("[1]", "must hold an object"), ("{", "is not JSON"), ('{"speed": 1}', "unknown key: speed")):
        file.write_text(content)
        with pytest.raises(LimitsError, match=says):
            read_limits(file)
