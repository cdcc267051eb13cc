"""What people hand the client: taken where it can be meant, otherwise named with field and rule before any call."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable

import numpy as np
import presage
import pytest
from presage.protocol import arguments, codec, requests
from presage.protocol.retry import Attempts
from presage.protocol.transport import Endpoint
from presage.protocol.upload import announce_clip

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
Pillow = pytest.importorskip("PIL.Image")


def png() -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def raw(image: Any) -> np.ndarray[Any, Any]:
    message = codec.image_message(image).raw
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, -1)


class Elsewhere:
    """An array that another library holds, as torch's tensors are."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return PIXELS


@pytest.mark.parametrize(
    "image",
    [PIXELS, np.asfortranarray(PIXELS), PIXELS[::1], Pillow.fromarray(PIXELS), Elsewhere()],
    ids=["array", "columns first", "view", "PIL", "another library"],
)
def test_pixels_are_taken_from_whoever_holds_them(image: Any) -> None:
    np.testing.assert_array_equal(raw(image), PIXELS)


def test_a_pil_picture_is_taken_upright_and_in_rgb(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(PIXELS).save(tmp_path / "phone.png", exif=exif)
    with Pillow.open(tmp_path / "phone.png") as opened:
        np.testing.assert_array_equal(raw(opened), np.rot90(PIXELS, -1))
    gray = Pillow.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(raw(gray), np.repeat(PIXELS[..., :1], 3, 2))


def test_a_file_is_taken_by_its_path_or_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "goal.png"
    path.write_bytes(png())
    for image in (path, str(path), png(), bytearray(png()), memoryview(png())):
        assert codec.image_message(image).encoded == png()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "None"),
        (7, "7"),
        (Path("there/is/no.png"), "No such file"),
        ("https://example.org/x.png", "the address https"),
        ("data:image/png;base64,AA", "the address data:"),
        ("a\0b", "cannot be read"),
        (b"", "no bytes"),
        ({"image": PIXELS}, "a dict"),
        (PIXELS.astype(np.float32), "float32 [6, 8, 3]"),
        (PIXELS[..., 0], "uint8 [6, 8]"),
        (np.zeros((6, 8, 4), np.uint8), "uint8 [6, 8, 4]"),
        (np.zeros((3, 6, 8), np.uint8), "uint8 [3, 6, 8]"),
        (Pillow.new("I;16", (8, 6)), "mode I;16"),
        (PIXELS.tolist(), "a list"),
    ],
)
def test_what_is_no_image_is_named(image: Any, words: str) -> None:
    with pytest.raises(presage.InvalidRequest) as caught:
        codec.image_message(image, "image")
    assert (caught.value.field, caught.value.reason) == ("image", "INVALID_IMAGE")
    assert words in caught.value.message
    assert "uint8 array [height, width, 3]" in caught.value.message


def plan(seen: Any = PIXELS, goal: Any = "g", **given: Any) -> Any:
    asked: dict[str, Any] = {
        "session_id": "",
        "model": "",
        "proprioception": None,
        "budget_ms": None,
        "executed": 0,
        "committed": 0,
        "follows": None,
        "seed": None,
        "settings": None,
    }
    return requests.plan(seen, goal=goal, **{**asked, **given})


