"""Every command helps, and tells a user's mistakes in one line with the right exit code."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import exit_codes
from tests.support.cli.commands import run_command

COMMANDS = (
    (),
    ("serve",),
    ("demo",),
    ("plan",),
    ("landscape",),
    ("embed",),
    ("train",),
    ("eval",),
    ("health",),
    ("replay",),
    ("data",),
    ("data", "collect"),
    ("weights",),
    ("weights", "inspect"),
    ("weights", "list"),
    ("weights", "pull"),
    ("weights", "import"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_how_it_is_used(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(*command, "--help") == 0
    shown = capsys.readouterr()
    assert "Usage: presage" in shown.out
    assert shown.err == ""


def test_help_loads_neither_torch_nor_the_service() -> None:
    heavy = "{'torch', 'grpc', 'fastapi', 'gymnasium', 'numpy'} & set(sys.modules)"
    code = f"import sys, cli.main; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "No such command 'fly'"),
        (("eval", "--task", "walk"), "must be one of arm, arm-push, cube, pusht, reacher, tworoom, got 'walk'"),
        (("eval", "--episodes", "0"), "Invalid value for '--episodes'"),
        (("eval", "--device", "toaster"), "must be usable here, got 'toaster'"),
        (("demo", "--transport", "pigeon"), "must be grpc or rest, got 'pigeon'"),
        (("demo", "--task", "walk"), "must be one of arm, arm-push, cube, pusht, reacher, tworoom, got 'walk'"),
        (("embed", "clip.mp4", "--kind", "color"), "must be one of pooled, per_frame, tokens, got 'color'"),
        (("embed", "clip.mp4", "--fps", "2", "--frames", "3"), "must be at most one of --fps and --frames"),
        (("embed", "clip.mp4", "--out", "latents.txt"), "must end in .npy"),
        (("plan", "--image", "a.png"), "Missing option '--goal'"),
        (("weights", "import", "w.pt", "--out", "w", "--dtype", "int3"), "must be one of bfloat16, float16, float32"),
        (("data", "collect", "--out", "d", "--seed", "1000000"), "must be below 1000000"),
    ],
)
def test_wrong_use_is_exit_code_2(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in " ".join(shown.err.replace("│", " ").split())
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval", "--model", "nowhere", "--device", "cpu"), "no model package 'nowhere'"),
        (("weights", "inspect", "nowhere"), "no such file, folder or built-in package: nowhere"),
        (("weights", "inspect", "notes.pt"), "notes.pt: is not a PyTorch file"),
        (("weights", "import", "notes.pt", "--out", "w"), "notes.pt: is not a PyTorch file"),
        (("embed", "nowhere.mp4"), "no such file: nowhere.mp4"),
        (("plan", "--image", "nowhere.png", "--goal", "nowhere.png"), "nowhere.png: no such file or directory"),
        (("data", "collect", "--out", "."), ". already exists"),
        (("train", "nowhere.yaml", "--out", "m"), "nowhere.yaml: no such file or directory"),
        (("health", "--address", "127.0.0.1:1", "--timeout-s", "2"), "cannot reach 127.0.0.1:1"),
        (("demo", "--episodes", "100000"), "count: must be within 1 and 400"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_with_exit_code_1(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.pt").write_text("these are no weights")
    assert run_command(*arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.startswith("presage: ")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "nowhere.yaml"), "settings file nowhere.yaml cannot be read"),
        (("--host", "0.0.0.0"), "is reachable from elsewhere and must come with"),
        (("--log-level", "loud"), "log_level"),
        (("--set", "weather=fine"), "weather is not a setting"),
        (("--set", "limits.max_queue=many"), "limits.max_queue"),
        (("--set", "shutdown_grace_s"), "must be NAME=VALUE"),
        (("--set", "api_keys=secret"), "must not come as a flag"),
    ],
)
def test_settings_that_cannot_be_used_are_told_in_one_line_with_exit_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("serve", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("presage: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        command = [sys.executable, "-I", "-m", "cli", "serve", "--http-port", port, "--log-level", "error", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"presage: http_port {port} on 127.0.0.1 cannot be listened on: Address already in use\n"


def test_an_error_of_our_own_keeps_its_traceback() -> None:
    def broken() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        exit_codes.run(broken)


def test_collected_episodes_are_the_same_for_the_same_seed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        arguments = ("--episodes", "3", "--steps", "4", "--seed", "5", "--image-size", "16", "--workers", "1", "--json")
        assert run_command("data", "collect", "--out", str(tmp_path / name), *arguments) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == {
        "folder": str(tmp_path / "one"),
        "task": "arm",
        "episodes": 3,
        "steps": 4,
        "image_size": 16,
        "seed": 5,
        "bytes": told[1]["bytes"],
    }
    frames = [np.load(tmp_path / name / "frames.npy") for name in ("one", "two")]
    assert frames[0].shape == (3, 5, 16, 16, 3)
    assert (frames[0] == frames[1]).all()


def test_an_image_is_told_from_a_clip_by_its_first_bytes(tmp_path: Path) -> None:
    from cli.client.embed import _is_image

    for name in ("a.png", "a.jpg", "a.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        assert _is_image(tmp_path / name)
    (tmp_path / "a.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    assert not _is_image(tmp_path / "a.mp4")
