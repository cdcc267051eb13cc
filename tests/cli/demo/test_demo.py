"""The demo end to end: real service, real robot process, both transports, and nothing left running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from presage import ActionSpec, ImageSpec, Model

from cli.demo.robot import Job, Try, check_suits
from cli.demo.robot_process import run_robot
from cli.exit_codes import CommandError
from cli.private_service import private_service
from model.built_in import built_in
from model.video.decode import decode
from simulation.tasks import make
from tests.cli.demo.test_report import KEYS
from tests.support.cli.packages import write_untrained_arm

PRESAGE = (sys.executable, "-I", "-m", "cli")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_arm(tmp_path_factory.mktemp("package") / "untrained")


def run_demo(model: str, transport: str, report: Path) -> tuple[dict[str, Any], str]:
    """The demo's JSON and what it said on stderr."""
    options = ("--model", model, "--transport", transport, "--report", str(report), "--episodes", "2", "--json")
    done = subprocess.run(
        [*PRESAGE, "demo", *options, "--device", "cpu", "--threads", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def demos(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The untrained package over both transports: folder and JSON."""
    found = {}
    for transport in ("grpc", "rest"):
        folder = tmp_path_factory.mktemp(transport)
        found[transport] = (folder, run_demo(str(package), transport, folder)[0])
    return found


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_demo_that_fails_its_goals_still_reports(
    transport: str, demos: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    folder, told = demos[transport]
    assert told == json.loads((folder / "demo.json").read_text())
    assert list(told) == KEYS
    assert (told["task"], told["transport"], told["episodes"], told["seed"]) == ("arm", transport, 2, 7)
    assert 0 < told["overhead_ms_p50"] <= told["overhead_ms_p95"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{told['successes']} of 2 goal images reached" in page
    assert "[16]" in page  # the pooled embedding's shape
    clip = decode(folder / "episode.mp4")
    assert f"H.264, {len(clip.frames)} frames" in page
    with Image.open(folder / "demo.gif") as gif:
        assert gif.n_frames >= len(clip.frames)  # type: ignore[attr-defined]


def test_both_transports_lead_to_the_same_outcome(demos: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    clips = [decode(folder / "episode.mp4").frames for folder, _ in demos.values()]
    assert clips[0].shape == clips[1].shape
    assert (clips[0] == clips[1]).all()
    rates = [(told["successes"], told["random_success_rate"]) for _, told in demos.values()]
    assert rates[0] == rates[1]


def test_both_transports_report_every_setting_of_the_search(demos: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder, _ in demos.values()]
    by_grpc, by_rest = (re.findall(r"<th>planner</th><td>(.*?)</td>", page) for page in pages)
    assert by_grpc == by_rest
    assert re.match(r"samples \d+, iterations \d+, elites \d+, horizon \d+, optimizer cem, discount 1.0;", by_grpc[0])


@pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not there")
def test_the_built_in_arm_reaches_its_goals(tmp_path: Path) -> None:
    told, _ = run_demo("arm", "grpc", tmp_path)
    assert told["successes"] == 2


def test_the_robots_process_loads_no_model(package: Path) -> None:
    code = (
        "import sys, cli.demo.robot, cli.demo.rest_transport; "
        "sys.exit('torch' in sys.modules or 'server' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_terminated_demo_takes_its_service_with_it(package: Path, tmp_path: Path) -> None:
    options = ("--model", str(package), "--episodes", "50", "--report", str(tmp_path), "--device", "cpu")
    demo = subprocess.Popen([*PRESAGE, "demo", *options], stderr=subprocess.PIPE, text=True)
    assert demo.stderr is not None
    address = ""
    for line in demo.stderr:
        address = address or "".join(re.findall(r"ready on 127\.0\.0\.1:(\d+)", line))
        if line.startswith("episode 1 "):
            break
    os.kill(demo.pid, signal.SIGTERM)
    demo.stderr.close()
    assert demo.wait(60) == 128 + signal.SIGTERM
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address))) != 0
    assert not (tmp_path / "demo.json").exists()


def test_a_service_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(CommandError, match=r"the service did not start: .*no model package 'nowhere'"),
        private_service("nowhere"),
    ):
        pass


def test_a_robot_without_a_service_gives_up_by_name(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
    job = Job("rest", address, "arm", 5, str(tmp_path), ())
    with pytest.raises(CommandError, match=rf"the robot gave up: cannot reach {address}"):
        run_robot(job, lambda line: None)


def test_a_job_survives_its_way_to_the_robot() -> None:
    one = Try(0, 3, (0.1, 0.2), (0.3, 0.4), 2**63 - 1, (7, 3))
    job = Job("grpc", "127.0.0.1:1", "arm", 50, "folder", (one,))
    assert Job.from_json(job.to_json()) == job
    assert asdict(Job.from_json(job.to_json()))["tries"][0]["plan_seed"] == 2**63 - 1


def test_a_model_for_another_robot_is_refused_by_name() -> None:
    action = ActionSpec(("x", "y"), ("m", "m"), (-1.0, -1.0), (1.0, 1.0), 10.0, 5)
    model = Model("m", "compact", "", ImageSpec(64, 64, "exact", 1), action, (8,))
    with pytest.raises(Exception, match="model m acts in x, y, but robot arm in shoulder_velocity, elbow_velocity"):
        check_suits(model, make("arm"))


def test_a_rest_image_holds_the_same_bytes() -> None:
    import base64

    from cli.demo.rest_transport import _image

    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    raw = _image(image)["raw"]
    assert (raw["height"], raw["width"], raw["format"]) == (2, 3, "rgb8")
    assert base64.b64decode(raw["data"]) == image.tobytes()