# name: a call, and the field that is named
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no observation": (lambda: plan(None), "observation"),
    "a number for an observation": (lambda: plan(3.0), "observation"),
    "cameras by name": (lambda: plan({"front": PIXELS}), "observation"),
    "a missing file": (lambda: plan(Path("no.png")), "observation.images[0]"),
    "an array for a goal": (lambda: plan(goal=PIXELS), "goal"),
    "bytes for a goal": (lambda: plan(goal=b"\x89PNG"), "goal"),
    "a picture for a goal": (lambda: plan(goal=Pillow.fromarray(PIXELS)), "goal"),
    "a path for a goal": (lambda: plan(goal=Path("goal.png")), "goal"),
    "a text for a seed": (lambda: plan(seed="3"), "seed"),
    "a fraction for a seed": (lambda: plan(seed=2.5), "seed"),
    "a truth value for a seed": (lambda: plan(seed=True), "seed"),
    "an array for a seed": (lambda: plan(seed=np.array([3])), "seed"),
    "a fraction executed": (lambda: plan(executed=2.0), "executed"),
    "nothing executed": (lambda: plan(executed=None), "executed"),
    "a text for a budget": (lambda: plan(budget_ms="5"), "budget_ms"),
    "no budget": (lambda: plan(budget_ms=float("nan")), "budget_ms"),
    "a number for a model": (lambda: plan(model=3), "model"),
    "a table for settings": (lambda: plan(settings={"samples": 3}), "settings"),
    "a number followed": (lambda: plan(follows=3), "follows"),
    "proprioception in words": (lambda: plan(proprioception=["a"]), "observation.proprioception"),
    "one name for dimensions": (lambda: plan(settings=presage.PlannerSettings(dimensions="xy")), "settings.dimensions"),  # type: ignore[arg-type]
    "text for samples": (lambda: plan(settings=presage.PlannerSettings(samples="3")), "settings.samples"),  # type: ignore[arg-type]
    "no samples": (lambda: plan(settings=presage.PlannerSettings(samples=-1)), "settings.samples"),
    "text for a stage": (lambda: presage.GoalStage("g", switch_below="1"), "stage.switch_below"),  # type: ignore[arg-type]
    "a stage that is none": (lambda: requests.create_session("", None, 0.0, None, ["g"]), "stages[0]"),  # type: ignore[list-item]
    "one stage": (lambda: requests.create_session("", None, 0.0, None, presage.GoalStage("g")), "stages"),  # type: ignore[arg-type]
    "text for a time": (lambda: requests.create_session("", None, "9", None, []), "ttl_s"),  # type: ignore[arg-type]
    "one image": (lambda: requests.embed_images(PIXELS, "pooled", None, ""), "images"),
    "one picture": (lambda: requests.embed_images(Pillow.fromarray(PIXELS), "pooled", None, ""), "images"),
    "one path": (lambda: requests.embed_images("a.png", "pooled", None, ""), "images"),
    "no images": (lambda: requests.embed_images(None, "pooled", None, ""), "images"),  # type: ignore[arg-type]
    "a kind in a list": (lambda: requests.embed_images([PIXELS], ["pooled"], None, ""), "kind"),  # type: ignore[arg-type]
    "one image to be surprised by": (lambda: requests.surprise(PIXELS, [[0.0]], session_id="", model=""), "seen"),
    "no session": (lambda: requests.get_session(3), "session_id"),  # type: ignore[arg-type]
    "an observation of one image": (lambda: presage.Observation(PIXELS), "observation.images"),
    "a path for images": (lambda: presage.Observation("a.png"), "observation.images"),
    "a sequence in words": (lambda: presage.Observation([PIXELS], sequence="1"), "observation.sequence"),  # type: ignore[arg-type]
    "a clip of none": (lambda: clip(None), "clip"),
    "frames for a clip": (lambda: clip(np.zeros((2, 4, 4, 3), np.uint8)), "clip"),
    "an empty clip": (lambda: clip(b""), "clip"),
    "a text for fps": (lambda: clip(b"x", fps="2"), "fps"),
    "half a frame": (lambda: clip(b"x", frames=0.5), "frames"),
    "a text for a timeout": (lambda: Attempts("5", True), "timeout_s"),  # type: ignore[arg-type]
    "no timeout": (lambda: Attempts(0.0, True), "timeout_s"),
    "a client's timeout": (lambda: presage.Client("127.0.0.1:1", timeout_s=None), "timeout_s"),  # type: ignore[arg-type]
    "a number for an address": (lambda: presage.Client(50051), "address"),  # type: ignore[arg-type]
    "an address of a page": (lambda: presage.Client("http://127.0.0.1:8080"), "address"),
    "a yes for TLS": (lambda: presage.Client("127.0.0.1:1", tls=True), "tls"),  # type: ignore[arg-type]
    "bytes for a key": (lambda: presage.Client("127.0.0.1:1", api_key=b"k"), "api_key"),  # type: ignore[arg-type]
    "a number for affinity": (lambda: presage.Client("127.0.0.1:1", affinity=3), "affinity"),  # type: ignore[arg-type]
}


