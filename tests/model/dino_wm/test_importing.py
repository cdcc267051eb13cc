"""Imports of jepa-wms' files with the encoder they were trained on: the same networks, or one clear refusal."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.families import ImportOptions, import_weights, inspect
from model.checkpoints.foreign import Foreign
from model.checkpoints.state_dict import CheckpointError
from model.dino_wm import DinoEncoder, DinoWorldModel, PatchPredictor, importing
from model.dino_wm.predictor import rollout
from model.dino_wm.published import RELEASED, TASKS, ReleasedPlanner, by_name
from model.registry import load
from tests.support.model.dino_files import (
    TINY,
    TINY_ENCODER,
    Files,
    encoder_file,
    files,
    huggingface_encoder,
    planner_file,
)

CPU = torch.device("cpu")


def imported(held: Files, out: Path, planner: ReleasedPlanner | None = TINY, **options: object) -> DinoWorldModel:
    chosen = ImportOptions(**{"encoder_weights": held.encoder, **options})  # type: ignore[arg-type]
    importing.import_weights(Foreign(held.predictor), out, chosen, planner)
    model = load(str(out), CPU)
    assert isinstance(model, DinoWorldModel)
    return model


def test_an_imported_planner_is_the_networks_of_its_files(tmp_path: Path) -> None:
    held = files(tmp_path)
    model = imported(held, tmp_path / "out")
    predictor, encoder = held.networks
    for ours, theirs in ((model.predictor, predictor), (model.encoder, encoder)):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    frames = torch.randint(256, (2, 30, 40, 3), dtype=torch.uint8)
    latents = model.encode(frames)
    assert latents.shape == (2, 4, 64)
    context = model.context([latents[0]], torch.tensor([[230.0, 260.0, 0.0, 1.0]]))
    actions = torch.randn(1, 3, 15, 2)
    predicted = model.rollout(context, actions)
    assert predicted.shape == (1, 3, 3, 4, 64)
    task = TASKS["pusht"]
    standard = (actions - torch.tensor(task.action.mean)) / torch.tensor(task.action.std)
    numbers = (torch.tensor([230.0, 260.0, 0.0, 1.0]) - torch.tensor(task.measured_mean)) / torch.tensor(
        task.measured_std
    )
    start = latents[:1].expand(3, -1, -1), predictor.measured(numbers).expand(3, -1, -1)
    seen, proprioception = rollout(predictor, start, standard[0].reshape(3, 3, 10))
    torch.testing.assert_close(predicted[0], seen, rtol=1e-5, atol=1e-5)
    whole = model.measuring().rollout(context, actions)
    assert proprioception is not None
    torch.testing.assert_close(whole[0, ..., 64:], proprioception, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[..., :64], predicted)


def test_what_the_file_does_not_hold_comes_from_the_tables_and_is_named_in_the_card(tmp_path: Path) -> None:
    model = imported(files(tmp_path), tmp_path / "out")
    config, task = model.package.config, TASKS["pusht"]
    assert config.action == task.action
    assert model.standards.proprioception_mean == task.measured_mean
    assert config.training["license"].startswith("CC-BY-NC 4.0")
    assert config.planner.samples == 300
    card = model.package.card()
    for said in ("CC-BY-NC 4.0", "facebookresearch/jepa-wms", "tiny_vit", "-0.0087", "sha256"):
        assert said in card


def test_statistics_of_the_users_own_take_the_tables_place(tmp_path: Path) -> None:
    own = ActionStatistics(mean=(0.5, -0.5), std=(2.0, 3.0), source="my recordings")
    model = imported(files(tmp_path), tmp_path / "out", statistics=own)
    assert model.package.config.action is not None
    assert model.package.config.action.std == (2.0, 3.0)
    assert "my recordings" in model.package.card()
    with pytest.raises(CheckpointError, match="action statistics must have 2 entries, x, y, got 3"):
        imported(files(tmp_path), tmp_path / "no", statistics=ActionStatistics((0.0,) * 3, (1.0,) * 3, "wrong"))
    assert not (tmp_path / "no").exists()


def test_the_encoder_may_be_a_hugging_face_folder(tmp_path: Path) -> None:
    held = files(tmp_path)
    folder = huggingface_encoder(tmp_path / "dinov2-tiny", held.networks[1])
    model = imported(held, tmp_path / "out", encoder_weights=folder)
    for name, tensor in held.networks[1].state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name


def test_a_planner_of_dino_wm_without_proprioception_is_imported(tmp_path: Path) -> None:
    shape = replace(
        TINY.predictor,
        kind="vit",
        action=7,
        width=0,
        action_width=3,
        head_dim=8,
        proprioception=0,
        proprioception_width=0,
    )
    planner = replace(TINY, task="droid", predictor=shape, alpha=0.0)
    model = imported(files(tmp_path, planner), tmp_path / "out", planner)
    context = model.context([torch.zeros(4, 64)], None)
    assert model.rollout(context, torch.zeros(1, 2, 3, 7)).shape == (1, 2, 3, 4, 64)
    assert model.package.config.proprioception_names == ()


@pytest.mark.parametrize("planner", [planner for planner in RELEASED if planner.encoder.config is not None])
def test_every_released_planner_is_known_by_its_names_and_has_the_published_shape(
    planner: ReleasedPlanner, tmp_path: Path
) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in PatchPredictor(planner.predictor).state_dict().items()}
    beside = {"jepa": 16, "dino": {"wall": 10, "droid": 0}.get(planner.task, 20)}[planner.name[:4]]
    action = {"metaworld": 20, "droid": 7}.get(planner.task, 10)
    if planner.name.startswith("jepa"):
        width = 384 + beside
        assert shapes["predictor.predictor_blocks.5.attn.qkv.weight"] == (3 * width, width)
        assert shapes["predictor.action_encoder.weight"] == (width, action)
        assert shapes["predictor.predictor_blocks.0.mlp.fc1.weight"] == (4 * width, width)
    else:
        width = 384 + beside + (20 if planner.task == "metaworld" else 10)
        assert shapes["predictor.pos_embedding"] == (1, 1024, width)
        assert shapes["predictor.transformer.layers.5.0.to_qkv.weight"] == (3072, width)
        assert shapes["predictor.transformer.layers.5.1.net.1.weight"] == (2048, width)
        assert shapes["action_encoder.patch_embed.weight"][1:] == (action, 1)
    path = planner_file(tmp_path / "file", PatchPredictor(planner.predictor))
    for name in planner.names:
        path = path.rename(tmp_path / name)
        found = inspect(path)
        assert (found.family, found.model, found.misfit) == ("dino_wm", planner.name, "")
        assert "--encoder-weights" in found.needs[0]


def test_a_file_of_another_name_is_known_by_its_shape_or_asked_about(tmp_path: Path) -> None:
    wall, pusht = by_name("dino_wm_wall"), by_name("jepa_wm_pusht")
    assert wall is not None
    assert pusht is not None
    assert inspect(planner_file(tmp_path / "mine.pth.tar", PatchPredictor(wall.predictor))).model == "dino_wm_wall"
    unsure = planner_file(tmp_path / "other.pth.tar", PatchPredictor(pusht.predictor))
    with pytest.raises(CheckpointError, match="may be any of jepa_wm_pusht, jepa_wm_pointmaze: say which with --model"):
        import_weights(unsure, tmp_path / "out", ImportOptions())
    with pytest.raises(
        CheckpointError, match="holds a predictor alone: give the weights of its encoder, dinov2_vits14"
    ):
        import_weights(unsure, tmp_path / "out", ImportOptions(model="jepa_wm_pointmaze"))
    with pytest.raises(CheckpointError, match="model must be one of jepa_wm_pusht, "):
        import_weights(unsure, tmp_path / "out", ImportOptions(model="jepa_wm_cube"))


def test_a_released_file_of_full_size_is_imported_and_plans(tmp_path: Path) -> None:
    planner = by_name("jepa_wm_wall")
    assert planner is not None
    held = files(tmp_path, planner)
    done = import_weights(held.predictor, tmp_path / "out", ImportOptions(encoder_weights=held.encoder))
    assert done.model == "jepa_wm_wall"
    assert done.details["license"].startswith("CC-BY-NC 4.0")
    assert done.parameters == sum(p.numel() for network in held.networks for p in network.parameters())
    model = load(str(tmp_path / "out"), CPU)
    latent = model.encode(torch.randint(256, (1, 224, 224, 3), dtype=torch.uint8))[0]
    assert latent.shape == (256, 384)
    predicted = model.rollout(model.context([latent], torch.tensor([[30.0, 30.0]])), torch.zeros(1, 2, 10, 2))
    assert predicted.shape == (1, 2, 2, 256, 384)
    assert bool(predicted.isfinite().all())


def test_a_planner_on_dinov3_is_refused_by_name(tmp_path: Path) -> None:
    planner = by_name("jepa_wm_droid")
    assert planner is not None
    small = {"module.predictor_blocks.0.adaLN_modulation.1.weight": torch.zeros(1)}
    torch.save({"predictor": small}, tmp_path / "jepa_wm_droid.pth.tar")
    with pytest.raises(CheckpointError, match="is not jepa_wm_droid: key predictor.predictor_embed.weight is missing"):
        import_weights(tmp_path / "jepa_wm_droid.pth.tar", tmp_path / "out", ImportOptions())
    with pytest.raises(CheckpointError, match="is jepa_wm_droid, which needs the encoder dinov3_vitl16, whose code"):
        import_weights(tmp_path / "jepa_wm_droid.pth.tar", tmp_path / "out", ImportOptions(model="jepa_wm_droid"))


class Harmful:
    """What a pickle could do, were it opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, ("harmed",)


