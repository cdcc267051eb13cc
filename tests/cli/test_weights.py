"""`presage weights list` and `pull`, and the page that documents the same models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import typer
from presage.limits import ActionLimits

from cli import exit_codes
from cli.weights import list_published, pull
from model.checkpoints.listing import published
from model.compact import CompactWorldModel
from model.package import limited
from model.preprocessing import CROP_POLICIES
from tests.support.cli.commands import run_command
from tests.support.model.compact_packages import tiny_config
from tests.support.paths import ROOT

CONTENT = b"PK\x03\x04" + bytes(100_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PAGE = ROOT / "docs" / "models.md"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is looked at by the tests."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a folder that holds one of the published files."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "vitl.pt").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> int:
    """The exit code of `presage weights` with these arguments."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("list")(list_published)
    app.command("pull")(pull)
    try:
        return exit_codes.run(lambda: app(list(arguments), prog_name="presage weights"))
    except SystemExit as ended:
        return int(ended.code or 0)


def test_list_names_every_published_model_its_license_and_its_verification(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    listed = {value["name"]: value for value in json.loads(capsys.readouterr().out)["models"]}
    known = {model.name: model for model in published()}
    assert list(listed) == list(known)
    for name, model in known.items():
        assert [each["address"] for each in listed[name]["files"]] == [each.address for each in model.files]
        assert listed[name]["license"] == model.license
        assert listed[name]["verified"] == model.verified
    plans = [name for name, value in listed.items() if value["what"].endswith("plans") or ": plans (" in value["what"]]
    assert plans == [
        "vjepa2-ac-vitg",
        *(name for name in known if name.startswith(("vjepa2_ac", "lewm", "jepa_wm", "dino_wm"))),
    ]
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in known)


def test_list_says_of_every_file_of_others_what_an_import_of_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    listed = {value["name"]: value for value in json.loads(capsys.readouterr().out)["models"]}
    assert listed["jepa_wm_pusht"]["needs"] == "--encoder-weights (the file of dinov2_vits14)"
    assert listed["jepa_wm_pusht"]["license"].startswith("CC-BY-NC 4.0")
    assert "dinov3_vitl16 is not run" in listed["jepa_wm_droid"]["refused"]
    assert "--labels" in listed["vjepa2-vitl-256-ssv2"]["needs"]
    assert listed["lewm-pusht"]["files"][1]["sha256"].startswith("48938400")
    assert not listed["vjepa2-vitl-256"]["needs"]


def test_every_address_is_official_and_of_one_file_alone() -> None:
    addresses = [each.address for model in published() for each in model.files]
    assert len(set(addresses)) == len(addresses)
    hosts = ("https://dl.fbaipublicfiles.com/", "https://huggingface.co/")
    assert all(address.startswith(hosts) for address in addresses)