def clip(source: Any, **given: Any) -> Any:
    asked: dict[str, Any] = {"kind": "pooled", "fps": None, "frames": None, "goal": None, "model": ""}
    return announce_clip(source, **{**asked, **given})


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_that_cannot_be_meant_is_named(name: str) -> None:
    call, field = WRONG[name]
    with pytest.raises(presage.InvalidRequest) as caught:
        call()
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, int])
def test_whole_numbers_of_every_kind_are_taken(kind: Any) -> None:
    from presage.v1 import planning_pb2

    settings = presage.PlannerSettings(samples=kind(5), horizon=kind(2))
    call = plan(seed=kind(3), executed=kind(2), settings=settings)
    sent = planning_pb2.PlanRequest.FromString(call.payload)
    assert (sent.seed, sent.executed, sent.planner.samples, sent.planner.horizon) == (3, 2, 5, 2)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int16, float, int, Fraction, np.array])
def test_real_numbers_of_every_kind_are_taken(kind: Any) -> None:
    from presage.v1 import planning_pb2

    sent = planning_pb2.PlanRequest.FromString(plan(budget_ms=kind(50)).payload)
    assert sent.budget_ms == 50.0
    # A clock counts in millions of seconds, which a float16 does not hold and a float32 not to the second.
    attempts = Attempts(kind(5), True, clock=lambda: 3e7)
    assert attempts.remaining_s() == 5.0
    assert type(attempts.remaining_s()) is float


def test_a_clip_is_taken_by_path_by_its_bytes_and_opened(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for source in (path, str(path), content, bytearray(content), io.BytesIO(content)):
        upload = clip(source, fps=np.float32(2), frames=None)
        sent = list(upload.messages())
        assert upload.size == len(content)
        assert sent == list(clip(path, fps=2.0).messages())


def test_a_file_of_a_clip_that_is_not_there_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        clip(tmp_path / "no.mp4")


def test_several_images_in_one_array_are_taken() -> None:
    several = np.stack([PIXELS, PIXELS[::-1]])
    assert len(arguments.images("images", several)) == 2
    assert len(codec.as_observation(several).images) == 2


LOOPBACK = ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.9.9.9:1", "unix:/tmp/x"]
ELSEWHERE = ["10.0.0.7:1", "robot.example:1", "[2001:db8::1]:1", "127.example.org:1", "localhost.example.org:1"]


@pytest.mark.parametrize("address", LOOPBACK + ELSEWHERE)
def test_a_proxy_is_for_other_machines_alone_and_is_named_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    endpoint = Endpoint(address)
    if address in LOOPBACK:
        assert endpoint.proxy() is None
        assert ("grpc.enable_http_proxy", 0) in endpoint._options()
    else:
        assert endpoint.proxy() == "http://proxy.example:3128 (http_proxy)"
        assert ("grpc.enable_http_proxy", 0) not in endpoint._options()


def test_a_proxy_that_is_excepted_or_of_another_kind_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "other.example, robot.example")
    assert Endpoint("robot.example:1").proxy() is None
    assert Endpoint("elsewhere.example:1").proxy() == "http://proxy.example:3128 (grpc_proxy)"
    monkeypatch.setenv("grpc_proxy", "socks5://proxy.example:1080")  # which gRPC passes over
    assert Endpoint("elsewhere.example:1").proxy() is None


def test_a_server_behind_a_proxy_that_is_down_is_told_with_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with presage.Client("192.0.2.1:50051", timeout_s=3.0) as client, pytest.raises(presage.PresageError) as caught:
        client.health()
    assert "192.0.2.1:50051 through the proxy http://127.0.0.1:9 (grpc_proxy)" in caught.value.message
