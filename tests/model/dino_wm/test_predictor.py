"""Both predictors against the published numbers: teacher-forced, rolled out, priced, and searched over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.dino_wm.config import DinoConfig, PredictorConfig
from model.dino_wm.encoder import DinoEncoder
from model.dino_wm.predictor import PatchPredictor, rollout
from model.vjepa2 import CheckpointError
from planner.cost import ChannelDistance, GoalDistance
from planner.types import PlanningError, Problem
from tests.support.model.dino_reference import (
    Watched,
    published_search,
    reference_encoder,
    reference_predictor,
    space,
    world_model,
)
from tests.support.model.reference_files import fixture, worst
from tests.support.model.tiny_vjepa2 import randomized

GATES = {torch.float32: 1e-5, torch.float64: 1e-10}
PREDICTORS = ["jepa_wms_adaln", "jepa_wms_adaln_noprop", "dino_wm_predictor", "dino_wm_predictor_noprop"]


class Case:
    """One file of reference numbers in one precision."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        reference = fixture(name)
        self.dtype, self.outputs = dtype, reference["outputs"]
        self.network = reference_predictor(name).to(dtype)
        self.inputs = {key: tensor.to(dtype) for key, tensor in reference["inputs"].items()}
        self.measures = "window.proprio" in self.inputs

    def agrees(self, got: Tensor, name: str) -> None:
        expected = self.outputs[name if self.dtype == torch.float32 else f"{name}_f64"]
        assert worst(got, expected.view(got.shape)) <= GATES[self.dtype] * max(1.0, float(expected.abs().max())), name

    def has(self, name: str) -> bool:
        return (name if self.dtype == torch.float32 else f"{name}_f64") in self.outputs

    def rolled(self, steps: int) -> tuple[Tensor, Tensor | None]:
        actions = self.inputs["rollout.actions"][:steps].transpose(0, 1)
        return rollout(self.network, self.frame("context", len(actions)), actions)

    def frame(self, name: str, rows: int) -> tuple[Tensor, Tensor | None]:
        patches = self.inputs[f"{name}.visual"].flatten(2, 4)[:, 0].expand(rows, -1, -1)
        if not self.measures:
            return patches, None
        return patches, self.network.measured(self.inputs[f"{name}.proprio"][:, 0]).expand(rows, -1, -1)


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("name", PREDICTORS)
@torch.inference_mode()
def test_windows_of_frames_are_predicted_as_published(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    patches, actions = case.inputs["window.visual"].flatten(2, 4), case.inputs["window.actions"]
    measured = case.network.measured(case.inputs["window.proprio"]) if case.measures else None
    if measured is not None:
        case.agrees(measured, "proprio_feature")
    for frames in (1, 2, 3, 4) if dtype == torch.float32 else (1, 2, 3):
        beside = None if measured is None else measured[:, :frames]
        seen, proprioception = case.network(patches[:, :frames], actions[:, :frames], beside)
        case.agrees(seen, f"predict.T{frames}.visual")
        if proprioception is not None:
            case.agrees(proprioception, f"predict.T{frames}.proprio")


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("name", PREDICTORS)
@torch.inference_mode()
def test_rollouts_past_the_window_are_as_published(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    for steps in (3, 6):
        if not case.has(f"rollout{steps}.visual"):
            continue
        for predicted, part, start in zip(
            case.rolled(steps), ("visual", "proprio"), case.frame("context", 4), strict=True
        ):
            if predicted is not None and start is not None:
                whole = torch.cat([start.unsqueeze(1), predicted], dim=1).transpose(0, 1)
                case.agrees(whole, f"rollout{steps}.{part}")


@pytest.mark.parametrize("name", PREDICTORS)
@torch.inference_mode()
def test_goals_are_priced_as_published(name: str) -> None:
    case = Case(name, torch.float32)
    goal = torch.cat([part for part in case.frame("goal", 1) if part is not None], dim=-1)
    config = case.network.config
    beside = config.proprioception_width
    for steps in (3, 6):
        parts = [part for part in case.rolled(steps) if part is not None]
        predicted = torch.cat(parts, dim=-1).unsqueeze(0)  # one robot, four samples
        for metric, alpha in (("l2", 0.1), ("l2", 1.0), ("l1", 0.1)):
            expected = f"cost{steps}.{metric}_alpha{alpha:g}"
            if not case.has(expected):
                continue
            groups = ((config.latent, 1.0), *(((beside, alpha),) if beside else ()))
            cost = ChannelDistance(groups, GoalDistance(metric, over="last"))  # type: ignore[arg-type]
            case.agrees(cost(predicted, goal, torch.zeros(1)).sum(-1)[0], expected)


def test_a_goal_of_an_image_alone_counts_the_patches_alone() -> None:
    cost = ChannelDistance(((2, 1.0), (1, 5.0)), GoalDistance("l2", over="sum"))
    predicted = torch.tensor([[[[[1.0, 3.0, 2.0]]]]])  # one robot, sample, step and patch
    assert cost(predicted, torch.zeros(1, 1, 3), torch.zeros(1)).item() == pytest.approx(5.0 + 5.0 * 4.0)
    assert cost(predicted, torch.zeros(1, 1, 2), torch.zeros(1)).item() == pytest.approx(5.0)
    squares = cost.residuals(predicted, torch.zeros(1, 1, 3), torch.zeros(1)).square().sum()
    assert squares.item() == pytest.approx(25.0)
    with pytest.raises(PlanningError, match="goal must have the channels of whole groups"):
        cost(predicted, torch.zeros(1, 1, 1), torch.zeros(1))


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_published_search_finds_the_same_plan_draw_by_draw(name: str) -> None:
    reference = fixture(name)
    settings, outputs = reference["config"]["plan"], reference["outputs"]
    network = reference_predictor(name)
    config = network.config
    dimensions = config.action if settings["max_norms"] else config.action // 5
    encoder = DinoEncoder(DinoConfig(config.latent, depth=1, heads=1, mlp_hidden=8, grid=config.grid))
    model = world_model(network, encoder, dimensions=dimensions)
    bounds = space(model)
    if settings["max_norms"]:
        limit = [0.0] * dimensions
        for size, members in zip(settings["max_norms"], settings["max_norm_dims"], strict=True):
            for index in members:
                limit[index] = size
        bounds = space(model, limit)
    inputs = reference["inputs"]
    start = inputs["context.visual"].flatten(2, 4)[0, 0]
    proprioception = inputs["context.proprio"][0] if config.proprioception else None
    goal = model.goal(
        inputs["goal.visual"].flatten(2, 4)[0, 0], inputs["goal.proprio"][0, 0] if config.proprioception else None
    )
    watched = Watched(model.measuring())
    search = published_search(model, settings, inputs["plan.noise"])
    plan = search.plan(watched, Problem(model.context([start], proprioception), goal, bounds, seed=0))
    flat = plan.actions.reshape(search.horizon, -1)
    assert worst(flat, outputs["plan.actions"]) <= 1e-6
    for index, ((actions, predicted), costs) in enumerate(zip(watched.asked, outputs["plan.costs"], strict=False)):
        actions, predicted = actions[:, : search.samples], predicted[:, : search.samples]  # the plan so far goes along
        candidates = actions[0].reshape(search.samples, search.horizon, -1).transpose(0, 1)
        assert worst(candidates, outputs["plan.candidates"][index]) <= 1e-5
        ours = search.cost(predicted, goal.unsqueeze(0), actions).sum(-1)[0]
        assert worst(ours, costs) <= 1e-5 * max(1.0, float(costs.abs().max()))
        elites = set(ours.topk(search.elites, largest=False).indices.tolist())
        assert elites == set(outputs["plan.elites"][index].tolist())


@pytest.mark.parametrize("kind", ["adaln", "dino_wm"])
def test_pictures_to_robot_actions_are_as_published(kind: str) -> None:
    reference = fixture("jepa_wms_plan")
    settings, inputs, outputs = reference["config"]["plans"][kind], reference["inputs"], reference["outputs"]
    given = {name: inputs[f"{kind}.{name}"] for name in ("action_mean", "action_std", "proprio_mean", "proprio_std")}
    statistics = {name: tensor.tolist() for name, tensor in given.items()}
    model = world_model(
        reference_predictor(settings["predictor"]),
        reference_encoder(),
        settings["normalize"],
        settings["env_action_dim"],
        (statistics["action_mean"], statistics["action_std"]),
        (statistics["proprio_mean"], statistics["proprio_std"]),
    )
    seen, wanted = model.encode(torch.stack([inputs["start_image"], inputs["goal_image"]]))
    assert worst(seen, outputs[f"{kind}.z"].flatten(0, 4)) <= 1e-5
    assert worst(wanted, outputs[f"{kind}.z_goal"].flatten(0, 4)) <= 1e-5
    context = model.context([seen], inputs[f"{kind}.start_proprio"].unsqueeze(0))
    assert worst(context[1], outputs[f"{kind}.proprio_feature"][:, 0]) <= 1e-5
    watched, bounds = Watched(model.measuring()), space(model)
    search = published_search(model, settings, inputs[f"{kind}.noise"])
    goal = model.goal(wanted, inputs[f"{kind}.goal_proprio"])
    plan = search.plan(watched, Problem(context, goal, bounds, seed=0))
    assert worst(plan.actions, outputs[f"{kind}.actions"]) <= 1e-6
    for (actions, rolled), elites in zip(watched.asked, outputs[f"{kind}.elites"], strict=False):
        ours = search.cost(rolled[:, : search.samples], goal.unsqueeze(0), actions).sum(-1)[0]
        assert set(ours.topk(search.elites, largest=False).indices.tolist()) == set(elites.tolist())


ADALN = PredictorConfig(
    "adaln",
    latent=12,
    action=4,
    depth=2,
    heads=3,
    grid=2,
    width=10,
    mlp_hidden=24,
    proprioception=2,
    proprioception_width=5,
)
VIT = PredictorConfig("vit", latent=12, action=4, depth=2, heads=2, grid=2, action_width=3, head_dim=5, mlp_hidden=16)


def tiny(config: PredictorConfig) -> PatchPredictor:
    network = randomized(PatchPredictor(config))
    assert isinstance(network, PatchPredictor)
    return network


@pytest.mark.parametrize("config", [ADALN, VIT])
@torch.no_grad()
def test_no_later_action_changes_an_earlier_prediction_and_no_sample_another(config: PredictorConfig) -> None:
    network, actions = tiny(config), torch.randn(3, 5, 4)
    start = (torch.randn(3, 4, 12), torch.randn(3, 4, 5) if config.proprioception else None)
    predicted, _ = rollout(network, start, actions)
    changed = actions.clone()
    changed[0, 3:] += 1.0
    again, _ = rollout(network, start, changed)
    assert torch.equal(again[0, :3], predicted[0, :3])
    assert not torch.allclose(again[0, 3:], predicted[0, 3:])
    torch.testing.assert_close(again[1:], predicted[1:])


@torch.no_grad()
def test_what_left_the_window_is_forgotten() -> None:
    network, actions = tiny(VIT), torch.randn(1, 4, 4)
    predicted, _ = rollout(network, (torch.randn(1, 4, 12), None), actions)
    window, _ = network(predicted[:, 1:3], actions[:, 2:4])
    torch.testing.assert_close(predicted[:, 3], window[:, 1])


@pytest.mark.parametrize("config", [ADALN, VIT])
def test_rollouts_can_be_differentiated_in_their_actions(config: PredictorConfig) -> None:
    actions = torch.randn(2, 4, 4, requires_grad=True)
    start = (torch.randn(2, 4, 12), torch.randn(2, 4, 5) if config.proprioception else None)
    rollout(tiny(config), start, actions)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert actions.grad is not None
    assert bool((actions.grad.abs().sum(-1) > 0).all())


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    reference = fixture("jepa_wms_adaln")
    sections = {
        name: dict(held) if isinstance(held, dict) else held for name, held in reference["checkpoint_layout"].items()
    }
    PatchPredictor.from_reference(reference["config"], sections | {"action_encoder": None})
    missing = sections | {"proprio_encoder": None}
    with pytest.raises(CheckpointError, match=r"key proprio_encoder\.patch_embed\.weight is missing"):
        PatchPredictor.from_reference(reference["config"], missing)
    more = sections | {"action_encoder": {"module.patch_embed.weight": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=r"key action_encoder\.patch_embed\.weight is unknown"):
        PatchPredictor.from_reference(reference["config"], more)
    with pytest.raises(CheckpointError, match="predictor: must be a dictionary of tensors, got int"):
        PatchPredictor.from_reference(reference["config"], {"predictor": 3})
    with pytest.raises(CheckpointError, match="setting pred_type must be AdaLN or dino_wm, got 'mlp'"):
        PatchPredictor.from_reference(reference["config"] | {"pred_type": "mlp"}, sections)