def test_files_that_do_not_belong_are_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    held = files(tmp_path)
    out = tmp_path / "out"

    def refused(said: str, predictor: Path = held.predictor, encoder: Path = held.encoder) -> None:
        with pytest.raises(CheckpointError, match=said) as error:
            imported(replace(held, predictor=predictor, encoder=encoder), out)
        assert "\n" not in str(error.value)
        assert not out.exists()

    other = tmp_path / "other.pth"
    shape = replace(TINY_ENCODER, width=128, heads=2)
    refused(
        "is not tiny_vit, the encoder of tiny: width must be 64, got 128",
        encoder=encoder_file(other, DinoEncoder(shape)),
    )
    torch.save({"encoder": {"a": torch.zeros(1)}}, other)
    refused("is not a DINOv2 encoder: must be one flat dictionary of tensors, got encoder", encoder=other)
    torch.save({"storage_tokens": torch.zeros(1), "patch_embed.proj.weight": torch.zeros(1)}, other)
    refused("is a DINOv3 encoder, whose code Presage does not have", encoder=other)
    torch.save({key: w for key, w in held.networks[1].state_dict().items() if key != "norm.bias"}, other)
    refused("is not a whole DINOv2 encoder: key norm.bias is missing", encoder=other)
    other.write_bytes(held.encoder.read_bytes()[:-300])
    refused("is truncated", encoder=other)
    refused("no such file", encoder=tmp_path / "nowhere.pth")

    broken = tmp_path / "broken.pth.tar"
    broken.write_bytes(held.predictor.read_bytes()[:-500])
    refused("is truncated", predictor=broken)
    broken.write_bytes(pickle.dumps({"predictor": Harmful()}, protocol=2))
    refused("holds more than weights, refused unread", predictor=broken)
    assert not Path("harmed").exists()
    content = torch.load(held.predictor, weights_only=True)
    del content["proprio_encoder"]["module.patch_embed.bias"]
    torch.save(content, broken)
    refused(r"is not tiny: key proprio_encoder\.patch_embed\.bias is missing", predictor=broken)
    content["proprio_encoder"]["module.patch_embed.bias"] = torch.zeros(6)
    content["predictor"]["predictor_norm.bias"] = torch.zeros(30)
    torch.save(content, broken)
    refused("predictor key predictor_norm.bias is there twice once prefixes are stripped", predictor=broken)
    network = PatchPredictor(TINY.predictor)
    planner_file(broken, network, action_encoder={"patch_embed.weight": torch.zeros(1)})
    refused(r"key action_encoder\.patch_embed\.weight is unknown", predictor=broken)
    with pytest.raises(CheckpointError, match="encoder key must not be given for a file of jepa-wms"):
        imported(held, out, encoder_key="encoder")