def test_pull_of_several_files_checks_their_known_digests_and_puts_them_in_a_folder(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.checkpoints import listing

    whole = next(model for model in published() if model.name == "lewm-pusht")
    files = tuple(replace(each, file="vitl.pt", sha256=DIGEST) for each in whole.files[:1])
    two = replace(whole, files=(*files, replace(files[0], file="other.pt")))
    (Path(mirror_folder(tmp_path)) / "other.pt").write_bytes(CONTENT)
    monkeypatch.setattr(listing, "find", lambda name: two)
    assert run("pull", "lewm-pusht", "--out", str(tmp_path / "out"), "--mirror", mirror, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "out" / "lewm-pusht")
    assert told["sha256_verified"]
    assert (tmp_path / "out" / "lewm-pusht" / "other.pt").read_bytes() == CONTENT
    (Path(mirror_folder(tmp_path)) / "other.pt").write_bytes(b"PK" + CONTENT)
    assert run("pull", "lewm-pusht", "--out", str(tmp_path / "again"), "--mirror", mirror) == 1
    assert "sha256 must be" in " ".join(capsys.readouterr().err.split())


def mirror_folder(tmp_path: Path) -> Path:
    """Where the mirror's files are."""
    return tmp_path / "mirror"


def test_pull_says_that_a_file_without_digest_is_not_verified(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pull", "vjepa2-vitl-256", "--out", str(tmp_path / "out"), "--mirror", mirror) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vitl.pt downloaded: 0.1 MB, sha256 not verified" in shown
    assert (tmp_path / "out" / "vitl.pt").read_bytes() == CONTENT


def test_pull_verifies_a_digest_and_keeps_what_is_there(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("pull", "vjepa2-vitl-256", "--out", str(tmp_path), "--mirror", mirror, "--sha256", DIGEST, "--json")
    for was_there in (False, True):
        assert run(*arguments) == 0
        assert json.loads(capsys.readouterr().out) == {
            "model": "vjepa2-vitl-256",
            "path": str(tmp_path / "vitl.pt"),
            "bytes": len(CONTENT),
            "was_there": was_there,
            "sha256_verified": True,
            "license": "MIT",
            "import": f"presage weights import {tmp_path / 'vitl.pt'} --out PACKAGE",
            "needs": "",
        }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("vjepa2-vith-256",), 1, "vith.pt: is not there (404)"),
        (("vjepa2-vitl-256", "--sha256", "0" * 64), 1, f"sha256 must be {'0' * 64}, got {DIGEST}"),
        (("vjepa2-vitl-256", "--sha256", "0x1"), 2, "must be 64 hexadecimal digits, got '0x1'"),
        (("vjepa3",), 2, "must be one of vjepa2-vitl-256, "),
    ],
)
def test_pull_tells_what_went_wrong(
    arguments: tuple[str, ...], code: int, said: str, mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pull", *arguments, "--out", str(tmp_path / "out"), "--mirror", mirror) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in " ".join(shown.err.replace("│", " ").split())
    assert not list((tmp_path / "out").glob("*.pt"))


def test_the_page_of_models_says_of_every_one_what_the_code_says() -> None:
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    table = {row[0]: row for row in rows if len(row) == 6}
    for model in published():
        row = table.pop(model.name)
        assert model.files[-1].file in row
        assert model.license in row
        runs = not model.refused or not model.family
        assert row[-1].startswith("against the" if runs else "not imported"), row
    assert set(table) == {"name", "---"}


def test_the_page_of_models_names_every_crop_policy() -> None:
    page = PAGE.read_text()
    assert [policy for policy in CROP_POLICIES if f"| `{policy}` |" not in page] == []


def test_a_checkpoint_is_told_with_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.pt"
    torch.save({"encoder": {"module.backbone.norm.weight": torch.ones(3)}}, path)
    assert run_command("weights", "inspect", str(path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sha256"] == {"some.pt": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert told["sections"]["encoder"] == {"tensors": 1, "parameters": 3, "dtypes": ["float32"]}
    assert told["misfit"]


def test_an_import_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "package"
    there.mkdir()
    (there / "notes.txt").write_text("mine")
    assert run_command("weights", "import", str(tmp_path / "file.pt"), "--out", str(there)) == 1
    assert f"--out {there} is there already and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in there.iterdir()] == ["notes.txt"]


def test_a_digest_is_shown_short_to_people_and_whole_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("weights", "inspect", "arm") == 0
    shown = capsys.readouterr().out
    assert run_command("weights", "inspect", "arm", "--json") == 0
    digest = json.loads(capsys.readouterr().out)["weights_digest"]
    assert len(digest) == 64
    assert digest not in shown
    assert f"{digest[:16]}..." in shown


def test_inspect_tells_a_packages_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ActionLimits(slew=(0.1, 0.2), max_norm=1.0, frozen=("b",), dwell=(1, 3))
    CompactWorldModel.random(tmp_path / "tiny", limited(tiny_config(), limits), seed=0)
    assert run_command("weights", "inspect", str(tmp_path / "tiny")) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for line in ("next: a 0.1 rad/s, b 0.2 rad/s", "frozen at rest: b", "b 3 actions", "L2 norm of a, b: 1"):
        assert line in shown
    assert run_command("weights", "inspect", str(tmp_path / "tiny"), "--json") == 0
    told = json.loads(capsys.readouterr().out)["config"]["action"]["limits"]
    assert (told["slew"], told["frozen"], told["dwell"]) == ([0.1, 0.2], ["b"], [1, 3])
