"""Foreign checkpoints: what fits comes through whole and slim; everything else is refused by name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from presage.limits import ActionLimits
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoints.importer import CheckpointError, identify, import_checkpoint, inspect_checkpoint, open_checkpoint
from model.checkpoints.published import by_name
from model.checkpoints.state_dict import strip_prefixes
from model.package import PackageError, read_package
from model.vjepa2 import Encoder, MaskedPredictor, MaskedPredictorConfig
from tests.support.model.tiny_vjepa2 import action_predictor, encoder, published

ACTS = published(acts=True)


def meta_content() -> dict[str, Any]:
    """What a training run saves: two encoders, the predictor, and much that nobody serves."""
    predictor = action_predictor(ACTS.predictor)  # type: ignore[arg-type]
    return {
        "encoder": prefixed("module.backbone.", encoder(seed=3).state_dict()),
        "target_encoder": prefixed("module.backbone.", encoder(seed=4).state_dict()),
        "predictor": prefixed("module.", predictor.state_dict()),
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "scaler": None,
        "epoch": 315,
        "loss": np.float64(0.5),
        "lr": 1e-4,
    }


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in weights.items()}


@pytest.fixture
def meta_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pt"
    torch.save(meta_content(), path)
    return path


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = meta_content()
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["encoder", "target_encoder"])
def test_import_takes_the_chosen_encoder_and_the_predictor_alone(meta_file: Path, tmp_path: Path, key: str) -> None:
    seen: list[tuple[int, int]] = []
    done = import_checkpoint(
        meta_file, tmp_path / "out", torch.float32, lambda *p: seen.append(p), encoder_key=key, model=ACTS
    )
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    chosen = encoder(seed=3 if key == "encoder" else 4).state_dict()
    for name, tensor in chosen.items():
        assert torch.equal(weights.pop(f"encoder.{name}"), tensor)
    for name, tensor in action_predictor(ACTS.predictor).state_dict().items():  # type: ignore[arg-type]
        assert torch.equal(weights.pop(f"action_predictor.{name}"), tensor)
    assert not weights
    assert done.encoder_key == key
    assert seen[-1][0] == seen[-1][1] == 4 * done.parameters
    package = read_package(tmp_path / "out")
    assert package.weights_digest == done.weights_sha256
    assert package.config.training["encoder_key"] == key


def test_import_defaults_to_the_models_own_encoder_and_bfloat16(meta_file: Path, tmp_path: Path) -> None:
    done = import_checkpoint(meta_file, tmp_path / "out", model=ACTS)
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert done.encoder_key == "target_encoder"
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    expected = encoder(seed=4).state_dict()["norm.weight"].to(torch.bfloat16)
    assert torch.equal(weights["encoder.norm.weight"], expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "weights.safetensors",
    ]


def test_import_leaves_position_tables_of_rotary_models_behind(tmp_path: Path) -> None:
    def carry(content: dict[str, Any]) -> None:
        content["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 4, 32)
        content["predictor"]["module.predictor_pos_embed"] = torch.zeros(1, 4, 24)

    import_checkpoint(altered(tmp_path / "tiny.pt", carry), tmp_path / "out", model=ACTS)
    assert (tmp_path / "out" / "weights.safetensors").exists()


def test_limits_are_the_packages_and_wrong_ones_leave_nothing_behind(meta_file: Path, tmp_path: Path) -> None:
    limits = ActionLimits(slew=(0.02,) * 3 + (0.05,) * 3 + (2.0,), max_norm=0.1, norm_of=("x", "y", "z"))
    import_checkpoint(meta_file, tmp_path / "out", model=ACTS, limits=limits)
    action = read_package(tmp_path / "out").config.action
    assert action is not None
    assert action.limits == limits
    for model, wrong, says in (
        (ACTS, ActionLimits(slew=(0.02,)), "must have 7 entries"),
        (replace(ACTS, predictor=None), limits, "tiny only embeds"),
    ):
        with pytest.raises(PackageError, match=says):
            import_checkpoint(meta_file, tmp_path / "other", model=model, limits=wrong)
        assert not (tmp_path / "other").exists()


def test_import_of_an_old_format_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save(meta_content(), path, _use_new_zipfile_serialization=False)
    assert import_checkpoint(path, tmp_path / "out", model=ACTS).encoder_key == "target_encoder"


def drop(section: str, key: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content[section][key]

    return change


def add(section: str, key: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[section][key] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("target_encoder", "module.backbone.norm.bias"), r"target_encoder: key norm\.bias is missing"),
        (drop("predictor", "module.action_encoder.bias"), r"predictor: key action_encoder\.bias is missing"),
        (add("predictor", "module.head.weight", (2, 2)), r"predictor: key head\.weight is unknown"),
        (
            add("target_encoder", "module.backbone.norm.bias", (31,)),
            r"key norm\.bias must have shape \(32,\), got \(31,\)",
        ),
        (lambda content: content.pop("target_encoder"), "encoder must be one of encoder, got 'target_encoder'"),
        (lambda content: content.pop("predictor"), "section predictor is missing"),
        (add("target_encoder", "norm.bias", (32,)), r"norm\.bias is there twice once prefixes are stripped"),
    ],
)
def test_import_refuses_what_does_not_fit_by_its_first_key(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = altered(tmp_path / "tiny.pt", change)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(path, tmp_path / "out", model=ACTS)
    assert not (tmp_path / "out").exists()


class Malicious:
    """Unpickled carelessly, this runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("archive", [True, False])