def test_a_package_whose_parts_do_not_fit_is_refused_by_field(tmp_path: Path) -> None:
    imported(files(tmp_path), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    whole = json.loads(path.read_text())

    def refused(said: str, change: dict[str, object]) -> None:
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=said):
            load(str(tmp_path / "out"), CPU)

    network = whole["network"]
    refused(
        "Standards: pixel_std: must be positive",
        {"network": network | {"standards": network["standards"] | {"pixel_std": [0, 1, 1]}}},
    )
    refused("network.predictor.proprioception must be the number of names, 1, got 4", {"proprioception_names": ["x"]})
    refused(
        "network.predictor.action must be block x dimensions, 4, got 10", {"action": whole["action"] | {"block": 2}}
    )
    refused("network.predictor.grid must be the image's", {"image": whole["image"] | {"height": 42, "width": 42}})
    refused("needs an action specification", {"action": None})
    refused("network has an unknown key: more", {"network": network | {"more": 1}})


def test_frames_that_are_not_square_are_warned_of(tmp_path: Path) -> None:
    model = imported(files(tmp_path), tmp_path / "out")
    frame = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    assert model.observation_warnings(frame, None) == (
        "frames: 48 x 64 pixels are not square; their center of 48 x 48 is seen",
    )
    assert model.observation_warnings(frame[:, :48], None) == ()
    with pytest.raises(ValueError, match="proprioception must be x, y, x velocity, y velocity, got 2 numbers"):
        model.context([torch.zeros(4, 64)], torch.zeros(1, 2))


def test_weights_in_lower_precision_predict_nearly_the_same(tmp_path: Path) -> None:
    model = imported(files(tmp_path), tmp_path / "out")
    lower = model.to_precision(torch.bfloat16)
    assert lower.dtype == torch.bfloat16
    assert model.to_precision(torch.float32) is model
    assert model.to_precision(torch.float8_e4m3fn).dtype == torch.bfloat16
    latent = model.encode(torch.randint(256, (1, 28, 28, 3), dtype=torch.uint8))[0]
    proprioception, actions = torch.tensor([[230.0, 260.0, 0.0, 1.0]]), torch.randn(1, 5, 10, 2) * 0.2
    exact = model.rollout(model.context([latent], proprioception), actions)
    rough = lower.rollout(lower.context([latent], proprioception), actions).float()
    assert float((rough - exact).abs().mean()) < 0.05 * float(exact.abs().mean())
