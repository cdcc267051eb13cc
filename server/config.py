"""Settings of a server: read in one place from flags, environment and file, in that order of precedence.

Flags beat PRESAGE_* variables, which beat the file, which beats the defaults. Nothing else in the service reads the
environment.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import ipaddress
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic_settings
import yaml
from presage.user_error import UserError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

MIB = 1024 * 1024


class SettingsError(UserError, ValueError):
    """Settings that cannot be used; the message is one line per fault, naming setting, rule and value."""


_HALF = "0: half, rounded up"


def share_of(most: int, each: int) -> int:
    """What one key may have of `most`, where `each` is the setting: half of it where that is 0."""
    return min(each or (most + 1) // 2, most)


class Limits(BaseModel):
    """What callers may ask for. More is refused by name. Where no keys are configured, an address stands for a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_bytes: int = Field(default=16 * MIB, ge=1024, description="largest request of one message")
    image_pixels: int = Field(default=4096 * 4096, ge=1, description="pixels of all images of one request together")
    clip_bytes: int = Field(default=256 * MIB, ge=1, description="largest uploaded clip")
    clip_frames: int = Field(default=4096, ge=1, description="most frames used of one clip")
    clip_duration_s: float = Field(
        default=3600.0, gt=0, description="longest clip that is read, however few of its frames are used"
    )
    clip_decode_timeout_s: float = Field(default=60.0, gt=0, description="seconds that decoding one clip may take")
    max_concurrent_uploads: int = Field(default=4, ge=1, description="clips uploaded at the same time")
    upload_idle_s: float = Field(default=30.0, gt=0, description="longest wait for the next piece of an upload")
    upload_s: float = Field(default=900.0, gt=0, description="longest time that one upload may take")
    upload_bytes_per_s: float = Field(
        default=4096.0, ge=0, description="least rate of an upload, over `upload_idle_s` seconds"
    )
    message_s: float = Field(
        default=60.0, gt=0, description="longest time that a request of one message, or a stream's first, may take"
    )
    stream_idle_s: float = Field(
        default=3600.0, gt=0, description="longest silence of a caller in a control stream or an openpi connection"
    )
    concurrent_calls: int = Field(
        default=256, ge=1, description="calls and control streams in progress, over both transports"
    )
    header_bytes: int = Field(
        default=32 * 1024, ge=4096, description="request line and headers of one request, and trailers behind its body"
    )
    headers: int = Field(default=100, ge=16, description="headers of one request, and trailers")
    path_bytes: int = Field(default=8192, ge=256, description="path and query of one request")
    header_s: float = Field(default=10.0, gt=0, description="seconds until a connection has sent a request's headers")
    connection_idle_s: float = Field(default=120.0, gt=0, description="seconds a gRPC connection may be without calls")
    stalled_s: float = Field(default=30.0, gt=0, description="seconds until a reply that nobody takes is given up")
    reply_bytes_per_s: float = Field(
        default=16_384.0, gt=0, description="least rate at which a reply is taken, beyond `stalled_s`"
    )
    connections: int = Field(default=512, ge=8, description="open connections of each transport")
    connections_per_address: int = Field(
        default=256, ge=4, description="of them from one address; one more ends the one that was silent longest"
    )
    session_ttl_s: float = Field(default=86_400.0, gt=0, description="longest time-to-live a session may ask for")
    session_age_s: float = Field(
        default=604_800.0, gt=0, description="longest time a session stays open, however busy it is"
    )
    sessions: int = Field(default=1024, ge=1, description="open sessions")
    max_queue: int = Field(default=64, ge=1, description="calls of one key in one engine, running or waiting")
    calls_per_key: int = Field(default=0, ge=0, description=f"of `concurrent_calls`, for one key; {_HALF}")
    streams_per_key: int = Field(
        default=0, ge=0, description="control streams and openpi connections of one key; 0: three quarters of its calls"
    )
    sessions_per_key: int = Field(default=0, ge=0, description=f"of `sessions`, for one key; {_HALF}")
    uploads_per_key: int = Field(default=0, ge=0, description=f"of `max_concurrent_uploads`, for one key; {_HALF}")
    bytes_per_key: int = Field(
        default=128 * MIB, ge=1024, description="bytes of requests and large replies of one key that are in progress"
    )
    bytes_in_progress: int = Field(default=256 * MIB, ge=1024, description="of requests and large replies of all keys")
    rollout_steps: int = Field(default=2_000_000, ge=1, description="horizon x samples x iterations of one plan")
    iterations: int = Field(default=1000, ge=1, description="iterations of one plan")
    iteration_s: float = Field(
        default=0.25, gt=0, description="longest piece of work that nothing interrupts, as predicted; see `work_s`"
    )
    work_s: float = Field(
        default=60.0, gt=0, description="longest work of one call, as predicted; four times the model's own always may"
    )
    reply_bytes: int = Field(default=64 * MIB, ge=1024, description="of tensors in one reply, as float32")
    images: int = Field(default=256, ge=1, description="images in one embedding")
    goal_cache_bytes: int = Field(default=64 * MIB, ge=0, description="latents of goals kept for one key")
    goal_cache_total_bytes: int = Field(default=256 * MIB, ge=0, description="latents of goals kept for all keys")


