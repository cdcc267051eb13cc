"""Builds the request of every call; both clients send these.

A function raises InvalidRequest where an argument breaks a rule that needs no server to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence, Union

from presage import values
from presage.errors import invalid
from presage.limits import ActionLimits
from presage.protocol import arguments, codec, methods
from presage.protocol.codec import READER
from presage.protocol.methods import Call, call
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, observation_pb2, planning_pb2, sessions_pb2
from presage.values import Goal, GoalStage, ImageLike, Observation, PlannerSettings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Seen = Union[ImageLike, Sequence[ImageLike], Observation]


def list_models() -> Call[tuple[values.Model, ...]]:
    return call(
        methods.LIST_MODELS,
        models_pb2.ModelsListRequest(),
        lambda reply: tuple(READER.value(values.Model, model) for model in reply.models),
    )


def get_model(name: str) -> Call[values.Model]:
    return call(
        methods.GET_MODEL,
        models_pb2.ModelsGetRequest(name=codec.model_name(name)),
        lambda reply: READER.value(values.Model, reply.model),
    )


def create_goal(
    image: ImageLike | None, latent: ArrayLike | None, model: str, proprioception: Sequence[float] = ()
) -> Call[Goal]:
    request = goals_pb2.GoalsCreateRequest(model=codec.model_name(model))
    if len(proprioception):
        request.proprioception.CopyFrom(codec.float_tensor("proprioception", proprioception, ["entries"]))
    arguments.one_of("goal", {"image": image, "latent": latent}, invalid)
    if image is not None:
        request.image.CopyFrom(codec.image_message(image))
    elif latent is not None:
        request.latent.CopyFrom(codec.latent_tensor(latent))
    return call(methods.CREATE_GOAL, request, lambda reply: READER.value(Goal, reply.goal))


def get_goal(goal: Goal | str) -> Call[Goal]:
    request = goals_pb2.GoalsGetRequest(goal_id=codec.goal_id(goal))
    return call(methods.GET_GOAL, request, lambda reply: READER.value(Goal, reply.goal))


def delete_goal(goal: Goal | str) -> Call[None]:
    request = goals_pb2.GoalsDeleteRequest(goal_id=codec.goal_id(goal))
    return call(methods.DELETE_GOAL, request, lambda reply: None)


def create_session(
    model: str,
    goal: Goal | str | None,
    ttl_s: float,
    seed: int | None,
    stages: Sequence[GoalStage],
    limits: ActionLimits | None = None,
) -> Call[values.SessionStatus]:
    request = sessions_pb2.SessionsCreateRequest(
        model=codec.model_name(model),
        goal_id=codec.goal_id(goal),
        ttl_s=arguments.not_negative("ttl_s", ttl_s),
        seed=codec.seed_number(seed),
        limits=codec.limits_message(limits),
    )
    for stage in arguments.sequence("stages", stages, GoalStage, "GoalStage"):
        request.stages.add(
            goal_id=codec.goal_id(stage.goal),
            switch_below=float(stage.switch_below),
            max_actions=int(stage.max_actions),
        )
    return call(methods.CREATE_SESSION, request, lambda reply: READER.value(values.SessionStatus, reply.session))


def get_session(session_id: str) -> Call[values.SessionStatus]:
    request = sessions_pb2.SessionsGetRequest(session_id=arguments.text("session_id", session_id))
    return call(methods.GET_SESSION, request, lambda reply: READER.value(values.SessionStatus, reply.session))


def reset_session(session_id: str) -> Call[values.SessionStatus]:
    request = sessions_pb2.SessionsResetRequest(session_id=arguments.text("session_id", session_id))
    return call(methods.RESET_SESSION, request, lambda reply: READER.value(values.SessionStatus, reply.session))


def delete_session(session_id: str) -> Call[None]:
    request = sessions_pb2.SessionsDeleteRequest(session_id=arguments.text("session_id", session_id))
    return call(methods.DELETE_SESSION, request, lambda reply: None)


def calibrate_session(session_id: str, moves: Sequence[values.CalibrationMove]) -> Call[values.SessionStatus]:
    request = sessions_pb2.SessionsCalibrateRequest(session_id=arguments.text("session_id", session_id))
    for at, move in enumerate(arguments.sequence("moves", moves, values.CalibrationMove, "CalibrationMove")):
        request.moves.add(
            before=codec.observation_message(move.before),
            action=codec.float_tensor(f"moves[{at}].action", move.action, ("action",)),
            after=codec.observation_message(move.after),
        )
    return call(methods.CALIBRATE_SESSION, request, lambda reply: READER.value(values.SessionStatus, reply.session))


def plan(
    seen: Seen,
    *,
    session_id: str,
    model: str,
    goal: Goal | str | None,
    proprioception: Sequence[float] | None,
    budget_ms: float | None,
    executed: int,
    committed: int,
    follows: values.Plan | None,
    seed: int | None,
    settings: PlannerSettings | None,
    limits: ActionLimits | None = None,
    previous_action: ArrayLike | None = None,
) -> Call[values.Plan]:
    request_id = methods.new_request_id()
    request = planning_pb2.PlanRequest(
        session_id=session_id,
        model=codec.model_name(model),
        observation=codec.observation_message(codec.as_observation(seen, proprioception)),
        goal_id=codec.goal_id(goal),
        planner=codec.planner_message(settings),
        seed=codec.seed_number(seed),
        budget_ms=codec.budget(budget_ms),
        executed=arguments.whole("executed", executed),
        committed=arguments.whole("committed", committed),
        request_id=request_id,
        plan_sequence=codec.plan_sequence(follows),
        limits=codec.limits_message(limits),
        previous_action=codec.previous_action(previous_action),
    )
    return call(methods.PLAN, request, lambda reply: codec.plan_value(reply.plan), request_id)


def rollout(
    seen: Seen,
    actions: ArrayLike,
    *,
    session_id: str,
    model: str,
    goal: Goal | str | None,
    proprioception: Sequence[float] | None,
) -> Call[values.Rollout]:
    request = planning_pb2.RolloutRequest(
        session_id=session_id,
        model=codec.model_name(model),
        observation=codec.observation_message(codec.as_observation(seen, proprioception)),
        actions=codec.float_tensor("actions", actions, ("time", "action")),
        goal_id=codec.goal_id(goal),
    )
    return call(
        methods.ROLLOUT,
        request,
        lambda reply: READER.value(values.Rollout, reply),
    )


def score(
    seen: Seen,
    candidates: ArrayLike,
    *,
    session_id: str,
    model: str,
    goal: Goal | str | None,
    proprioception: Sequence[float] | None,
) -> Call[values.Score]:
    request = planning_pb2.ScoreRequest(
        session_id=session_id,
        model=codec.model_name(model),
        observation=codec.observation_message(codec.as_observation(seen, proprioception)),
        goal_id=codec.goal_id(goal),
        candidates=codec.float_tensor("candidates", candidates, ("candidates", "time", "action")),
    )
    return call(
        methods.SCORE,
        request,
        lambda reply: READER.value(values.Score, reply),
    )


def distance(
    images: Sequence[ImageLike], *, session_id: str, model: str, goal: Goal | str | None
) -> Call[tuple[float, ...]]:
    request = planning_pb2.DistanceRequest(
        session_id=session_id,
        model=codec.model_name(model),
        images=_image_messages(images),
        goal_id=codec.goal_id(goal),
    )
    return call(methods.DISTANCE, request, lambda reply: tuple(reply.distances))


def surprise(seen: Sequence[Seen], actions: ArrayLike, *, session_id: str, model: str) -> Call[values.Surprise]:
    if isinstance(seen, (Observation, dict)) or arguments.is_one_image(seen) or not hasattr(seen, "__iter__"):
        raise invalid("seen", "must be a sequence of at least two observations", arguments.shown(seen))
    request = planning_pb2.SurpriseRequest(
        session_id=session_id,
        model=codec.model_name(model),
        observations=[codec.observation_message(codec.as_observation(each)) for each in seen],
        actions=codec.float_tensor("actions", actions, ("time", "action")),
    )
    return call(
        methods.SURPRISE,
        request,
        lambda reply: READER.value(values.Surprise, reply),
    )


def landscape(
    seen: Seen,
    *,
    session_id: str,
    model: str,
    goal: Goal | str | None,
    proprioception: Sequence[float] | None,
    dimensions: Sequence[str],
    points: int,
    extent: float,
    plot: bool,
) -> Call[values.Landscape]:
    request = planning_pb2.LandscapeRequest(
        session_id=session_id,
        model=codec.model_name(model),
        observation=codec.observation_message(codec.as_observation(seen, proprioception)),
        goal_id=codec.goal_id(goal),
        dimensions=arguments.names("dimensions", dimensions),
        points=arguments.whole("points", points),
        extent=arguments.number("extent", extent),
        plot=bool(plot),
    )
    return call(methods.LANDSCAPE, request, lambda reply: READER.value(values.Landscape, reply))


def _image_messages(images: Sequence[ImageLike]) -> list[observation_pb2.Image]:
    found = arguments.images("images", images)
    return [codec.image_message(image, f"images[{at}]") for at, image in enumerate(found)]


def embed_images(images: Sequence[ImageLike], kind: str, goal: Goal | str | None, model: str) -> Call[values.Embedding]:
    request = embeddings_pb2.EmbedImagesRequest(
        model=codec.model_name(model),
        images=_image_messages(images),
        kind=codec.kind_number(kind),
        goal_id=codec.goal_id(goal),
    )
    return call(
        methods.EMBED_IMAGES,
        request,
        lambda reply: READER.value(values.Embedding, reply, known={"kind": kind}),
    )


def clip_classes(reply: bytes) -> values.ClipClasses:
    return READER.value(values.ClipClasses, methods.CLASSIFY_CLIP.parse(reply))


def clip_embedding(reply: bytes, kind: str) -> values.ClipEmbedding:
    return READER.value(values.ClipEmbedding, methods.EMBED_CLIP.parse(reply), known={"kind": kind})


def health() -> Call[values.Health]:
    """grpc.health.v1's question about the server as a whole, which is an empty message."""
    return Call("/grpc.health.v1.Health/Check", b"", codec.health_value, True, methods.new_request_id())