def test_import_refuses_a_pickle_that_holds_code(
    archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vitl.pt"
    if archive:
        torch.save({**meta_content(), "extra": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps({"encoder": Malicious()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"holds more than weights, refused unread: (posix|nt)\.system"):
        import_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_import_refuses_a_truncated_file(meta_file: Path, tmp_path: Path, kept: float) -> None:
    content = meta_file.read_bytes()
    meta_file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="is truncated"):
        import_checkpoint(meta_file, tmp_path / "out", model=ACTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not weights: byte 0 is b'<'"),
        (b"\n <html><body>sign in</body></html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a PyTorch file: it starts with b'vers'"),
        (b"", "is not a PyTorch file: it starts with b''"),
        (b"\x80\x02garbage", "damaged|more than weights"),
    ],
)
def test_import_refuses_files_that_are_something_else(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vitl.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(path, tmp_path / "out")


def test_import_refuses_other_families_by_their_first_key(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.bias": torch.zeros(10)}, path)
    with pytest.raises(CheckpointError, match=r"is not of the V-JEPA 2 family.*key 'conv1\.weight'"):
        import_checkpoint(path, tmp_path / "out")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="must hold a dictionary, got list"):
        import_checkpoint(path, tmp_path / "out")
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        import_checkpoint(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file"):
        import_checkpoint(tmp_path / "nowhere.pt", tmp_path / "out")


def test_import_of_a_size_nobody_published_is_refused(meta_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight must have 768, .* channels, got 32"):
        import_checkpoint(meta_file, tmp_path / "out")


def shaped_like(name: str) -> dict[str, Any]:
    """A published model's checkpoint in shape alone: every tensor is one zero, expanded."""
    model = by_name(name)
    with torch.device("meta"):
        sees = Encoder(model.encoder)
        assert isinstance(model.predictor, MaskedPredictorConfig)
        hidden = MaskedPredictor(model.predictor)
    zero = torch.zeros(1)
    parts = {"target_encoder": sees, "predictor": hidden}
    return {part: {key: zero.expand(t.shape) for key, t in net.state_dict().items()} for part, net in parts.items()}


def test_a_file_under_another_name_is_known_by_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(shaped_like("vjepa2-vitl-256"), path)
    assert identify(open_checkpoint(path)).name == "vjepa2-vitl-256"
    torch.save(shaped_like("vjepa2-vitg-384"), path)
    with pytest.raises(CheckpointError, match="may be any of vjepa2-vitg-256, vjepa2-vitg-384: say which with --model"):
        identify(open_checkpoint(path))
    cut = shaped_like("vjepa2-vitl-256")
    del cut["target_encoder"]["blocks.23.mlp.fc2.bias"]
    torch.save(cut, path)
    with pytest.raises(CheckpointError, match=r"not vjepa2-vitl-256: .* key blocks\.23\.mlp\.fc2\.bias is missing"):
        identify(open_checkpoint(path))


def test_import_of_a_file_named_like_a_published_one_checks_it_is_that(meta_file: Path, tmp_path: Path) -> None:
    named = meta_file.rename(tmp_path / "vitl.pt")
    with pytest.raises(CheckpointError, match="is not vjepa2-vitl-256: target_encoder: key"):
        import_checkpoint(named, tmp_path / "out")


def test_an_opened_checkpoint_says_what_it_holds(meta_file: Path) -> None:
    opened = open_checkpoint(meta_file)
    assert set(opened.sections) == {"encoder", "target_encoder", "predictor"}
    assert opened.encoder_keys == ("encoder", "target_encoder")
    assert opened.parameters("encoder") == sum(p.numel() for p in encoder().parameters())


def test_an_inspection_counts_sections_and_says_what_is_wrong(meta_file: Path, tmp_path: Path) -> None:
    found = inspect_checkpoint(meta_file)
    assert found.model is None
    assert found.misfit is not None
    assert "channels, got 32" in found.misfit
    first = found.sections[0]
    assert (first.name, first.tensors, first.dtypes) == ("encoder", len(encoder().state_dict()), ("float32",))
    assert first.bytes == 4 * first.parameters
    whole = tmp_path / "vitl.pt"
    torch.save(shaped_like("vjepa2-vitl-256"), whole)
    assert (inspect_checkpoint(whole).model, inspect_checkpoint(whole).misfit) == ("vjepa2-vitl-256", None)


def test_prefixes_that_hide_a_second_key_are_refused() -> None:
    with pytest.raises(CheckpointError, match="norm appears twice"):
        strip_prefixes({"module.norm": torch.zeros(1), "module.backbone.norm": torch.zeros(1)})
