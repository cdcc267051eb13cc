"""A camera that stands turned: found from exploratory moves, and undone in the plans that follow."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import presage
import pytest

from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import (
    CalibrateRequest,
    CalibrationMove,
    GoalRequest,
    Observation,
    PlanRequest,
    RolloutRequest,
    SessionRequest,
)
from tests.support.server.linear import ACTION, GAIN, frame
from tests.support.server.transports import Service, json_observation, json_tensor

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANGLE = math.radians(35)  # from what the model takes for x and y to the robot's
STEP = GAIN * ACTION.block


def seen_after(place: tuple[float, float], action: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tuple[float, float]:
    """Where the camera, which stands turned, sees the robot after an action held for one step of the model."""
    x, y = (float(entry) for entry in action)
    cos, sin = math.cos(-ANGLE), math.sin(-ANGLE)
    return place[0] + STEP * (cos * x - sin * y), place[1] + STEP * (sin * x + cos * y)


def moves() -> tuple[CalibrationMove, ...]:
    made = []
    for x, y in ((0.7, 0.0), (0.0, 0.4), (-0.5, 0.3), (-0.6, -0.3)):
        action = np.array([x, y], np.float32)
        start = (0.5, 0.5)
        before, after = (Observation((frame(*place),)) for place in (start, seen_after(start, action)))
        made.append(CalibrationMove(before, action, after))
    return tuple(made)


async def session(application: Application, model: str = "table") -> str:
    return (await application.create_session(SessionRequest(model, seed=1))).session_id


async def refused(application: Application, request: CalibrateRequest) -> ServiceError:
    with pytest.raises(ServiceError) as refusal:
        await application.calibrate(request)
    return refusal.value


async def test_the_turn_is_found_told_and_kept_through_a_reset(application: Application) -> None:
    robot = await session(application)
    assert (await application.get_session(robot)).calibration is None
    told = (await application.calibrate(CalibrateRequest(robot, moves()))).calibration
    assert told is not None
    assert told.angle_rad == pytest.approx(ANGLE, abs=0.03)
    assert told.moves == 4
    assert told.residual < 0.05 < 0.2 < told.residual_before
    assert (await application.reset_session(robot)).calibration == told


async def test_plans_of_a_calibrated_session_lead_to_the_goal_and_others_astray(application: Application) -> None:
    goal = await application.create_goal(GoalRequest("table", image=frame(0.62, 0.55)))
    arrived = {}
    for calibrated in (False, True):
        robot = await session(application)
        if calibrated:
            await application.calibrate(CalibrateRequest(robot, moves()))
        place = (0.5, 0.5)
        request = PlanRequest(Observation((frame(*place),)), robot, goal_id=goal.goal_id)
        plan = await application.plan(request, None, time.monotonic())
        assert (np.abs(plan.actions) <= np.array(ACTION.high) + 1e-6).all()
        for action in plan.actions[:: ACTION.block]:
            place = seen_after(place, action)
        arrived[calibrated] = math.dist(place, (0.62, 0.55))
    assert arrived[True] < 0.02
    assert arrived[False] > 0.05


async def test_rollouts_of_a_calibrated_session_are_turned_too(application: Application) -> None:
    robot = await session(application)
    await application.calibrate(CalibrateRequest(robot, moves()))
    action = np.array([0.5, 0.2], np.float32)
    request = RolloutRequest(Observation((frame(0.5, 0.5),)), np.tile(action, (2, 1)), session_id=robot)
    predicted = (await application.rollout(request)).latents[0]
    np.testing.assert_allclose(predicted, seen_after((0.5, 0.5), action), atol=0.01)


async def test_moves_that_say_nothing_are_refused_by_name(application: Application) -> None:
    robot = await session(application)
    given = moves()
    for wrong, reason, field in (
        (given[:1], Reason.INVALID_FIELD, "moves"),
        ((given[0], given[0]), Reason.INVALID_FIELD, "moves"),
        ((given[0], replace(given[1], action=np.zeros(3, np.float32))), Reason.ACTION_SHAPE, "moves[1].action"),
        (
            (given[0], replace(given[1], action=np.array([np.nan, 0], np.float32))),
            Reason.INVALID_TENSOR,
            "moves[1].action",
        ),
        ((given[0], replace(given[1], after=Observation(()))), Reason.INVALID_IMAGE, "moves[1].after.images"),
        (tuple(replace(move, after=move.before) for move in given), Reason.UNSUPPORTED, "moves"),
    ):
        error = await refused(application, CalibrateRequest(robot, wrong))
        assert (error.reason, error.field) == (reason, field), error.message
    assert (await application.get_session(robot)).calibration is None


async def test_a_model_without_horizontal_axes_is_not_calibrated(application: Application) -> None:
    error = await refused(application, CalibrateRequest(await session(application, "linear"), moves()))
    assert error.reason is Reason.UNSUPPORTED
    assert "has no x and y" in error.message


async def test_both_transports_say_the_same(service: Service) -> None:
    application = service.gateway.application
    direct = (await application.calibrate(CalibrateRequest(await session(application), moves()))).calibration
    assert direct is not None
    body = {
        "moves": [
            {
                "before": json_observation(move.before.images[0]),
                "action": json_tensor(move.action),
                "after": json_observation(move.after.images[0]),
            }
            for move in moves()
        ]
    }
    rest = await service.rest.post(f"/v1/sessions/{await session(application)}:calibrate", json=body)
    assert rest.json()["calibration"]["angle_rad"] == direct.angle_rad
    async with presage.AsyncClient(service.addresses.grpc) as client:
        robot = await client.session("table")
        told = [
            presage.CalibrationMove(
                presage.Observation(move.before.images), move.action.tolist(), presage.Observation(move.after.images)
            )
            for move in moves()
        ]
        status = await robot.calibrate(told)
    assert status.calibration == presage.Calibration(direct.angle_rad, direct.residual, direct.residual_before, 4)