class Recording(BaseModel):
    """The flight recorder: plans kept so that they can be made again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="where MCAP files go, a folder for each service")
    max_bytes: int = Field(default=1024 * MIB, ge=16 * MIB, description="of all files; the oldest are deleted")
    images: bool = Field(default=True, description="keep what cameras saw; without, latents stand in for it")


class Settings(BaseSettings):
    """Everything that can be set. Environment names are PRESAGE_ and the field, with __ inside limits."""

    model_config = SettingsConfigDict(
        env_prefix="PRESAGE_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("arm",), min_length=1, description="packages to load, the default first"
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("auto",),
        min_length=1,
        description="one engine each: cpu, cuda, cuda:1, mps, or auto for the best present",
    )
    engine_threads: int = Field(
        default=0, ge=0, description="CPU threads of the engine; 0: as many as are measured to be fastest"
    )
    precision: Literal["auto", "float32", "bfloat16", "float8", "int8"] = Field(
        default="auto", description="of models; auto: the lowest that is faster and chooses the same actions"
    )
    graphs: Literal["auto", "on", "off"] = Field(
        default="auto", description="whether the model's own searches are captured as graphs; auto: on CUDA devices"
    )
    batches: Literal["exact", "any"] = Field(
        default="exact",
        description="computed together: exact, what is measured to change no plan; any, also what may change it",
    )
    engine_nice: int = Field(
        default=5, ge=0, le=19, description="niceness of engines, so that the front runs before them"
    )
    engine_heartbeat_timeout_s: float = Field(
        default=10.0, gt=0, description="seconds without a heartbeat until an engine is killed and restarted"
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="address both transports listen on")
    grpc_port: int = Field(default=50051, ge=0, le=65535, description="0 takes a free port")
    http_port: int = Field(default=8080, ge=0, le=65535, description="0 takes a free port")

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="names in Host that are answered to beside addresses, localhost and names without a dot; none: "
        "these alone on loopback and without keys, else every name",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="pages in browsers that may call, as https://console.example; none: no page may"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="accepted keys, plain or as sha256:<hex>"
    )
    api_keys_file: Path | None = Field(
        default=None, description="accepted keys, one per line, plain or as sha256:<hex>"
    )
    insecure_public: bool = Field(default=False, description="allow callers from elsewhere without any authentication")
    tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain of the server; with tls_key turns TLS on"
    )
    tls_key: Path | None = Field(default=None, description="PEM private key of the server")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM authority that signed the clients' certificates: mTLS"
    )

    engines_away_s: float = Field(
        default=600.0, gt=0, description="seconds without any engine, after there was one, until /livez answers 503"
    )
    session_ttl_s: float = Field(
        default=600.0, gt=0, description="idle seconds until a session that names none is closed"
    )
    startup_timeout_s: float = Field(default=300.0, gt=0, description="seconds the models may take to load and warm up")
    shutdown_grace_s: float = Field(
        default=10.0, ge=0, description="seconds that calls in progress may take after SIGTERM"
    )
    spool_dir: Path | None = Field(
        default=None, description="where uploads are kept meanwhile; the system's place by default"
    )
    reflection: bool = Field(default=True, description="let gRPC tools list the services; needs the extra service")
    openpi: bool = Field(
        default=True, description="let openpi clients in, over WebSocket on http_port; needs the extra service"
    )
    log_format: Literal["console", "json"] = Field(default="console", description="console (lines to read) or json")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged: debug, info, warning or error"
    )

    otlp_endpoint: str = Field(
        default="", description="where spans are sent, such as http://collector:4318/v1/traces; needs the extra otel"
    )

    limits: Limits = Limits()
    record: Recording = Field(default=Recording(), description="the flight recorder")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _file.get()
        return (init_settings, env_settings, *([] if file is None else [_file_source(settings_cls, file)]))

    @field_validator("models", "devices", "api_keys", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A list in one variable is separated by commas."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca must come with tls_cert and tls_key")
        if self.grpc_port == self.http_port != 0:
            raise ValueError(f"grpc_port and http_port must differ, got {self.grpc_port} for both")
        if not (self.is_loopback or self.is_guarded or self.insecure_public):
            raise ValueError(
                f"host {self.host} is reachable from elsewhere and must come with api_keys, api_keys_file or "
                "tls_client_ca; or set insecure_public to serve everyone"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_guarded(self) -> bool:
        return bool(self.api_keys) or self.api_keys_file is not None or self.tls_client_ca is not None


def server_version() -> str:
    return importlib.metadata.version("presage-service")


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read settings: `flags` over the environment over `file` (YAML or TOML) over the defaults.

    A flag of None counts as not given. Raises SettingsError.
    """
    token = _file.set(file)
    try:
        return Settings(**{name: value for name, value in (flags or {}).items() if value is not None})
    except pydantic_settings.SettingsError as error:
        raise SettingsError(f"environment: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(fault) for fault in error.errors(include_url=False))) from None
    finally:
        _file.reset(token)


def unknown_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each PRESAGE_* variable that is no setting, naming the setting it is nearest to.

    Variables that Kubernetes sets for a service named `presage` are not misspelt, nor is the clients' PRESAGE_API_KEY.
    """
    known = [*_variables(Settings, "PRESAGE_"), *_CLIENT_VARIABLES]
    lines = []
    for name in sorted(environment):
        upper = name.upper()
        is_link = environment[name].startswith(("tcp://", "udp://")) or _SERVICE_LINK.fullmatch(upper)
        if not upper.startswith("PRESAGE_") or upper in known or is_link:
            continue
        near = difflib.get_close_matches(upper, known, n=1, cutoff=0.6)
        lines.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return tuple(lines)


_CLIENT_VARIABLES = ("PRESAGE_API_KEY", "PRESAGE_FUZZ_CASES", "PRESAGE_MODEL_FOLDER")
_SERVICE_LINK = re.compile(r"PRESAGE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_\w+)")


def _variables(kind: type[BaseModel], prefix: str) -> list[str]:
    """The environment's name of every setting in a model and the models inside it."""
    names = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += _variables(inner, f"{prefix}{name}__".upper())
        else:
            names.append(f"{prefix}{name}".upper())
    return names


def _describe(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] == "extra_forbidden":
        return f"{name} is not a setting"
    shown = "" if "key" in name else f", got {str(fault['input'])[:80]}"
    return f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}{shown}"


_file: ContextVar[Path | None] = ContextVar("presage_settings_file", default=None)


def _file_source(kind: type[BaseSettings], file: Path) -> PydanticBaseSettingsSource:
    """The settings of a file. Raises SettingsError."""
    try:
        if not file.is_file():
            raise FileNotFoundError("there is no such file")
        if file.suffix == ".toml":
            return TomlConfigSettingsSource(kind, file)
        return YamlConfigSettingsSource(kind, file, yaml_file_encoding="utf-8")
    except (OSError, ValueError, TypeError, ImportError, yaml.YAMLError) as error:
        raise SettingsError(f"settings file {file} cannot be read: {' '.join(str(error).split())}") from None
