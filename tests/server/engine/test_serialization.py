"""Messages survive the wire between front and engine, and nothing else does."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
from presage.values import ActionSpec, ImageSpec, Model, Plan, PlannerSettings

from server.engine.messages import (
    Cancel,
    Done,
    EmbedClipJob,
    Failed,
    FromEngine,
    Loaded,
    Pace,
    PlanDone,
    PlanJob,
    Ready,
    RolloutDone,
    SearchSize,
    ServedModel,
    Start,
    Submit,
    SurpriseDone,
    SurpriseJob,
    ToEngine,
)
from server.engine.serialization import WireError, pack, unpack
from server.errors import Reason

FRAME = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
LATENT = np.array([1.5, -0.1, np.nan, np.inf], np.float32)
SIZE = SearchSize(200, 8, 20, 5)
JOB = PlanJob(
    model='a "model" with odd \u00e4 name',
    start=Start((FRAME,), (LATENT, LATENT[::2]), np.zeros((2, 3), np.float32)),
    goal=LATENT,
    size=SIZE,
    seed=2**63 - 1,
    warm_start=np.zeros((0, 2), np.float32),
    deadline=123456.789012345,
)
DONE = PlanDone(
    Plan(
        actions=np.full((25, 2), 0.1, np.float32),
        step_costs=(0.1, 1e-300, 2 / 3),
        cost=0.1 + 0.2,
        objective=0.25,
        goal_distance=math.inf,
        iteration_costs=(),
        elite_spread=(0.5,),
        iterations_done=8,
        stop_reason="iterations",
        seed=2**64 - 1,
        warm_started=True,
        warnings=("odd", "odder"),
    ),
    size=SIZE,
    fitting=8,
    unimproved=False,
    goal_reached=False,
    latent=LATENT,
    began=1.0,
    encoded=2.0,
    ended=3.0,
)
MODEL = Model(
    *("arm", "compact", "0" * 64, ImageSpec(64, 64, "exact", 1)),
    ActionSpec(("a", "b"), ("rad/s", "rad/s"), (-1.5, -1.5), (1.5, 1.5), 10.0, 5),
    (128,),
    planner=PlannerSettings(200, 8, 20, 5, "cem", ("shoulder",)),
    card="# card",
)


def there_and_back(message: ToEngine | FromEngine) -> ToEngine | FromEngine:
    return unpack(bytearray(b"".join(pack(message))))


def same(one: object, other: object) -> bool:
    """Equal in type and value all the way down, arrays to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if hasattr(one, "__dataclass_fields__"):
        return same(tuple(vars(one).values()), tuple(vars(other).values()))
    return one == other


@pytest.mark.parametrize(
    "message",
    [
        Submit(1, JOB),
        Submit(2, EmbedClipJob("m", np.zeros((3, 2, 2, 3), np.uint8), "tokens")),
        Submit(3, SurpriseJob("m", (np.zeros((2, 2, 3), np.uint8),) * 2, np.ones((2, 2), np.float32))),
        Cancel(2**40),
        Done(3, DONE, {"#": Pace(0.1, 0.2), "items": Pace(0.0, 1e-9)}),
        Done(4, RolloutDone(np.zeros((2, 3, 4), np.float32), None)),
        Done(5, SurpriseDone((0.5, 1e-300))),
        Failed(5, Reason.ENGINE_LOST, "why", "field", "rule", "value"),
        Loaded(
            (
                ServedModel(MODEL, SIZE, "cpu", "bfloat16", "twice as fast"),
                ServedModel(MODEL, None, "cpu", "float32", "as set"),
            ),
            threads=2,
        ),
        Ready({"arm": Pace(0.01, 1e-6)}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_left(message: ToEngine | FromEngine) -> None:
    assert same(there_and_back(message), message)


def test_arrays_are_not_copied_on_arrival() -> None:
    content = bytearray(b"".join(pack(Submit(1, JOB))))
    arrived = unpack(content)
    assert isinstance(arrived, Submit)
    assert isinstance(arrived.job, PlanJob)
    assert np.shares_memory(arrived.job.goal, np.frombuffer(content, np.uint8))


def test_what_is_no_message_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="cannot hold a object"):
        pack(Submit(1, replace(JOB, model=object())))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_raise_nothing_but_a_wire_error(seed: int) -> None:
    content = bytearray(b"".join(pack(Submit(1, JOB))))
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(content), 6):
        content[at] = rng.integers(0, 256)
    with contextlib.suppress(WireError):
        assert isinstance(unpack(content), (Submit, Start, PlanJob, SearchSize))


def test_an_object_of_another_kind_is_refused() -> None:
    text = b'{"#":"Popen","args":["true"]}'
    head = (1).to_bytes(4, "little") + len(text).to_bytes(8, "little")
    with pytest.raises(WireError, match="Popen"):
        unpack(bytearray(head + text))
