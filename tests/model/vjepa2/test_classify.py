"""Classifiers of clips: Hugging Face's folders and Meta's probe files become packages that name what a clip shows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.checkpoints.families import ImportOptions, import_weights, inspect
from model.checkpoints.state_dict import CheckpointError
from model.interface import finished
from model.package import PackageError
from model.registry import load
from model.vjepa2 import AttentiveProbe, ProbeConfig
from model.vjepa2.model import VJepa2Model
from model.vjepa2.world_model import CLIP_WINDOW, encode_clip
from server.engine.messages import ClassifyClipJob, EmbedClipJob
from server.worker.scheduling import background_jobs
from server.worker.scheduling.job import BackgroundJob
from tests.model.vjepa2.test_huggingface import hugging_face_folder
from tests.support.model.reference_files import fixture, worst
from tests.support.model.tiny_vjepa2 import ENCODER, encoder, randomized

CPU = torch.device("cpu")
SHAPE = ProbeConfig(width=32, classes=5, heads=16, depth=3, mlp_hidden=48)
LABELS = ("push", "pull", "lift", "drop", "nothing")


def probe(config: ProbeConfig = SHAPE) -> AttentiveProbe:
    network = randomized(AttentiveProbe(config), seed=7)
    assert isinstance(network, AttentiveProbe)
    return network


def probe_file(path: Path, network: AttentiveProbe, **more: Any) -> Path:
    """A probe as Meta publishes it: the first of a list of classifiers, with wrappers' prefixes."""
    held = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"classifiers": [held, {"module.other": torch.zeros(1)}], "epoch": 20, "batch_size": 4, **more}, path)
    return path


def classifier(package: Path) -> VJepa2Model:
    model = load(str(package), CPU)
    assert isinstance(model, VJepa2Model)
    return model


