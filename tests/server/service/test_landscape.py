"""Costs of a grid of actions: the model's own, in the right places, drawn, and the same through every gateway."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import presage
import pytest
from PIL import Image
from presage.v1 import planning_pb2

from server.engine.messages import ServedModel
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.service.landscape import CELL, grid, landscape
from server.values.calls import GoalRequest, LandscapeRequest, Observation, ScoreRequest
from tests.support.server.linear import frame, latent
from tests.support.server.transports import Service, array_of, json_observation, proto_observation

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEEN = frame(0.4, 0.4)
HERE = Observation((SEEN,))


async def asked(application: Application, right: float, down: float) -> LandscapeRequest:
    goal = await application.create_goal(GoalRequest(latent=latent(right, down)))
    return LandscapeRequest(HERE, goal_id=goal.goal_id)


async def test_the_grid_covers_the_bounds_and_costs_what_scores_say(application: Application) -> None:
    request = await asked(application, 0.44, 0.38)
    found = await application.landscape(request)
    assert found.dimensions == ("right", "down")
    np.testing.assert_allclose(found.values, [[-1, -0.5, 0, 0.5, 1], [-0.5, -0.25, 0, 0.25, 0.5]])
    candidates = np.array([[[right, down]] * 2 for right in found.values[0] for down in found.values[1]], np.float32)
    scores = await application.score(ScoreRequest(HERE, candidates, goal_id=request.goal_id))
    np.testing.assert_allclose(found.costs, scores.costs.reshape(5, 5), rtol=1e-5, atol=1e-7)
    assert found.best_action.tolist() == [0.5, -0.25]  # 0.05 x 2 x 0.5 to the right, half of it up
    assert found.best_cost == found.costs.min()
    assert found.rest_cost == found.costs[2, 2]


async def test_entries_not_varied_rest_and_the_extent_narrows_the_rest(application: Application) -> None:
    request = replace(await asked(application, 0.44, 0.38), dimensions=("down",), points=3, extent=0.5)
    found = await application.landscape(request)
    assert found.values.tolist() == [[-0.25, 0.0, 0.25]]
    assert found.costs.shape == (3,)
    assert found.best_action.tolist() == [0.0, -0.25]


async def test_rest_is_zero_where_zero_is_allowed_and_one_of_the_points(application: Application) -> None:
    linear = application.model("linear")
    assert linear.action is not None
    moves = replace(
        linear.action, low=(-0.1, 0.0), high=(0.9, 1.0), rest=(0.0, 0.0)
    )  # a base that drives forward, and a gripper
    reply = replace(linear, action=moves)
    served = ServedModel(reply, None, "cpu", "float32", "as set")
    found = grid(LandscapeRequest(HERE), served)
    np.testing.assert_allclose(found.values, [[-0.1, 0, 0.3, 0.6, 0.9], [0, 0.25, 0.5, 0.75, 1]], atol=1e-7)
    assert found.rest == (1, 0)
    costs = np.arange(25, dtype=np.float32)
    assert landscape(found, costs).rest_cost == 5.0  # the second row's first
    alone = grid(LandscapeRequest(HERE, dimensions=("down",)), served)
    assert not alone.candidates[:, :, 0].any()  # what is not varied stands still


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"points": 4}, Reason.INVALID_FIELD, "points"),
        ({"points": 1}, Reason.INVALID_FIELD, "points"),
        ({"points": 35}, Reason.INVALID_FIELD, "points"),
        ({"extent": 0.0}, Reason.INVALID_FIELD, "extent"),
        ({"extent": float("nan")}, Reason.INVALID_FIELD, "extent"),
        ({"dimensions": ("up",)}, Reason.INVALID_FIELD, "dimensions[0]"),
        ({"dimensions": ("down", "down")}, Reason.INVALID_FIELD, "dimensions[1]"),
        ({"goal_id": ""}, Reason.GOAL_REQUIRED, "goal_id"),
        ({"model": "embedder"}, Reason.UNSUPPORTED, ""),
    ],
)
async def test_a_bad_grid_is_refused_by_name(
    application: Application, change: dict[str, object], reason: Reason, field: str
) -> None:
    request = replace(await asked(application, 0.5, 0.5), **change)  # type: ignore[arg-type]
    with pytest.raises(ServiceError) as refusal:
        await application.landscape(request)
    assert (refusal.value.reason, refusal.value.field) == (reason, field)


async def test_the_picture_is_bright_where_it_is_costly_and_rings_the_best(application: Application) -> None:
    request = replace(await asked(application, 0.44, 0.38), plot=True)
    found = await application.landscape(request)
    picture = np.asarray(Image.open(io.BytesIO(found.plot)).convert("RGB"), np.float64)
    top = next(row for row in range(len(picture)) if _is_cell(picture[row]))
    left = next(column for column in range(picture.shape[1]) if _is_cell(picture[top:, column]))
    corners = picture[top + 2 :: CELL, left + 2 :: CELL].sum(-1)[:5, :5]  # beside rings and crosses
    assert np.unravel_index(corners.argmin(), (5, 5)) == np.unravel_index(found.costs.argmin(), (5, 5))
    order = np.argsort(found.costs.ravel())
    assert (np.diff(corners.ravel()[order]) >= -3).all()


def _is_cell(line: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether a line of pixels has a colored one: text is gray."""
    return bool((np.ptp(line, axis=-1) > 40).any())


async def test_both_transports_and_the_client_say_the_same(service: Service) -> None:
    application = service.gateway.application
    request = replace(await asked(application, 0.44, 0.38), plot=True)
    direct = await application.landscape(request)
    asked_proto = planning_pb2.LandscapeRequest(observation=proto_observation(SEEN), goal_id=request.goal_id, plot=True)
    proto = await service.planning.Landscape(asked_proto)
    np.testing.assert_array_equal(array_of(proto.costs), direct.costs)
    assert proto.plot == direct.plot
    body = {"observation": json_observation(SEEN), "goal_id": request.goal_id, "plot": True}
    rest = (await service.rest.post("/v1/landscapes?tensors=lists", json=body)).json()
    np.testing.assert_allclose(rest["costs"]["data"], direct.costs)
    assert base64.b64decode(rest["plot"]) == direct.plot
    assert rest["best_action"]["data"] == direct.best_action.tolist()
    async with presage.AsyncClient(service.addresses.grpc) as client:
        told = await client.landscape(SEEN, request.goal_id, plot=True)
    np.testing.assert_array_equal(told.values, direct.values)
    assert (told.best_cost, told.rest_cost, told.plot) == (direct.best_cost, direct.rest_cost, direct.plot)
