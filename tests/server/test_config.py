"""Settings: which source wins, what is refused, and what never shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server.config import Limits, Settings, SettingsError, load, unknown_variables


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("PRESAGE_")]:
        monkeypatch.delenv(name)


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "presage.yaml"
    file.write_text("grpc_port: 1\nhttp_port: 2\nshutdown_grace_s: 3\nlimits: {sessions: 4, max_queue: 5}\n")
    monkeypatch.setenv("PRESAGE_HTTP_PORT", "22")
    monkeypatch.setenv("PRESAGE_SHUTDOWN_GRACE_S", "33")
    monkeypatch.setenv("PRESAGE_LIMITS__MAX_QUEUE", "55")
    settings = load(file, {"shutdown_grace_s": 333, "host": None})
    assert (settings.grpc_port, settings.http_port, settings.shutdown_grace_s) == (1, 22, 333)
    assert (settings.limits.sessions, settings.limits.max_queue) == (4, 55)
    assert settings.limits.clip_bytes == Limits().clip_bytes
    assert settings.host == "127.0.0.1"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML needs Python 3.11")
def test_a_toml_file_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "presage.toml"
    file.write_text('models = ["arm", "pusht"]\n[limits]\nsessions = 7\n')
    settings = load(file)
    assert settings.models == ("arm", "pusht")
    assert settings.limits.sessions == 7


def test_lists_in_variables_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESAGE_MODELS", "arm, /models/mine")
    monkeypatch.setenv("PRESAGE_API_KEYS", "one,two")
    settings = load()
    assert settings.models == ("arm", "/models/mine")
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"grpc_port": 70000}, ["grpc_port", "65535", "70000"]),
        ({"grpc_port": "x"}, ["grpc_port", "integer", "x"]),
        ({"hots": "127.0.0.1"}, ["hots is not a setting"]),
        ({"limits": {"sessions": 0}}, ["limits.sessions", "1", "0"]),
        ({"grpc_port": 5, "http_port": 5}, ["grpc_port and http_port must differ", "5"]),
        ({"tls_cert": "a.pem"}, ["tls_cert and tls_key"]),
        ({"tls_client_ca": "a.pem"}, ["tls_client_ca"]),
        ({"host": "0.0.0.0"}, ["host 0.0.0.0", "api_keys", "insecure_public"]),
        ({"models": []}, ["models"]),
    ],
)
def test_a_bad_setting_is_named_with_its_rule(flags: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags=flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags={"grpc_port": -1, "shutdown_grace_s": "soon"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "\x00"])
def test_a_file_that_is_not_settings_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match="bad.yaml"):
        load(file)
    with pytest.raises(SettingsError, match="absent.yaml"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load(flags={"host": host}).is_loopback


@pytest.mark.parametrize(
    "flags",
    [{"api_keys": ["k"]}, {"api_keys_file": "keys"}, {"insecure_public": True}],
    ids=["keys", "file", "insecure"],
)
def test_other_hosts_need_a_key_or_the_explicit_word(flags: dict[str, object]) -> None:
    assert not load(flags={"host": "0.0.0.0", **flags}).is_loopback


def test_keys_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESAGE_API_KEYS", "s3cret")
    assert "s3cret" not in repr(load())
    with pytest.raises(SettingsError) as caught:
        load(flags={"api_keys": [b"s3cret" * 3, 7], "grpc_port": -1})
    assert "s3cret" not in str(caught.value)


def test_every_setting_says_what_it_is_for() -> None:
    told = {**Settings.model_fields, **Limits.model_fields}
    silent = {name for name, field in told.items() if not field.description}
    assert silent == {"limits"}


def test_misspelt_variables_are_named_with_what_was_meant() -> None:
    environment = {
        "PRESAGE_LOG_LEVLE": "debug",
        "PRESAGE_LIMITS__SESSION": "4",
        "PRESAGE_WARP_FACTOR_OF_THE_ENGINE_ROOM": "9",
        "PRESAGE_HOST": "127.0.0.1",
        "presage_models": "arm",
        "PRESAGE_API_KEY": "a client's",
        "PRESAGE_SERVICE_HOST": "10.0.0.1",
        "PRESAGE_SERVICE_PORT_GRPC": "50051",
        "PRESAGE_PORT": "tcp://10.0.0.1:50051",
        "PRESAGE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "OTHER": "x",
    }
    limits, level, strange = unknown_variables(environment)
    assert limits == "PRESAGE_LIMITS__SESSION is not a setting; did you mean PRESAGE_LIMITS__SESSIONS?"
    assert level == "PRESAGE_LOG_LEVLE is not a setting; did you mean PRESAGE_LOG_LEVEL?"
    assert strange.startswith("PRESAGE_WARP_FACTOR_OF_THE_ENGINE_ROOM is not a setting")