def clip(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (frames, 20, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_published_head_gives_the_published_scores() -> None:
    reference = fixture("attentive_classifier")
    network = AttentiveProbe.from_reference(reference["config"], reference["state_dict"])
    assert worst(network(reference["inputs"]["tokens"]), reference["outputs"]["logits"]) <= 1e-5


def test_a_probe_file_and_its_encoder_become_a_classifier(tmp_path: Path) -> None:
    folder, file = hugging_face_folder(tmp_path / "vjepa2-tiny"), probe_file(tmp_path / "ours.pt", probe())
    options = ImportOptions(dtype=torch.float32, encoder_weights=folder, labels=LABELS)
    done = import_weights(file, tmp_path / "out", options)
    assert (done.family, done.model) == ("vjepa2", "vjepa2-tiny-ours")
    model = classifier(tmp_path / "out")
    assert model.package.config.labels == LABELS
    assert model.package.config.training["imported_from"] == "ours.pt"
    assert model.package.config.training["encoder_file"] == "vjepa2-tiny"
    frames = clip(6)
    found = model.classify(frames)
    tokens = encode_clip(encoder(), frames, (16, 16), "huggingface").flatten(0, 1).unsqueeze(0)
    assert worst(found, probe()(tokens)[0].softmax(dim=-1)) <= 1e-5
    assert found.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_long_clip_is_classified_by_the_mean_of_its_windows(tmp_path: Path) -> None:
    folder, file = hugging_face_folder(tmp_path / "vjepa2-tiny"), probe_file(tmp_path / "ours.pt", probe())
    import_weights(file, tmp_path / "out", ImportOptions(dtype=torch.float32, encoder_weights=folder))
    model, frames = classifier(tmp_path / "out"), clip(CLIP_WINDOW + 10)
    assert model.package.config.labels == ("0", "1", "2", "3", "4")
    parts = [model.classify(frames[:CLIP_WINDOW]), model.classify(frames[CLIP_WINDOW:])]
    assert worst(model.classify(frames), (parts[0] + parts[1]) / 2) <= 1e-6


def test_a_clip_is_interrupted_between_layers_and_comes_to_the_same(tmp_path: Path) -> None:
    folder, file = hugging_face_folder(tmp_path / "vjepa2-tiny"), probe_file(tmp_path / "ours.pt", probe())
    import_weights(file, tmp_path / "out", ImportOptions(dtype=torch.float32, encoder_weights=folder))
    model, frames = classifier(tmp_path / "out"), clip(CLIP_WINDOW + 10)
    layers, own = len(encoder().blocks), len(probe().pooler.blocks)
    classifying = background_jobs.classify_clip(model, ClassifyClipJob("ours", frames.numpy()))
    pieces, classified = pieces_of(classifying)
    assert pieces == 1 + 2 * (layers + 1 + own), "two windows, each through every layer"
    assert torch.equal(torch.from_numpy(classified.probabilities), model.classify(frames))
    embedding = background_jobs.embed_clip(model, EmbedClipJob("ours", frames.numpy(), "tokens"), 32)
    pieces, embedded = pieces_of(embedding)
    assert pieces == 1 + 2 * (layers + 1)
    tokens = torch.cat(
        [encode_clip(model.encoder, part, (16, 16), "huggingface") for part in torch.split(frames, CLIP_WINDOW)]
    )
    assert torch.equal(torch.from_numpy(embedded.embedding), tokens)


def pieces_of(job: BackgroundJob) -> tuple[int, Any]:
    """How many pieces of work a job has, and its result."""
    pieces = 0
    while True:
        try:
            next(job)
        except StopIteration as end:
            return pieces, end.value
        pieces += 1


def test_the_steps_of_an_encoder_are_its_layers() -> None:
    video, model = torch.randn(1, 3, 4, 16, 16), encoder().eval()
    with torch.no_grad():
        assert torch.equal(finished(model.steps(video)), model(video))


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_a_hugging_face_classifier_gives_the_same_scores_from_the_same_pictures(tmp_path: Path) -> None:
    """From 8-bit frames through their processor and their model, and through ours."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        patch_size=16,
        crop_size=64,
        frames_per_clip=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=4.0,
        pred_hidden_size=24,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
        pred_num_mask_tokens=2,
        num_pooler_layers=2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    theirs: nn.Module = randomized(transformers.VJEPA2ForVideoClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    processor = {"crop_size": {"height": 64, "width": 64}, "image_mean": [0.485, 0.456, 0.406], "resample": 2}
    (tmp_path / "theirs" / "video_preprocessor_config.json").write_text(json.dumps(processor))
    import_weights(tmp_path / "theirs", tmp_path / "ours", ImportOptions(dtype=torch.float32))
    model = classifier(tmp_path / "ours")
    assert model.package.config.labels == LABELS
    assert model.package.config.clip_frames == 4
    assert model.package.config.image.crop_policy == "huggingface"
    frames = clip(4)
    prepared = prepared_by_hand(frames, 64)
    expected = theirs(prepared).logits[0].softmax(dim=-1)
    assert worst(model.classify(frames), expected) <= 1e-5


def prepared_by_hand(frames: torch.Tensor, side: int) -> torch.Tensor:
    """What their video processor gives: short side resized in 8 bits, crop floored, normalized."""
    short = int(side * 256 / 224)
    height, width = frames.shape[1:3]
    rows, columns = (short, short * width // height) if height <= width else (short * height // width, short)
    resized = nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).contiguous(), size=(rows, columns), mode="bilinear", antialias=True
    )
    top, left = (rows - side) // 2, (columns - side) // 2
    values = resized[:, :, top : top + side, left : left + side].double() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((values - mean) / std).float().unsqueeze(0)


def test_inspect_says_what_a_probe_needs(tmp_path: Path) -> None:
    found = inspect(probe_file(tmp_path / "ssv2-vitl-16x2x3.pt", probe()))
    assert (found.family, found.model, found.misfit) == ("vjepa2", "vjepa2-vitl-256-ssv2", "")
    assert found.shape["classes"] == 5
    assert "vjepa2-vitl-256 (--encoder-weights FILE)" in found.needs[0]


def test_probes_that_do_not_belong_are_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    folder, out = hugging_face_folder(tmp_path / "vjepa2-tiny"), tmp_path / "out"

    def refused(said: str, file: Path, **options: Any) -> None:
        with pytest.raises(CheckpointError, match=said) as error:
            import_weights(file, out, ImportOptions(**{"encoder_weights": folder, **options}))
        assert "\n" not in str(error.value)
        assert not out.exists()

    whole = probe_file(tmp_path / "ours.pt", probe())
    refused("holds a probe alone: give the weights of its encoder with --encoder-weights", whole, encoder_weights=None)
    refused("labels must name its 5 classes, got 2", whole, labels=("a", "b"))
    wide = probe_file(tmp_path / "wide.pt", AttentiveProbe(replace(SHAPE, width=48)))
    refused("is not the encoder of wide.pt: width must be 48, got 32", wide)
    part = {key: tensor for key, tensor in probe().state_dict().items() if key != "pooler.blocks.1.norm2.bias"}
    torch.save({"classifiers": [part]}, tmp_path / "part.pt")
    refused(r"classifiers\.0: key pooler\.blocks\.1\.norm2\.bias is missing", tmp_path / "part.pt")
    three = {"classifiers": [{"module.verb_classifier.weight": torch.zeros(3, 32)}]}
    torch.save(three, tmp_path / "ek100-vitl-256.pt")
    refused("holds classifiers of verbs, nouns and actions to come", tmp_path / "ek100-vitl-256.pt")
    torch.save({"classifiers": [{"weight": torch.zeros(3, 32)}]}, tmp_path / "linear.pt")
    refused("is not an attentive probe: key 'linear.weight' is missing", tmp_path / "linear.pt")
    named = probe_file(tmp_path / "ssv2-vitl-16x2x3.pt", probe())
    torch.save({"target_encoder": {"norm.weight": torch.zeros(3)}}, tmp_path / "vith.pt")
    refused(
        "is vjepa2-vith-256, and ssv2-vitl-16x2x3.pt reads vjepa2-vitl-256", named, encoder_weights=tmp_path / "vith.pt"
    )
    refused("encoder weights must not be given for a file of V-JEPA 2 with an encoder in it", folder)


def test_folders_whose_processor_or_labels_differ_are_refused_by_name(tmp_path: Path) -> None:
    folder, out = hugging_face_folder(tmp_path / "vjepa2-tiny"), tmp_path / "out"
    processor = folder / "preprocessor_config.json"
    for setting, said in (
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean must be"),
        ({"do_center_crop": False}, "do_center_crop must be true"),
        ({"resample": 3}, "resample must be 2"),
        ({"crop_size": 224}, "crop_size must be the model's 16 x 16, got 224"),
    ):
        processor.write_text(json.dumps(setting))
        with pytest.raises(CheckpointError, match=said):
            import_weights(folder, out, ImportOptions())
    processor.write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config.json: is not JSON"):
        import_weights(folder, out, ImportOptions())
    processor.unlink()
    assert not out.exists()
    done = import_weights(folder, out, ImportOptions(dtype=torch.float32))
    assert done.details["license"]
    model = classifier(out)
    assert model.package.config.image.crop_policy == "huggingface"
    with pytest.raises(PackageError, match="vjepa2-tiny classifies nothing: it has no probe"):
        model.classify(clip(2))


def test_a_package_whose_labels_are_not_its_classes_is_refused(tmp_path: Path) -> None:
    folder, file = hugging_face_folder(tmp_path / "vjepa2-tiny"), probe_file(tmp_path / "ours.pt", probe())
    import_weights(file, tmp_path / "out", ImportOptions(encoder_weights=folder))
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    assert config["network"]["probe"] == asdict(SHAPE)
    assert config["network"]["encoder"]["width"] == ENCODER.width
    path.write_text(json.dumps(config | {"labels": ["a", "b"]}))
    with pytest.raises(PackageError, match="labels must name the probe's 5 classes, got 2"):
        load(str(tmp_path / "out"), CPU)
